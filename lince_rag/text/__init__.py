"""Text: languages, words and their terms, sentences, what questions ask for, and localised wording."""
