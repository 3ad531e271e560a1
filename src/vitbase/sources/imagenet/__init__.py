"""ImageNet-1k: its classes, their order, and its evaluation images side by side."""
