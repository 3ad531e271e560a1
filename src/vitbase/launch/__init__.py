"""How ranks are started: a rank table, a cluster, or this machine's devices -> torchrun."""
