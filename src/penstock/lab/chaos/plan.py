"""Which faults strike when: a pure function of the seed and of a few facts of the run, so that a seed reproduces it.

Kinds take turns in a shuffled order, so each comes equally often. A run has room for one fault every `GAP` steps, by which it has recovered from the
one before and knows again how long a step usually takes; more faults than that go to further runs. Steps, phases and ranks are
exact; the seconds after a phase's begin at which some strike are drawn too, but what a rank does in them is the machine's affair.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from penstock.config import Config, UserError, nearest
from penstock.lab.chaos.kinds import KINDS, Kind

#: The first step at which a fault may strike, steps between two of them, and steps at the end that are left alone.
FIRST, GAP, LAST = 4, 6, 2
#: Steps that a snapshot has to come to the disk. One more must be due than is needed: a fault may cut one off.
WRITTEN = 3
#: Phases of a recovery: survivors that leave the broken groups, and members that take up the state.
RECOVERY = ("broken", "start")
#: Stands for the rank that takes a lost one's place; and for no rank.
NEWCOMER, NOBODY = -1, -2


@dataclass(frozen=True)
class Fault:
    """One fault: it strikes rank `rank` (of as many as there are then) in the `turn`-th beginning of `phase` after `step` steps.

    `other`: a second rank, which is struck at the same time, or, where `then` names a phase of the recovery, in that (`NEWCOMER`: whoever takes the
    first one's place). `choice` is for acts with variants.
    """

    number: int
    kind: str
    step: int
    phase: str
    rank: int
    turn: int = 0
    delay_s: float = 0.0
    other: int = NOBODY
    then: str = ""
    then_delay_s: float = 0.0
    choice: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """The faults of each run, and the kinds that cannot be planted here, each with the reason."""

    runs: tuple[tuple[Fault, ...], ...]
    skipped: dict[str, str]


def make_plan(config: Config, ranks: int, faults: int, seed: int, kinds: Sequence[str]) -> Plan:
    """So many faults of `kinds` (none: all) for runs of `config` on `ranks`; raises `UserError` for a kind or a number that will not do."""
    for name in kinds:
        if name not in KINDS:
            raise UserError(f"--kinds {name}: there is no such kind of fault{nearest(name, KINDS)}; there are {', '.join(KINDS)}")
    if faults < 1:
        raise UserError(f"--faults {faults}: plant at least one")
    draw = random.Random(seed)
    skipped = {name: why for name in kinds or KINDS if (why := impossible(KINDS[name], config, ranks))}
    able = [name for name in kinds or KINDS if name not in skipped]
    if not able:
        raise UserError(f"none of these faults can be planted in this run: {'; '.join(f'{name}: {why}' for name, why in skipped.items())}")
    turns = _in_turn(able, draw)
    queue, runs, number = [next(turns) for _ in range(faults)], [], 1
    while queue:
        placed = _fill(queue, config, ranks, draw, number)
        if not placed:
            raise UserError(f"train.steps = {config.train.steps} leaves no step at which {queue[0]} could strike; train for more steps")
        runs.append(tuple(placed))
        number += len(placed)
    return Plan(tuple(runs), skipped)


def impossible(kind: Kind, config: Config, ranks: int) -> str:
    """Why a kind of fault cannot be planted in runs of `config` on `ranks`; empty if it can."""
    first = _first(kind, config)
    if kind.every and not _every(kind, config):
        return f"{kind.every} = 0"
    if kind.snapshots and not config.snapshot.every:
        return "snapshot.every = 0: there is nothing to go on from"
    if first + LAST > config.train.steps:
        return f"it needs step {first}, and train.steps = {config.train.steps}"
    if kind.snapshots > config.snapshot.keep > 0:
        return f"it needs {kind.snapshots} snapshots, and snapshot.keep = {config.snapshot.keep}"
    if kind.act in ("stop", "stick") and not config.survive.patience_s:
        return "survive.patience_s = 0: hangs are not looked for"
    if config.survive.replace == "none" and kind.loses >= ranks:
        return f"survive.replace = 'none', and {ranks} ranks are too few to lose {kind.loses}"
    return ""


def _in_turn(kinds: list[str], draw: random.Random) -> Iterator[str]:
    while True:
        yield from draw.sample(kinds, len(kinds))


def _fill(queue: list[str], config: Config, ranks: int, draw: random.Random, number: int) -> list[Fault]:
    """Take kinds from the queue for one run, spread over its steps."""
    last = config.train.steps - LAST
    room = max(1, (last - FIRST) // GAP)
    spacing = (last - FIRST) / min(room, len(queue))
    placed: list[Fault] = []
    lose, at = ranks - 1 if config.survive.replace == "none" else len(queue) * ranks, FIRST
    for slot in range(min(room, len(queue))):
        earliest = max(at, FIRST + round(slot * spacing + draw.uniform(0, max(0.0, spacing - GAP))))
        for place, name in enumerate(queue):
            step = _step(KINDS[name], config, earliest)
            if step <= min(last, earliest + max(spacing, _every(KINDS[name], config))) and KINDS[name].loses <= lose:
                queue.pop(place)
                lose -= KINDS[name].loses
                placed.append(_fault(number + len(placed), name, step, ranks, config.survive.replace != "none", draw))
                at = step + GAP
                break
    return placed


def _fault(number: int, name: str, step: int, ranks: int, replaced: bool, draw: random.Random) -> Fault:
    kind, others = KINDS[name], [NOBODY]
    phase, rank = draw.choice(kind.phases), 0 if name == "kill-lead" else draw.randrange(ranks)
    then = draw.choice(RECOVERY) if name == "kill-in-recovery" else ""
    if kind.loses == 2:
        others = [other for other in range(ranks) if other != rank] + [NEWCOMER] * (replaced and then == "start")
    return Fault(
        number, name, step, phase, rank,
        turn=draw.randrange(2) if phase == "exchange" else 0,
        delay_s=round(draw.uniform(0, kind.delay_s), 4) * draw.randrange(2),
        other=draw.choice(others),
        then=then,
        then_delay_s=round(draw.uniform(0, 0.2), 4) * draw.randrange(2),
        choice=draw.randrange(3),
    )  # fmt: skip


def _step(kind: Kind, config: Config, earliest: int) -> int:
    """The first step from `earliest` on after which a fault of this kind can strike."""
    step, every = max(earliest, _first(kind, config)), _every(kind, config)
    return -(-step // every) * every if every else step


def _first(kind: Kind, config: Config) -> int:
    written = (kind.snapshots + 1) * config.snapshot.every + WRITTEN if kind.snapshots else 0
    return max(FIRST, written, _every(kind, config))


def _every(kind: Kind, config: Config) -> int:
    return {"snapshot.every": config.snapshot.every, "eval.every": config.eval.every, "": 0}[kind.every]
