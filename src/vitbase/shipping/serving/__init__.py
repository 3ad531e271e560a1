"""A model as a service over HTTP: bounded, batched, stopped and reloaded without loss."""
