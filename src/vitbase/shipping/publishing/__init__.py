"""A model as a folder that others open, with a card that tells what it is; here, or on the hub."""
