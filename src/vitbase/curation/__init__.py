"""Tools for data sets: the doctor, and packing."""
