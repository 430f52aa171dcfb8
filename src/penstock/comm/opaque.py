"""Functions that torch's compiler must leave alone, at no cost to a process that compiles nothing.

`torch.compiler.disable` does it, but imports the compiler where it decorates, and that takes longer than all else that a short command imports.
So it is put off until the compiler is there, which it is before anything is compiled. The compiler breaks a graph at such a function as it does
at one that `disable` decorates, since it knows them by the same mark; without the mark it would look inside, and break there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def opaque(function: Callable[P, R]) -> Callable[P, R]:
    """Keep torch's compiler out of `function` and all that it calls."""
    hidden: list[Callable[P, R]] = []

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not hidden:
            torch._dynamo.decorators.skip(call)  # nor is this worth compiling
            hidden.append(torch.compiler.disable(function))
        return hidden[0](*args, **kwargs)

    marked: Any = call
    marked._torchdynamo_disable = True
    return call
