"""Prompting: the registry of models, and their native prompt formats, which no content can forge."""
