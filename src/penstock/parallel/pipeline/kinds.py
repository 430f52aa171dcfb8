"""The named kinds of schedule, as their papers publish them: blind to costs, each from a rule that a rank follows by itself.

    gpipe            all forwards, then all backwards                               Huang et al., arXiv 1811.06965
    1f1b             a backward as soon as there is one                             Narayanan et al., arXiv 1806.03377
    interleaved      1F1B over several chunks a rank, in rounds of micro-batches    Narayanan et al., arXiv 2104.04473
    zb-h1            1F1B with its weight gradients put off                         Qi et al., arXiv 2401.10241
    interleaved-zb   the same over several chunks                                   Qi et al., arXiv 2401.10241
    zb-v             two chunks in a V: no bubble but the step's for equal times    Qi et al., arXiv 2401.10241, section 6
    v-half, v-min    a V with half and a third of 1F1B's memory (vshape.py)         Qi et al., arXiv 2405.15362
    dualpipe-v       a V that pairs forwards with backwards (vshape.py)             DeepSeek-AI, arXiv 2412.19437, cut in half

What they hold and idle, `docs/pipelines.md` tells. Where measured times are at hand, a synthesised schedule is never worse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from penstock.config import nearest
from penstock.parallel.pipeline.check import ScheduleError
from penstock.parallel.pipeline.schedule import Action, Schedule, Wiring, wire
from penstock.parallel.pipeline.vshape import dualpipe_v_row, v_half_rows, v_min_rows, zb_v_row

Row = list[Action]
Rows = Callable[[int, int, int], list[Row]]


@dataclass(frozen=True)
class Kind:
    """A named kind: how its stages are wired, how many a rank holds, and `rows(ranks, micro_batches, chunks)`, which makes it.

    `chunks` is the default, `most_chunks` the most it can take (0: any number from `chunks` on); `least(ranks)` the fewest micro-batches it can take,
    of which any larger number will do.
    """

    name: str
    wiring: Wiring
    chunks: int
    most_chunks: int
    rows: Rows
    least: Callable[[int], int] = lambda ranks: 1


def named_schedule(kind: str, ranks: int, micro_batches: int, chunks: int = 0) -> Schedule:
    """The schedule of a named kind (a key of `KINDS`); `chunks` 0 is the kind's default.

    Raises `ScheduleError` for an unknown kind, and for numbers the kind cannot take, saying which it can.
    """
    if kind not in KINDS:
        raise ScheduleError(f"there is no kind of schedule '{kind}', only {', '.join(KINDS)}{nearest(kind, KINDS)}")
    made = KINDS[kind]
    chunks = chunks or made.chunks
    if ranks < 1 or micro_batches < 1:
        raise ScheduleError(f"a schedule needs at least one rank and one micro-batch, not {ranks} and {micro_batches}")
    if chunks < made.chunks or (made.most_chunks and chunks > made.most_chunks):
        allowed = f"{made.chunks}" if made.chunks == made.most_chunks else f"{made.chunks} or more"
        raise ScheduleError(f"{kind} takes {allowed} chunk{'s' * (allowed != '1')} a rank, not {chunks}")
    if micro_batches < made.least(ranks):
        raise ScheduleError(f"{kind} over {ranks} ranks takes {made.least(ranks)} micro-batches or more, not {micro_batches}")
    rows = made.rows(ranks, micro_batches, chunks)
    return Schedule(kind, wire(ranks, chunks, made.wiring), micro_batches, tuple(tuple(row) for row in rows))


def candidates(ranks: int, micro_batches: int, chunks: int) -> list[Schedule]:
    """The schedule of every kind that can take so many micro-batches and chunks a rank."""
    fitting = (k for k in KINDS.values() if k.chunks <= chunks <= (k.most_chunks or chunks) and micro_batches >= k.least(ranks))
    return [named_schedule(kind.name, ranks, micro_batches, chunks) for kind in fitting]


def _gpipe(ranks: int, micro_batches: int, chunks: int) -> list[Row]:
    micros = range(micro_batches)
    return [[Action("F", rank, m) for m in micros] + [Action("B", rank, m) for m in micros] for rank in range(ranks)]


def _one_f_one_b(ranks: int, micro_batches: int, chunks: int) -> list[Row]:
    """Rank r goes ahead by one forward for each rank after it; then forwards and backwards take turns."""
    return [_turns(_micros(micro_batches, rank), ranks - 1 - rank, None) for rank in range(ranks)]


def _zb_h1(ranks: int, micro_batches: int, chunks: int) -> list[Row]:
    """1F1B whose rank r does each weight gradient r backwards late, so that all ranks hold as much as the first."""
    return [_turns(_micros(micro_batches, rank), ranks - 1 - rank, rank) for rank in range(ranks)]


def _interleaved(ranks: int, micro_batches: int, chunks: int) -> list[Row]:
    """Rank r goes ahead by a round of all chunks but the last, and two forwards for each rank after it."""
    most = _rounds(ranks, micro_batches)[0]
    return [_turns(_looped(ranks, micro_batches, chunks, rank), (chunks - 1) * most + 2 * (ranks - 1 - rank), None) for rank in range(ranks)]


def _interleaved_zb(ranks: int, micro_batches: int, chunks: int) -> list[Row]:
    """As interleaved, with one forward for each rank after it and weight gradients r backwards late."""
    most = _rounds(ranks, micro_batches)[0]
    return [_turns(_looped(ranks, micro_batches, chunks, rank), (chunks - 1) * most + ranks - 1 - rank, rank) for rank in range(ranks)]


def _zb_v(ranks: int, micro_batches: int, chunks: int) -> list[Row]:
    return [zb_v_row(ranks, micro_batches, rank) for rank in range(ranks)]


def _dualpipe_v(ranks: int, micro_batches: int, chunks: int) -> list[Row]:
    return [dualpipe_v_row(ranks, micro_batches, rank) for rank in range(ranks)]


Orders = tuple[list[tuple[int, int]], list[tuple[int, int]]]


def _micros(micro_batches: int, stage: int) -> Orders:
    """The (stage, micro) of one stage, in the order of forwards and of backwards."""
    order = [(stage, micro) for micro in range(micro_batches)]
    return order, order


def _rounds(ranks: int, micro_batches: int) -> list[int]:
    """Micro-batches in rounds of about as many as there are ranks, the largest first: each chunk does a round before the next chunk begins."""
    rounds = max(1, micro_batches // ranks)
    return [micro_batches // rounds + (i < micro_batches % rounds) for i in range(rounds)]


def _looped(ranks: int, micro_batches: int, chunks: int, rank: int) -> Orders:
    """The (stage, micro) of a rank's chunks, round by round: chunks upwards in forwards, downwards in backwards."""
    forwards, backwards, first = [], [], 0
    for size in _rounds(ranks, micro_batches):
        round_ = range(first, first + size)
        forwards += [(chunk * ranks + rank, micro) for chunk in range(chunks) for micro in round_]
        backwards += [(chunk * ranks + rank, micro) for chunk in reversed(range(chunks)) for micro in round_]
        first += size
    return forwards, backwards


