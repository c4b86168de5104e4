"""Documents: files, read into LangChain documents and cut into chunks."""
