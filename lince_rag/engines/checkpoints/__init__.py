"""Checkpoints: finding a model's files, checking that they are safe and complete, and loading them."""
