"""Small corpora, configs and commands for tests of whole runs."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ranks import warm

from penstock.config import Config, load_config

WORDS = "the quick brown fox jumps over a lazy dog while rain falls on green hills and rivers run to seas".split()


def write_corpus(folder: Path, documents: int = 40) -> Path:
    """A folder of small text files with learnable, varied sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        lines = [" ".join(WORDS[(i * 7 + j * 3 + k * (1 + i % 3)) % len(WORDS)] for k in range(9)) for j in range(12)]
        (folder / f"{i:03}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def small_sets(tmp_path: Path, **changes: Any) -> list[str]:
    """`--set` arguments of a run that takes a second."""
    values = {
        "data.path": changes.pop("data__path", None) or write_corpus(tmp_path / "corpus"),
        "data.tokenizer": "bytes",
        "data.cache_dir": tmp_path / "cache",
        "model.layers": 2,
        "model.dim": 32,
        "model.heads": 2,
        "model.context": 32,
        "batch.global": 4,
        "batch.micro": 2,
        "train.steps": 6,
        "metrics.monitor": False,
        "metrics.dashboard": False,
        "optim.warmup": 2,
        "eval.every": 3,
        "eval.sequences": 4,
        "eval.sample_tokens": 8,
        "snapshot.every": 2,
        "metrics.peak_tflops": 0.1,
        "compile.enabled": "off",
        "run.threads": 1,
    } | {name.replace("__", "."): value for name, value in changes.items()}
    return [argument for name, value in values.items() for argument in ("--set", f"{name}={value}")]


def penstock(*arguments: object, timeout_s: float = 240.0, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own: a fork of one that has imported it, or, to change the `environment` it starts in, a new Python."""
    words = [str(argument) for argument in arguments]
    done = _in_new_python(words, timeout_s, environment) if environment else _in_fork(words, timeout_s)
    assert not check or done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def _in_new_python(words: list[str], timeout_s: float, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=os.environ | environment, stdin=subprocess.DEVNULL)


def _in_fork(words: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(prefix="penstock-command-") as name:
        files = [Path(name) / "stdout", Path(name) / "stderr"]
        process = warm.Process(target=_command, args=(words, *files, dict(os.environ), os.getcwd()))
        process.start()
        process.join(timeout_s)
        in_time = process.exitcode is not None
        process.kill()
        process.join()
        told = [file.read_text(encoding="utf-8") for file in files]
        if not in_time:
            raise subprocess.TimeoutExpired(words, timeout_s, *told)
        return subprocess.CompletedProcess(words, process.exitcode, *told)


def _command(words: list[str], out: Path, err: Path, environment: dict[str, str], folder: str) -> None:
    """Be `python -m penstock words`."""
    for number, file in ((1, out), (2, err)):
        with open(file, "wb") as opened:
            os.dup2(opened.fileno(), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", 1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ |= environment
    os.chdir(folder)
    sys.argv = ["penstock", *words]
    runpy.run_module("penstock", run_name="__main__", alter_sys=True)


def refused(*arguments: object, **options: Any) -> str:
    """Run a command that must be refused: exit code 2, nothing on stdout, no traceback; return its message."""
    done = penstock(*arguments, check=False, **options)
    assert done.returncode == 2, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr and done.stdout == "", done.stderr
    return done.stderr


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON object a `--json` command prints."""
    return json.loads(done.stdout)


def small_config(tmp_path: Path, **changes: Any) -> Config:
    """The config that `small_sets` describes."""
    return load_config(None, small_sets(tmp_path, **changes)[1::2])
