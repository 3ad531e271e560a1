"""How a model learns: losses, optimizers, the loop, its checkpoints."""
