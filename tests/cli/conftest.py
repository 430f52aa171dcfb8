"""Commands in this process, as a user types them."""

import json
import sys

import pytest

from penstock.cli import main


@pytest.fixture
def here(capsys, monkeypatch):
    """Run a command in this process: a function of its arguments that returns exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["penstock", *map(str, arguments)])
        capsys.readouterr()
        code = main()
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refuses(here):
    """Run a command that must be refused: exit code 2 and nothing on stdout; returns the message."""

    def run(*arguments):
        code, out, err = here(*arguments)
        assert code == 2 and out == "", (arguments, code, err)
        return err

    return run


@pytest.fixture
def answer(here):
    """Run a command that must succeed, with --json: a function of its arguments that returns the object printed."""

    def run(*arguments):
        code, out, err = here(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return run
