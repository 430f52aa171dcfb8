"""The bytes of snapshots taken every 20 steps of real training, and the speed of their codec on one CPU core.

A decoder of 0.88 M parameters (4 layers × 128, context 128) learns the bytes of Python's standard library for 400 steps of 1,024 tokens, AdamW at its
defaults (1e-3 falling to 1e-4, β 0.9 and 0.95) in float32. Every 20 steps all tensors of the state, weights and both moments, are coded against those
20 steps before. Shares are of the state's bytes, over all 19 increments:

    lossless_20                       the store's codec (aim: at most 0.75); `_weights`, `_first`, `_second` moments apart; `_early`, `_late`: the
                                      first and the last of them, as differences shrink with the learning rate
    zstd, byte_planes, difference     what it is compared with: zstandard (level 3) of the bytes; of byte planes; of byte planes of the difference
                                      from 20 steps before as integers
    full                              the store's codec without a base
    bounded_20                        increments with bounded error, each against what those before decode to (aim: at most 0.15)
    bounded_error                     root mean square of the error of the weights after a chain of so many, over that of their last 20 steps' change
    bounded_loss                      the run is taken up from the bounded snapshot of step 300, after 14 increments in a chain, and goes on to its
                                      end: its validation loss over that of the run itself, less 1 (aim: within 0.001)
    frozen_95, frozen_95_scattered    lossless increments where only 5 % changes: some tensors, or numbers here and there in all (aim: at most 0.10);
                                      `_bounded` likewise
    encode_mb_s, decode_mb_s          10^6 bytes of float32 a second of CPU time, increments of weights and moments of 1.4 MB each (aims: 200, 500),
                                      and bounded ones; medians. `zstd_mb_s`: zstandard (level 3) of the same cells, plain

Only bytes of payloads are counted; a pack's trailer and a manifest have about 150 more for each cell of up to 4 MiB.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import zstandard
from torch import Tensor

from benchmarks.rigs import penstock_parts
from benchmarks.timing import take_turns
from penstock.engine.build import Parts
from penstock.engine.evaluate import validation_loss
from penstock.engine.step import take_step
from penstock.store.codec import decode, encode
from penstock.store.codec.cells import Encoded, Kind

STEPS, EVERY, RESUMED, TURNS = 400, 20, 300, 15
SETS = [
    "data.tokenizer=bytes", "model.ffn_dim=344", "model.tie_embeddings=false", "batch.global=8", "batch.micro=8", f"train.steps={STEPS}",
    "optim.kind=adamw", "optim.lr=1e-3", "optim.weight_decay=0.1", "eval.every=0", "eval.sequences=512", "snapshot.every=0", "compile.enabled=off",
]  # fmt: skip
KINDS: tuple[Kind, Kind] = ("lossless", "bounded")
State = dict[str, Tensor]
Cells = list[tuple[Tensor, Tensor]]


def run() -> dict[str, float | str]:
    """Train, and code every snapshot on the way."""
    with tempfile.TemporaryDirectory(prefix="penstock-store-bytes-") as folder:
        parts = penstock_parts("tiny", SETS, Path(folder))
        tally = Tally()
        while parts.progress.step < STEPS:
            advance(parts)
            tally.take(parts.progress.step, {name: tensor.clone() for name, tensor in parts.tensors().items()})
        loss = validation_loss(parts)
        for name, tensor in parts.tensors().items():
            tensor.copy_(tally.kept[name])
        parts.progress.step = RESUMED
        while parts.progress.step < STEPS:
            advance(parts)
        bounded_loss = validation_loss(parts) / loss - 1
        parts.journal.close()
    return tally.figures() | {"bounded_loss": bounded_loss} | frozen(*tally.last) | speeds(*tally.last)


def advance(parts: Parts) -> None:
    """Take 20 steps."""
    for _ in range(EVERY):
        take_step(parts, parts.progress.step)
        parts.progress.step += 1
        parts.timer.take()


class Tally:
    """Bytes of every snapshot by how it is coded, and the content of a chain of bounded ones."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.lossless: list[float] = []
        self.error = 0.0
        self.rough: State = {}
        self.kept: State = {}
        self.last: tuple[State, State] = ({}, {})

    def take(self, step: int, state: State) -> None:
        """Code a snapshot against the one before."""
        before, size = self.last[1], sum(tensor.nbytes for tensor in state.values())
        self.last = before, state
        if not before:
            self.rough = {name: tensor.reshape(-1) for name, tensor in state.items()}
            return
        was = self.bytes["lossless_20"]
        for name, tensor in state.items():
            payload = encode(tensor, before[name]).payload
            self.bytes += Counter({
                "size": tensor.nbytes, f"size_{part(name)}": tensor.nbytes, "lossless_20": len(payload), f"lossless_20_{part(name)}": len(payload),
                "full": len(encode(tensor).payload), "zstd": squeezed(tensor), "byte_planes": squeezed(planes(tensor)),
                "difference": squeezed(planes(difference(tensor, before[name]))),
            })  # fmt: skip
            rough = encode(tensor, self.rough[name], "bounded")
            self.rough[name] = rough.content.clone()
            self.bytes["bounded_20"] += len(rough.payload)
        self.lossless.append((self.bytes["lossless_20"] - was) / size)
        if step == RESUMED:
            self.kept = {name: self.rough[name].view(tensor.shape) for name, tensor in state.items()}
            self.error = (distance(self.kept, state) / distance(before, state)) ** 0.5

    def figures(self) -> dict[str, float | str]:
        """Shares of the state's bytes."""
        shares = {name: count / self.bytes["size"] for name, count in self.bytes.items() if not name.startswith(("size", "lossless_20_"))}
        parts = {f"lossless_20_{name}": self.bytes[f"lossless_20_{name}"] / self.bytes[f"size_{name}"] for name in ("weights", "first", "second")}
        return {**shares, **parts, "lossless_20_early": self.lossless[0], "lossless_20_late": self.lossless[-1], "bounded_error": self.error}


