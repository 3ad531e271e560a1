"""How good a model is: metrics as sums, and evaluation that counts every image once."""
