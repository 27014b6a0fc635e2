"""`python -m mambabyte` is `mambabyte`."""

from mambabyte.cli import main

if __name__ == "__main__":
    main()
