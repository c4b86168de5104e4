"""Models that a server runs: its HTTP interface, its tokenizer, and llama.cpp as a server inside this process."""
