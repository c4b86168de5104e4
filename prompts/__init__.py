"""Prompt templates, model rows and other data of lince_rag; no code."""