def frozen(before: State, after: State) -> dict[str, float | str]:
    """Shares where nineteen of twenty numbers stand still."""
    size, found = sum(tensor.nbytes for tensor in after.values()), dict[str, float | str]()
    moved, left = set(), size // 20
    for name in sorted(after, key=lambda name: -after[name].nbytes):
        if after[name].nbytes <= left:
            moved.add(name)
            left -= after[name].nbytes
    some = {name: tensor if name in moved else before[name] for name, tensor in after.items()}
    generator = torch.Generator().manual_seed(1)
    scattered = {name: torch.where(torch.rand(tensor.shape, generator=generator) < 0.05, tensor, before[name]) for name, tensor in after.items()}
    for name, state in (("frozen_95", some), ("frozen_95_scattered", scattered)):
        for suffix, kind in (("", KINDS[0]), ("_bounded", KINDS[1])):
            found[name + suffix] = sum(len(encode(tensor, before[key], kind).payload) for key, tensor in state.items()) / size
    return found


def _encoded(cells: Cells, kind: Kind) -> list[Encoded]:
    """Payloads of cells against what was there before."""
    return [encode(cell, base, kind) for cell, base in cells]


def _decoded(cells: Cells, encoded: list[Encoded]) -> list[Tensor]:
    """The cells that payloads hold."""
    return [decode(one.codec, one.payload, cell.dtype, cell.numel(), base) for one, (cell, base) in zip(encoded, cells)]


def speeds(before: State, after: State) -> dict[str, float | str]:
    """MB/s of one thread, over weights and moments of all gates and ups together."""
    names = [name for name in after if ".ffn.gate" in name or ".ffn.up" in name]
    kinds = [[name for name in names if part(name) == kind] for kind in ("weights", "first", "second")]
    cells = [(torch.cat([after[name] for name in some]), torch.cat([before[name] for name in some])) for some in kinds]
    ways: dict[str, Callable[[], object]] = {}
    for prefix, kind in (("", KINDS[0]), ("bounded_", KINDS[1])):
        encoded = _encoded(cells, kind)
        ways[f"{prefix}encode"] = partial(_encoded, cells, kind)
        ways[f"{prefix}decode"] = partial(_decoded, cells, encoded)
    ways["zstd"] = lambda: [squeezed(cell) for cell, _ in cells]
    seconds, size = take_turns(ways, TURNS, clock=time.thread_time), sum(cell.nbytes for cell, _ in cells)
    return {f"{name}_mb_s": size / 1e6 / statistics.median(times) for name, times in seconds.items()}


def part(name: str) -> str:
    """Which part of the state a tensor is of."""
    return "second" if name.endswith("exp_avg_sq") else "first" if name.endswith("exp_avg") else "weights" if name.startswith("model.") else "other"


def distance(state: State, other: State) -> float:
    """Sum of squares of what the weights differ by."""
    return sum(float((state[name] - other[name]).square().sum()) for name in state if part(name) == "weights")


def squeezed(numbers: Tensor | np.ndarray) -> int:
    """Bytes that zstandard makes of them."""
    data = numbers.contiguous().view(-1).view(torch.uint8).numpy() if isinstance(numbers, Tensor) else numbers
    return len(zstandard.ZstdCompressor(3).compress(data.tobytes()))


def planes(tensor: Tensor) -> np.ndarray:
    """Bytes of one significance side by side."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().reshape(-1, tensor.element_size()).T


def difference(tensor: Tensor, base: Tensor) -> Tensor:
    """Differences of places among the floats, folded."""
    if tensor.dtype != torch.float32:
        return tensor
    places = [words ^ ((words >> 31) & 0x7FFFFFFF) for words in (tensor.view(torch.int32), base.view(torch.int32))]
    change = places[0] - places[1]
    return (change << 1) ^ (change >> 31)
