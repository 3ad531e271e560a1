"""A page on which a model is tried: an image in, its classes and what the model looks at out."""
