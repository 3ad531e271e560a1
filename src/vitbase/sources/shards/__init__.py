"""Tar shards of the WebDataset layout: read at random places, here or behind a URL."""
