"""Command line: ``lince-rag``."""
