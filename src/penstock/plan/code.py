"""Which code makes a run: commit, branch and every uncommitted change, of the folder it is started in and of Penstock's own checkout.

A commit alone does not say what ran: most experiments are started from a changed working tree. So the whole difference of tracked files
from the commit is taken too, binary files included, in a form that `git apply` takes. Of untracked files only the names are told, since
data and results lie among them. Without git, or outside a checkout, there is nothing to tell.

No external diff, text conversion or file-system monitor that the checkout's settings name is run, and no lock is taken, so that a run can start
beside other work there. A diff above `DIFF_CAP` is cut there, and said to be. Cost: some calls of git, tens of milliseconds in a checkout of usual
size, at most `DEADLINE_S` each. When not to rely on it: for code that is imported from elsewhere and is in no checkout, whose versions
`environment.py` tells where it is an installed package.
"""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import penstock

#: Bytes of a diff that are kept.
DIFF_CAP = 4 << 20
#: Names of untracked files that are kept.
UNTRACKED_CAP = 200
#: Seconds that a call of git may take; one that takes longer tells nothing.
DEADLINE_S = 10.0
#: Git's name of a tree without files, from which a checkout without a commit differs.
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
_QUIET = ("-c", "core.fsmonitor=false", "-c", "core.quotePath=false", "-c", "diff.submodule=short")


@dataclass(frozen=True)
class Checkout:
    """A git checkout as it was: `diff` holds its tracked files' changes since `commit` (empty: there is none yet), as `git apply` takes them.

    `changed` and `untracked` are paths from `folder`, the checkout's own; `cut` says that the diff is not whole.
    """

    folder: Path
    commit: str
    branch: str
    changed: tuple[str, ...]
    untracked: tuple[str, ...]
    diff: bytes
    cut: bool

    def as_dict(self) -> dict[str, Any]:
        """As recorded, without the diff itself."""
        return {
            "folder": str(self.folder), "commit": self.commit, "branch": self.branch, "dirty": bool(self.changed), "changed": list(self.changed),
            "untracked": list(self.untracked), "diff_bytes": len(self.diff), "diff_cut": self.cut,
        }  # fmt: skip


def describe_code(folder: Path | None = None) -> dict[str, Checkout]:
    """The checkouts that a run started in `folder` (default: the current one) is made of: 'penstock' and, where it is another, 'project'."""
    own, here = Path(penstock.__file__).resolve().parent, (folder or Path.cwd()).resolve()
    found = {}
    ours = _top(own)
    if ours is not None and _git(ours, "ls-files", "--error-unmatch", str(own / "__init__.py")):  # else it is installed below a foreign one
        found["penstock"] = ours
    there = _top(here)
    if there is not None and there not in found.values():
        found["project"] = there
    looked = {name: _look(top) for name, top in found.items()}
    return {name: checkout for name, checkout in looked.items() if checkout is not None}


def _top(folder: Path) -> Path | None:
    """The checkout's folder that `folder` is in."""
    answer = _git(folder, "rev-parse", "--show-toplevel")
    return Path(os.fsdecode(answer).rstrip("\n")) if answer else None


def _look(top: Path) -> Checkout | None:
    commit = _text(_git(top, "rev-parse", "--verify", "--quiet", "HEAD"))
    branch = _text(_git(top, "symbolic-ref", "--short", "--quiet", "HEAD"))
    since = commit or EMPTY_TREE
    names = _git(top, "diff", "--no-ext-diff", "--no-textconv", "--name-only", "-z", since)
    if names is None:
        return None
    untracked = _names(_git(top, "ls-files", "--others", "--exclude-standard", "--directory", "--no-empty-directory", "-z"))
    changed = _names(names)
    diff = _git(top, "diff", "--no-ext-diff", "--no-textconv", "--binary", "--no-color", since, limit=DIFF_CAP + 1) if changed else b""
    whole = diff is not None and len(diff) <= DIFF_CAP
    return Checkout(top, commit, branch, changed, untracked[:UNTRACKED_CAP], (diff or b"")[:DIFF_CAP], not whole)


def _git(folder: Path, *arguments: str, limit: int = 64 << 20) -> bytes | None:
    """The first `limit` bytes of what git answers in `folder`, or None where it fails, is missing or takes too long."""
    command = ["git", *_QUIET, "-C", str(folder), *arguments]
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # as git's own hooks set them
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere} | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
            return _answer(process, limit)
    except OSError:
        return None


def _answer(process: subprocess.Popen[bytes], limit: int) -> bytes | None:
    """Read up to `limit` bytes within the deadline; a process that says more is ended, which is no failure."""
    assert process.stdout is not None
    timer = threading.Timer(DEADLINE_S, process.kill)
    timer.start()
    try:
        answer = process.stdout.read(limit)
        more = process.stdout.read(1)
        if more:
            process.kill()
        return answer if process.wait() == 0 or more else None
    finally:
        timer.cancel()


def _text(answer: bytes | None) -> str:
    return (answer or b"").decode("utf-8", errors="replace").strip()


def _names(answer: bytes | None) -> tuple[str, ...]:
    return tuple(name.decode("utf-8", errors="replace") for name in (answer or b"").split(b"\0") if name)
