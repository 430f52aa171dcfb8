"""What every block needs to know of the sequences beside their vectors: the positions' angles, and who may look at whom.

It is made once for all layers, from the tokens' shape and documents alone. A decoder asks its `sequence`, so whoever cuts sequences over
ranks replaces that object and nothing else.
"""

from __future__ import annotations

from torch import Tensor

from penstock.config import ModelSection
from penstock.models.mask import Mask, training_mask
from penstock.models.rope import RotaryTable

#: Cosines (t, k/2), sines (t, k/2) and mask of the sequences that are being worked on.
Context = tuple[Tensor, Tensor, Mask]


class WholeSequence:
    """Sequences that begin at position 0 and are all here."""

    def __init__(self, model: ModelSection) -> None:
        self.model = model
        self.rotary = RotaryTable(model)

    def context(self, tokens_bt: Tensor, documents_bt: Tensor | None = None) -> Context:
        """Cosines (t, k/2), sines (t, k/2) and mask for sequences of the shape of `tokens_bt`."""
        b, t = tokens_bt.shape
        cos_tk, sin_tk = self.rotary.angles(0, t, tokens_bt.device)
        return cos_tk, sin_tk, training_mask((b, t), self.model.sliding_window, documents_bt, tokens_bt.device)
