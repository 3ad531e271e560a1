"""`python -m vitbase` is the command `vitbase`."""

from vitbase.cli import main

main()
