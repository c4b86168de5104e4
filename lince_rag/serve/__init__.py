"""Serve: what other programs talk to."""
