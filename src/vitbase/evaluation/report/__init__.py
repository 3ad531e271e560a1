"""The report of runs: one page that opens anywhere, made of what they left on disk; no torch."""
