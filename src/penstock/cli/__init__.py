"""Floor 8: the commands. They parse, call and print; torch is imported only by those that compute."""

from penstock.cli.app import main, run

__all__ = ["main", "run"]
