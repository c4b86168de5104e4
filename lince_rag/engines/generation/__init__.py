"""Generation: models that run in this process, through transformers."""
