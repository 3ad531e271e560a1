"""Commands: words in, lines out."""
