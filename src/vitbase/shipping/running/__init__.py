"""The ways to run a model, which of them is fastest here, and what opens an exported file."""
