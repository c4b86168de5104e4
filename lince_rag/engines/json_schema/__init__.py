"""JSON schema: constrained decoding of answers that are valid JSON and end within their limit of tokens."""
