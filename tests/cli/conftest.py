"""Commands in this process, as a user types them."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from small_runs import small_config

from penstock.cli import main
from penstock.comm import World
from penstock.engine.starting.start import make_run
from penstock.engine.starting.worker import run_rank
from penstock.store import current_writer


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


@pytest.fixture
def run(tmp_path):
    """A run that trains in this process until it is asked to end."""
    config = small_config(tmp_path, train__steps=100_000, eval__every=0, eval__sample_tokens=0, snapshot__every=0, metrics__tensorboard="false")
    made = make_run(config, "test", "test", tmp_path / "run", None)
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(run_rank, made, World())
        while current_writer(made.path) is None and not ended.done():
            time.sleep(0.01)
        yield made.path, ended
        assert ended.done()
