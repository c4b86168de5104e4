"""Agents: LangChain's agent, which searches the documents, cites and abstains."""
