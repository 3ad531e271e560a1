"""What can be asked for: options, recipes, and what follows from them."""
