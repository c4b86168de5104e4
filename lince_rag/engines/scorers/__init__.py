"""Scorers: models that score texts or pairs of texts: rerankers and classifiers."""
