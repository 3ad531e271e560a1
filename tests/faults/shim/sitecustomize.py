"""Python runs this at its start where the folder is on its path: see `faulty.py`."""

from faulty import install_in_writer

install_in_writer()
