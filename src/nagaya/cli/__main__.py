"""`python -m nagaya.cli`."""

from nagaya.cli import main

main()
