"""Random operations on an image, and the policies that draw them."""
