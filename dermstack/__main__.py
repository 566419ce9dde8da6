"""`python -m dermstack`: the command line."""

from dermstack.cli.main import main

main()
