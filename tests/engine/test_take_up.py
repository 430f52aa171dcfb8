"""Which state the members of a new generation go on with: the newest that is whole among them, and never parts of two."""

import json
from types import SimpleNamespace

import torch

from penstock.engine.state import Progress
from penstock.engine.survive.take_up import Held, choose
from penstock.engine.survive.wire import Status
from penstock.engine.transition import StateMap
from penstock.parallel import Copy, Layout, Placement, Split

CUT = StateMap(Layout(shard=2), {"a": Placement((4,), (Split(0, ("shard",)),)), "b": Placement((2,))})
OTHERWISE = StateMap(Layout(shard=2), {"a": Placement((4,), (Split(0, ("shard",), 4),)), "b": Placement((2,))})


def held(step, rank, where=CUT, era=0, **kept):
    tensors = {rank: {"a": torch.zeros(2), "b": torch.zeros(2)}} | {int(name[1:]): {"a": torch.zeros(2)} for name in kept}
    return Held(era, rank, where, Progress(step=step), tensors)


def chosen(*members):
    """What the first member chooses; each is the states of one."""
    told = json.dumps(members[-1][0].where.as_dict()) if members[-1] else ""
    world = SimpleNamespace(rank=0, share=lambda text, source: text or told)
    statuses = [Status.from_json(json.dumps({"offers": [vars(one.offer) for one in states], "recoveries": [], "peak": 0.0})) for states in members]
    return choose(world, statuses, members[0])


def test_the_newest_state_counts_that_is_whole():
    found = chosen([held(5, 0), held(4, 0, _1=True)], [held(4, 1)])
    assert found.progress.step == 4 and found.sources == {0: (0,), 1: (1,)} and found.copies == (Copy(1, 0, frozenset("a")),)
    assert chosen([held(5, 0)], [held(5, 1)]).progress.step == 5
    assert chosen([held(5, 0), held(3, 0)], [held(3, 1)]).progress.step == 3, "parts of two steps are no state"


def test_a_shard_that_nobody_has_leaves_nothing_to_choose():
    assert chosen([held(5, 0)], []) is None and chosen([]) is None
    assert chosen([held(5, 0, _1=True)], []).copies, "unless a peer keeps it"


def test_parts_that_lie_otherwise_or_are_of_other_generations_are_not_mixed():
    assert chosen([held(5, 0)], [held(5, 1, where=OTHERWISE)]) is None
    assert chosen([held(5, 0)], [held(5, 1, era=1)]) is None
    both = chosen([held(5, 0), held(5, 0, era=1)], [held(5, 1, era=1)])
    assert both.progress.step == 5 and both.held, "who has gone ahead has the old one and the new"
