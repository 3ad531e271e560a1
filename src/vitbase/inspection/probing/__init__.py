"""How good the features of weights are, before anything is trained."""
