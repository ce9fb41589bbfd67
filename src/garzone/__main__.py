"""`python -m garzone`: the same as the `garzone` script."""

from garzone.cli import main

main()
