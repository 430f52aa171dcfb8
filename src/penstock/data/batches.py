"""Global batches as a pure function of `(seed, step)`, and the fixed windows of validation.

Sample number `g = step * global_batch + b` is window `permute(g mod W)` of epoch `g div W`, where an epoch consists of `W`
windows of `context + 1` tokens that begin every `context` tokens from a random offset. Offset and permutation are drawn
anew from `(seed, epoch)`, so every epoch covers each of its windows exactly once and no two epochs cut the text alike.
Nothing is stored: resuming needs the step only, and any rank can fetch any sample. Batches may straddle epochs.

Where a run changes the size of its batches at step `s`, having drawn `n` samples, `g = n + (step - s) * global_batch` from there on: none is drawn
twice and none left out. Windows of another length cut the text otherwise, so with those an epoch begins (`drawn_before`); what was left of the one
under way is not read in it. Samples of `skip` (`data.skip`) are passed over: g counts those that are left.

Documents follow each other in a window (packing, no padding). With `document_mask` the batch says which document each token belongs to,
and the target that crosses a border, from a document's end token to the next one's first token, is not learned.

Cost: per sequence two look-ups and one copy of `context` tokens from the memory map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from penstock.config import UserError
from penstock.data.permute import keyed, permute
from penstock.data.shards import TokenStream
from penstock.data.skip import Skip

IGNORED = -100
SHARE_MENDS = {"train": ", or lower data.validation", "validation": ", or raise data.validation"}


@dataclass(frozen=True)
class Batch:
    """Sequences of tokens, what follows each of them, and their documents (int32 from 0 in each row, or None).

    `tokens_bt` and `targets_bt` are int64; targets that are not to be learned are -100.
    """

    tokens_bt: np.ndarray
    targets_bt: np.ndarray
    documents_bt: np.ndarray | None

    def columns(self, positions: np.ndarray) -> Batch:
        """The same sequences at some positions only."""
        documents = None if self.documents_bt is None else np.ascontiguousarray(self.documents_bt[:, positions])
        return Batch(self.tokens_bt[:, positions], self.targets_bt[:, positions], documents)


class SamplePlan(Protocol):
    """The order of training: which samples make a step, and how to read them."""

    def sample_ids(self, step: int) -> np.ndarray:
        """The samples of global batch `step`, int64 (global_batch,)."""

    def fetch(self, sample_ids: np.ndarray) -> Batch:
        """Any of them as a batch."""

    def describe(self, sample_id: int) -> str:
        """Where one comes from, for messages."""


class WindowPlan(ABC):
    """Windows of `context + 1` tokens of a stream, chosen by sample ids."""

    def __init__(self, stream: TokenStream, context: int, document_mask: bool) -> None:
        """Raises `UserError` where the stream is shorter than one window."""
        if len(stream) < context + 1:
            raise UserError(
                f"the {stream.label} text has {len(stream)} tokens, fewer than one sequence of model.context + 1 = {context + 1}; "
                "lower model.context, or give more text" + SHARE_MENDS.get(stream.label, "")
            )
        self.stream, self.context, self.document_mask = stream, context, document_mask

    @abstractmethod
    def starts(self, sample_ids: np.ndarray) -> np.ndarray:
        """First token of each sample's window, int64."""

    def fetch(self, sample_ids: np.ndarray) -> Batch:
        """Read the samples `sample_ids` (b,) as a batch of shape (b, context)."""
        n, context = len(sample_ids), self.context
        tokens = np.zeros((n, context), dtype=np.int64)
        targets = np.full((n, context), IGNORED, dtype=np.int64)
        documents = np.zeros((n, context), dtype=np.int32) if self.document_mask else None
        for row, start in enumerate(self.starts(sample_ids).tolist()):
            window = self.stream.read(start, min(context + 1, len(self.stream) - start))
            filled = len(window) - 1
            tokens[row, :filled], targets[row, :filled] = window[:-1], window[1:]
            if documents is not None:
                owners = self.stream.documents(start, len(window))
                documents[row, :filled], documents[row, filled:] = owners[:-1], owners[-1] + 1
                targets[row, :filled][owners[1:] != owners[:-1]] = IGNORED
        return Batch(tokens, targets, documents)

    def describe(self, sample_id: int) -> str:
        """Where a sample comes from, for messages: its tokens, file and document."""
        start = int(self.starts(np.array([sample_id], dtype=np.int64))[0])
        end = min(start + self.context, len(self.stream) - 1)
        return f"sample {sample_id}: {self.stream.label} tokens {start} to {end}, from {self.stream.locate(start)}"


class BatchPlan(WindowPlan):
    """The order of training: global batch `step` is `fetch(sample_ids(step))`, or any partition of it over ranks."""

    def __init__(
        self, stream: TokenStream, context: int, global_batch: int, seed: int, document_mask: bool, since: int = 0, drawn: int = 0,
        skip: Skip | None = None,
    ) -> None:  # fmt: skip
        """`drawn` samples come before those of step `since`, from which on the batches have this size; those of `skip` are left out."""
        super().__init__(stream, context, document_mask)
        self.global_batch, self.seed = global_batch, seed
        self.since, self.drawn, self.skip = since, drawn, skip or Skip()
        self.windows_per_epoch = max(1, (len(stream) - context) // context)
        slack = len(stream) - 1 - self.windows_per_epoch * context
        self._offsets = min(context, slack + 1)

    def sample_ids(self, step: int) -> np.ndarray:
        """The samples of global batch `step`, int64 (global_batch,)."""
        return self.skip.nth(self.drawn, (step - self.since) * self.global_batch + np.arange(self.global_batch, dtype=np.int64))

    def drawn_before(self, step: int, others: BatchPlan) -> int:
        """Samples drawn before `step`, for a plan of other batches to go on behind: its own windows' number where those are other ones."""
        drawn = int(self.sample_ids(step)[0])
        if others.windows_per_epoch == self.windows_per_epoch and others.context == self.context:
            return drawn
        return -(-drawn // self.windows_per_epoch) * others.windows_per_epoch

    def starts(self, sample_ids: np.ndarray) -> np.ndarray:
        """First token of each sample's window, int64."""
        ids = np.asarray(sample_ids, dtype=np.int64)
        epochs, places = np.divmod(ids, self.windows_per_epoch)
        out = np.empty_like(ids)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            offset = keyed(self.seed, epoch, 0) % self._offsets
            out[chosen] = offset + self.context * permute(places[chosen], self.windows_per_epoch, keyed(self.seed, epoch, 1))
        return out


class ValidationPlan(WindowPlan):
    """Fixed windows one after another; `count` of them, every target in exactly one, the rest of the last one padded."""

    def __init__(self, stream: TokenStream, context: int, limit: int, document_mask: bool) -> None:
        super().__init__(stream, context, document_mask)
        self._windows = -(-(len(stream) - 1) // context)
        self.count = min(limit, self._windows) if limit else self._windows

    def starts(self, sample_ids: np.ndarray) -> np.ndarray:
        """First token of each sample's window, int64; evenly spread where only some are used."""
        return np.asarray(sample_ids, dtype=np.int64) * self._windows // self.count * self.context


def validation_plan(stream: TokenStream, context: int, limit: int = 0, document_mask: bool = False) -> ValidationPlan:
    """The windows that score a stream, or `limit` of them, evenly spread, unless 0. Raises `UserError` if it is too short."""
    return ValidationPlan(stream, context, limit, document_mask)
