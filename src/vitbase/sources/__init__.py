"""Where images come from: any kind of storage, one `Source`."""
