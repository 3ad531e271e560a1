"""File formats of weights: a file -> its tensors, checked before they are read."""
