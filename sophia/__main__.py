"""`python -m sophia`."""

from sophia.cli import main

main()
