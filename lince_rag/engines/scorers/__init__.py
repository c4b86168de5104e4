"""Scorers: rerankers and classifiers, models that score texts or pairs of texts."""
