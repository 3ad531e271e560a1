"""What is stored: file formats, name tables, and loading a model from a file."""
