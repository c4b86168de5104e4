"""Chain: from a question to a cited answer, as one LangChain Runnable."""
