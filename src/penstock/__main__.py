"""`python -m penstock`, as torchrun calls it."""

from penstock.cli import run

if __name__ == "__main__":
    run()
