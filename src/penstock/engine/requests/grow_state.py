"""The training state of a model whose structure changes by growth (models/growth.py): weights, averages and moments by their logical names.

Everything else of the state must fit as it is: another optimizer or tokenizer is not growth. What nodes have withheld of gradients is left out, as
its form depends on the nodes. Cost: values are made when asked for, one tensor and its source at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from penstock.config import Config, UserError
from penstock.engine.story.fit import Fit, Shapes, fit_of, outline_state
from penstock.models import Growth, grown_moment, grown_value, plan_growth

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class GrownState:
    """A change of structure, and what becomes of the state's tensors: `fit.kept` stay, those in `fit.anew` are made from what was there."""

    growth: Growth
    fit: Fit
    config: Config

    def values(self, read: Read) -> dict[str, Callable[[], Tensor]]:
        """How each tensor of `fit.anew` is made; `read` hands out the old state's by name."""
        return {name: partial(self._value, name, read) for name in self.fit.anew}

    def _value(self, name: str, read: Read) -> Tensor:
        like, (kind, _, rest) = self.fit.anew[name], name.partition(".")
        if kind != "optim":
            change = self.growth.changes[rest]
            value = grown_value(change, self.config.model, self.config.run.seed, lambda source: read(f"{kind}.{source}"))
            return value.to(like.dtype)
        parameter, _, moment = rest.rpartition(".")
        change = self.growth.changes[parameter]
        old = read(f"optim.{change.source}.{moment}") if change.fate in ("kept", "wider") else None
        moments = grown_moment(change, old, counter=moment == "step")
        return torch.zeros(like.shape, dtype=like.dtype) if moments is None else moments


def grow_state(stored: Shapes, before: Config, after: Config, same_tokenizer: bool) -> GrownState:
    """How a stored state of the settings `before` becomes one of `after` by growth; raises `UserError` where that is not all that differs."""
    growth = plan_growth(before.model, after.model)
    rest = fit_of(stored, after.model_copy(update={"model": before.model}), same_tokenizer)
    if rest.why:
        raise UserError(f"what does not fit is not the model's structure alone: {rest.sentence()}; change one at a time")
    fit = Fit()
    for name, like in outline_state(after).items():
        change = growth.changes.get(_parameter(name))
        if change is None or (change.fate == "kept" and change.source == change.name):
            fit.kept.append(name)
        else:
            fit.anew[name] = like
    fit.left_out = sorted(stored.keys() - set(fit.kept) - fit.anew.keys())
    return GrownState(growth, fit, after)


def _parameter(name: str) -> str:
    """The parameter or buffer that a tensor of the state is of, counters of steps included."""
    kind, _, rest = name.partition(".")
    return rest.rpartition(".")[0] if kind == "optim" else rest
