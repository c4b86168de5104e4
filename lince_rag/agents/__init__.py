"""Agents: LangChain's agent over an index: it searches, cites and abstains."""
