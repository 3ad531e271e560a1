"""Whose weights they are: one file for each origin."""
