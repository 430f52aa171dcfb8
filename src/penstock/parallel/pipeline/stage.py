"""A stage of the decoder, as the runtime runs it: forward, backward, and the weights' gradients that backward left for later.

Between forward and backward a stage keeps each micro-batch's input and output (and with it autograd's graph); between backward and `weights` the
products that were left (`models/later.py`). The loss is weighted as everywhere: summed over tokens, times one over the global batch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from penstock.models import Decoder
from penstock.models.later import Product, finish, later
from penstock.models.loss import Kernel
from penstock.parallel.pipeline.stages import Part

#: Tokens, targets, both (b, t), and documents (b, t) or None, of a micro-batch on the device.
MicroBatch = tuple[Tensor, Tensor, Tensor | None]


@dataclass
class Pass:
    """What the stages of a rank share in one step: the micro-batches, the loss's weight, and the losses as they come."""

    batches: Sequence[MicroBatch] = ()
    weight: float = 1.0
    #: Whether some backward passes leave the weights' gradients for later.
    split: bool = False
    #: Computes the loss's gradient, None for the eager kernel.
    kernel: Kernel | None = None
    losses: dict[int, Tensor] = field(default_factory=dict)


class DecoderStage:
    """A `runtime.Stage` of a decoder's layers; `kept` is called after weights' gradients that came late, `complete` after the step's last."""

    def __init__(
        self,
        decoder: Decoder,
        part: Part,
        shared: Pass,
        dtype: torch.dtype,
        chunk_tokens: int,
        kept: Callable[[], None],
        complete: Callable[[], None],
    ) -> None:
        self.part, self.complete = part, complete
        self._decoder, self._shared, self._dtype, self._chunk, self._kept = decoder, shared, dtype, chunk_tokens, kept
        self._layers = [str(layer) for layer in part.layers]
        self._under_way: dict[int, tuple[Tensor | None, Tensor]] = {}
        self._left: dict[int, list[tuple[Tensor, Product]]] = {}

    def forward(self, micro: int, x: Tensor | None) -> Tensor | None:
        """Map (b, t, d), or tokens, to (b, t, d), or to the loss."""
        tokens_bt, targets_bt, documents_bt = self._shared.batches[micro]
        if x is not None and torch.is_grad_enabled():
            x.requires_grad_()
        with later.split(self._shared.split):
            y = self._decoder.stage(
                self._layers,
                self._decoder.sequence.context(tokens_bt, documents_bt),
                x_btd=x,
                tokens_bt=tokens_bt,
                dtype=self._dtype,
                targets_bt=targets_bt if self.part.head else None,
                chunk_tokens=self._chunk,
                kernel=self._shared.kernel,
            )
        if self.part.head:
            self._shared.losses[micro] = y.detach()
        if torch.is_grad_enabled():
            self._under_way[micro] = (x, y * self._shared.weight if self.part.head else y)
        return None if self.part.head else y.detach()

    def backward(self, micro: int, grad: Tensor | None, split: bool) -> Tensor | None:
        """Map the gradient of the output to that of the input, both (b, t, d)."""
        x, y = self._under_way.pop(micro)
        if split:
            with later.collect() as self._left[micro]:
                torch.autograd.backward(y, grad)
        else:
            torch.autograd.backward(y, grad)
        return None if x is None else x.grad

    def weights(self, micro: int) -> None:
        """Compute the weights' gradients that `backward` left."""
        finish(self._left.pop(micro))
        self._kept()
