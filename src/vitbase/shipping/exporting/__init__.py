"""A model in the formats of other runtimes, each opened again and compared with the model."""
