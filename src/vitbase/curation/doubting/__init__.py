"""What a model makes doubtful in its data: labels, near-duplicates, images far from all others."""
