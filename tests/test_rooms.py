"""Rooms import only from floors below: models know no parallelism, and what watches a run knows no engine."""

import ast
from pathlib import Path

import pytest

import penstock

FLOORS = {"cli": 8, "lab": 7, "engine": 6, "dashboard": 5, "plan": 4, "store": 4, "monitor": 4, "parallel": 3, "optim": 3, "comm": 2, "models": 2, "data": 2, "config": 1}


def imported(file):
    """Rooms that a file imports from."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("penstock."))


@pytest.mark.slow
def test_rooms_import_only_from_floors_below():
    root, upward = Path(penstock.__file__).parent, []
    for room, floor in FLOORS.items():
        for file in (root / room).rglob("*.py"):
            upward += [f"{file.relative_to(root)} imports {other}" for other in imported(file) if other != room and FLOORS[other] >= floor]
    assert not upward
