"""The difference between the code of two runs, each a commit with uncommitted changes, as one unified diff.

Where the repository with both commits is at hand, git makes the two trees again, in an index and an object folder of their own that are removed after
use, and compares them: the checkout, its index and its objects stay as they are. Cost: reading two trees, tens of milliseconds.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from penstock.plan.code import DEADLINE_S, DIFF_CAP, EMPTY_TREE


def code_between(folder: Path, before: tuple[str, bytes], after: tuple[str, bytes]) -> str | None:
    """Unified diff of two states of the checkout in `folder`, each (commit or '', diff since it); None where it lacks a commit, or git."""
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-code-") as scratch:
            objects = _git(folder, {}, "rev-parse", "--path-format=absolute", "--git-path", "objects").decode().strip()
            apart = {"GIT_OBJECT_DIRECTORY": scratch, "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects, "GIT_INDEX_FILE": f"{scratch}/index"}
            trees = [_tree(folder, apart, commit, diff) for commit, diff in (before, after)]
            told = _git(folder, apart, "diff", "--no-ext-diff", "--no-textconv", "--no-color", *trees)
    except (OSError, subprocess.SubprocessError):
        return None
    return told[:DIFF_CAP].decode("utf-8", errors="replace")


def _tree(folder: Path, apart: dict[str, str], commit: str, diff: bytes) -> str:
    """Name of the tree that a commit with changes makes."""
    _git(folder, apart, "read-tree", commit or EMPTY_TREE)
    if diff:
        _git(folder, apart, "apply", "--cached", "--whitespace=nowarn", "-", given=diff)
    return _git(folder, apart, "write-tree").decode().strip()


def _git(folder: Path, environment: dict[str, str], *arguments: str, given: bytes = b"") -> bytes:
    """What git answers; raises OSError or SubprocessError where it fails."""
    return subprocess.run(
        ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments], input=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        timeout=DEADLINE_S, check=True, env=os.environ | environment,
    ).stdout  # fmt: skip
