"""`python -m penstock`, as torchrun calls it."""

import sys

from penstock.cli import main

if __name__ == "__main__":
    sys.exit(main())
