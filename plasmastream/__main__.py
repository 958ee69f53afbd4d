"""`python -m plasmastream` is the command `plasmastream`."""

from plasmastream.cli import main

if __name__ == "__main__":
    main()
