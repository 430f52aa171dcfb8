"""The values of a grown model's tensors, of its averages and of its optimizer's moments, one at a time.

The rule for moments: what stays keeps its own; new entries begin with zeros, in the second moment too. A tensor that is new as a whole counts its
steps from zero, so AdamW's bias correction is that of a new run. New entries of an old tensor share its counter, which is kept: their first updates
are (1 - beta1) / sqrt(1 - beta2) of the rate (0.45 for 0.9 and 0.95; 3.2 for 0.9 and 0.999), and near it after some 1 / (1 - beta2) steps. An average
of the weights is grown as the weights are, so the averaged model computes what it did, too.

Cost: one new tensor and its source at a time; what is drawn costs what it costs a new model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from penstock.config import ModelSection
from penstock.models.growth import WRITERS, Change, Runs
from penstock.models.init import drawn_parameter

#: How far below the lowest bias a new expert's begins: above 1, the most that a sigmoid gives, so that rounding cannot make it chosen.
BIAS_GAP = 1.01


def grown_value(change: Change, model: ModelSection, seed: int, read: Callable[[str], Tensor]) -> Tensor:
    """A tensor of the grown `model` (its weights, or their average); `read` hands out the old model's by name."""
    if change.fate == "silent":
        return _first(change, model, seed).zero_()
    if change.source is None:
        return _first(change, model, seed)
    old = read(change.source)
    if all(run.same for run in change.runs):
        return old.clone()
    if change.name.endswith("bias_e"):
        new = torch.full(change.shape, old.min().item() - BIAS_GAP, dtype=old.dtype, device=old.device)
    else:
        new = drawn_parameter(model, seed, change.name, change.shape).to(old)
    if change.name.endswith(WRITERS):
        _old_outputs(new, change.runs).zero_()
    _old_entries(new, change.runs).copy_(old.reshape(_split(change.runs)))
    return new


def grown_moment(change: Change, moment: Tensor | None, counter: bool = False) -> Tensor | None:
    """A moment of a tensor after its change, `moment` being that of its source; or its counter of steps. None where it begins from zeros."""
    if moment is None or change.fate not in ("kept", "wider"):
        return None
    if counter or all(run.same for run in change.runs):
        return moment.clone()
    new = moment.new_zeros(change.shape)
    _old_entries(new, change.runs).copy_(moment.reshape(_split(change.runs)))
    return new


def _first(change: Change, model: ModelSection, seed: int) -> Tensor:
    """The tensor as a new `model` has it; buffers begin at zero."""
    return torch.zeros(change.shape) if change.name.endswith("bias_e") else drawn_parameter(model, seed, change.name, change.shape)


def _split(runs: tuple[Runs, ...]) -> list[int]:
    return [size for run in runs for size in (run.before, run.width)]


def _old_entries(new: Tensor, runs: tuple[Runs, ...]) -> Tensor:
    """The part of a new tensor that holds the old one's entries, two dimensions for each of its own."""
    view = new.view([size for run in runs for size in (run.after, run.new_width)])
    for dim, run in enumerate(runs):
        view = view.narrow(2 * dim, 0, run.before).narrow(2 * dim + 1, 0, run.width)
    return view


def _old_outputs(new: Tensor, runs: tuple[Runs, ...]) -> Tensor:
    """All that the old experts (the old matrix, where there is one) write, from old units and new."""
    whole = Runs(1, new.shape[-1], 1, new.shape[-1])
    return _old_entries(new, (*runs[:-1], whole))
