"""What leaves: predictions on a user's images."""
