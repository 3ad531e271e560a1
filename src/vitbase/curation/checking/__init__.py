"""The doctor: what training on a data set would stumble over."""
