"""What a run leaves on disk; no torch here."""
