"""Checkpoints: find the files of a model, check that they are safe and complete, and load them."""
