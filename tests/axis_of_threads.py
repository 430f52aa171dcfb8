"""Ranks as threads of this process: the same code as on real ones, in a fraction of the time, with what travelled to look at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


class Exchange:
    """What the threads share: a place where all meet, what each sends, and the bytes of every message by (round, from, to)."""

    def __init__(self, ranks: int) -> None:
        self.meeting = threading.Barrier(ranks, timeout=30)
        self.messages: list[tuple[Tensor, ...]] = [()] * ranks
        self.rounds: list[list[list[int]]] = []


class AxisOfThreads:
    """The axis of all ranks, as far as what moves states uses it. It is cut in round number `cut`."""

    def __init__(self, exchange: Exchange, index: int, size: int, nodes: Sequence[int] = (), cut: int = -1) -> None:
        self.index, self.size, self.nodes = index, size, tuple(nodes)
        self._exchange, self._cut = exchange, cut

    def all_to_all(self, rows: Tensor, send: Sequence[int], receive: Sequence[int], purpose: str) -> Tensor:
        """As `Axis.all_to_all`."""
        assert len(rows) == sum(send)
        shared = self._exchange
        if len(shared.rounds) == self._cut:
            raise ConnectionError("cut")
        shared.messages[self.index] = rows.split(list(send))
        if shared.meeting.wait() == 0:
            shared.rounds.append([[len(part) for part in message] for message in shared.messages])
        shared.meeting.wait()
        came = [message[self.index] for message in shared.messages]
        assert [len(part) for part in came] == list(receive)
        joined = torch.cat(came)
        shared.meeting.wait()
        return joined


def on_threads(func: Callable[[Any], Any], ranks: int, nodes: Sequence[int] = (), cut: int = -1) -> tuple[list[Any], list[list[list[int]]]]:
    """Run `func(axis)` on every rank; its answers, and the bytes sent in every round from and to each rank."""
    exchange = Exchange(ranks)
    with ThreadPoolExecutor(ranks) as pool:
        running = [pool.submit(func, AxisOfThreads(exchange, rank, ranks, nodes, cut)) for rank in range(ranks)]
        return [one.result() for one in running], exchange.rounds
