"""`python -m vitbase` is the command `vitbase`."""

from vitbase.cli.main import main

main()
