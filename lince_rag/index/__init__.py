"""Index: a folder of searchable documents, made of vectors, terms, and a ledger of what has been committed."""