def _turns(orders: Orders, ahead: int, late: int | None) -> Row:
    """`ahead` forwards, then forwards and backwards in turn, then the backwards that are left; weight gradients `late` backwards late (None: B)."""
    forwards, backwards = orders
    ahead = min(ahead, len(forwards))
    row = [Action("F", *at) for at in forwards[:ahead]]
    for i, at in enumerate(backwards):
        if ahead + i < len(forwards):
            row.append(Action("F", *forwards[ahead + i]))
        row.append(Action("B" if late is None else "I", *at))
        if late is not None and i >= late:
            row.append(Action("W", *backwards[i - late]))
    if late:
        row += [Action("W", *at) for at in backwards[max(0, len(backwards) - late) :]]
    return row


def _at_least_twice(ranks: int) -> int:
    return 2 * ranks


#: All named kinds, in the order in which they are compared.
KINDS = {
    kind.name: kind
    for kind in (
        Kind("gpipe", "loop", 1, 1, _gpipe),
        Kind("1f1b", "loop", 1, 1, _one_f_one_b),
        Kind("interleaved", "loop", 2, 0, _interleaved),
        Kind("zb-h1", "loop", 1, 1, _zb_h1),
        Kind("interleaved-zb", "loop", 2, 0, _interleaved_zb),
        Kind("zb-v", "wave", 2, 2, _zb_v),
        Kind("v-half", "wave", 2, 2, v_half_rows),
        Kind("v-min", "wave", 2, 2, v_min_rows),
        Kind("dualpipe-v", "wave", 2, 2, _dualpipe_v, _at_least_twice),
    )
}
