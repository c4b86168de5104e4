"""Serve: the interfaces for other programs."""
