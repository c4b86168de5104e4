"""Index: a folder of documents that can be searched: vectors, terms, and the ledger that says what counts."""
