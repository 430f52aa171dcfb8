"""Norms of gradients, weights and updates, of the elements that this rank counts (`parallel/weights.py`).

Every element of the model is counted by one rank, whatever the layout, so the root of the sum of the ranks' squares is the norm of the whole, and no
rank asks another. Where nodes train apart each counts its own, and the sum is divided by their number.

    grad_norm      before clipping; the clip computes these norms anyway (`optim/clip.py`), so they cost a copy of one number a tensor
    weight_norm    before the update                                        one read of the weights
    update_norm    of what the optimizer added                              a copy of the weights, a subtraction, a norm
    update_ratio   update_norm over weight_norm of this rank's part
    first_moment   of gradients, as the optimizer keeps it after the update   one read of it
    second_moment  AdamW's                                                    one read of it

Cost of all but the first: memory for one more copy of this rank's weights while the optimizer works (activations are gone by then), and some eight
passes over them, which is a third of what AdamW takes; hence every `metrics.probe_every` steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from penstock.engine.probes.places import Sums
from penstock.engine.probes.reading import Finish, Reading
from penstock.monitor.series.table import ABSENT
from penstock.parallel import Weights

#: The moments of optimizers, by what they are.
MOMENTS = {"first_moment": ("exp_avg", "momentum"), "second_moment": ("exp_avg_sq",)}
#: Sets of parameters whose places are kept.
KEPT = 8


class Norms:
    """Measures a rank's parameters; `apart` says that the ranks of each node have weights of their own."""

    def __init__(self, weights: Weights, apart: bool) -> None:
        self.weights, self._alone = weights, ("node",) if apart else ()
        self._share = weights.mesh.layout.node**-0.5 if apart else 1.0
        self._sums: dict[tuple[str, ...], Sums] = {}

    def gradients(self, reading: Reading, norms: Tensor) -> None:
        """Take note of the gradients' norms, which are those of `weights.counted` or, where every rank has all, of all gradients in order."""
        names = self._counted_names()
        if names:
            sums = self._of(names)
            reading.add(sums.named("grad_norm"), norms, partial(self._whole, sums))

    @contextmanager
    def updating(self, reading: Reading) -> Iterator[None]:
        """Measure the weights before and what the block adds to them."""
        found = self.weights.counted_of(self.weights.locals, self._alone)
        names, live = tuple(name for name, _ in found), [tensor.detach() for _, tensor in found]
        with torch.no_grad():
            before = [tensor.clone() for tensor in live]
        yield
        if not live:
            return
        sums = self._of(names)
        with torch.no_grad():
            kinds = live[0].dtype
            of_weights = torch.stack(torch._foreach_norm(before, dtype=kinds))
            torch._foreach_sub_(before, live)
            of_updates = torch.stack(torch._foreach_norm(before, dtype=kinds))
        reading.add(sums.named("weight_norm", "update_norm", "update_ratio"), torch.cat((of_weights, of_updates)), self._three(sums))

    def moments(self, reading: Reading, state: Mapping[str, Tensor]) -> None:
        """Measure the moments of an optimizer, whose tensors are called `optim.<parameter>.<key>`."""
        for quantity, keys in MOMENTS.items():
            of_key = {name.removeprefix("optim.").rpartition(".")[0]: tensor for name, tensor in state.items() if name.rpartition(".")[2] in keys}
            found = self.weights.counted_of(of_key, self._alone)
            if found:
                sums = self._of(tuple(name for name, _ in found))
                with torch.no_grad():
                    norms = torch.stack(torch._foreach_norm([tensor.detach() for _, tensor in found], dtype=found[0][1].dtype))
                reading.add(sums.named(quantity), norms, partial(self._whole, sums))

    def _three(self, sums: Sums) -> Finish:
        def become(numbers: np.ndarray) -> np.ndarray:
            weights, updates = (sums.norms(half) for half in np.split(numbers, 2))
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.where(weights > 0, updates / weights, ABSENT)
            return np.concatenate((weights * self._share, updates * self._share, ratio))

        return become

    def _whole(self, sums: Sums, numbers: np.ndarray) -> np.ndarray:
        return sums.norms(numbers) * self._share

    def _counted_names(self) -> tuple[str, ...]:
        """Of each gradient that this rank counts, its parameter; where every rank has all, they are all or none."""
        grads = {name: tensor.grad for name, tensor in self.weights.locals.items() if tensor.grad is not None}
        return tuple(name for name, _ in self.weights.counted_of(grads, self._alone))

    def _of(self, names: tuple[str, ...]) -> Sums:
        if names not in self._sums:
            if len(self._sums) >= KEPT:
                self._sums.clear()
            self._sums[names] = Sums(names)
        return self._sums[names]
