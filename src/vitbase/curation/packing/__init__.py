"""Any source of images -> tar shards."""
