"""Readers: the bytes of each format → blocks of text with headings and pages → one text with its sections."""
