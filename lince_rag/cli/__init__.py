"""The command line ``lince-rag``."""
