"""Silent corruption: one flipped bit of a replica is found, with its rank and tensor; a run goes on without that rank, to the same weights."""

from types import SimpleNamespace

import pytest
import torch
from ranks import run_ranks
from test_elastic import Trains

from lab.models_to_verify import small_question
from penstock.config import SharedError, with_values
from penstock.engine import StopRequest, build_core
from penstock.engine.guard.drift import FINE, ODD, UNDECIDED, Corrupt, bit_sum, compare_replicas, verdict_of
from penstock.engine.step import take_step
from penstock.lab.equivalence import RandomPlan
from penstock.store import read_history

CORRUPT = """
import os
from penstock.engine import step
undisturbed_update = step.update

def update(parts, factor, at):
    undisturbed_update(parts, factor, at)
    if at == 7 and os.environ.get("RANK") == "1" and "CORRUPT" in os.environ:
        try:
            os.close(os.open(os.environ["STRUCK"] + "bit", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        name = next(name for name in parts.weights.locals if "norm" in name)
        parts.weights.locals[name].data.view(-1)[0] *= 1 + 2.0**-52

step.update = update
"""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_any_flipped_bit_changes_the_sum(dtype):
    values = torch.randint(-(1 << 30), 1 << 30, (64,)).to(dtype)
    words = values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])
    before = bit_sum(values).item()
    for bit in range(8 * values.element_size()):
        mask = torch.tensor(1 << bit if bit < 8 * values.element_size() - 1 else -(1 << bit)).to(words.dtype)
        words[bit % 64] ^= mask
        assert bit_sum(values).item() != before
        words[bit % 64] ^= mask


def test_the_majority_is_right_and_two_cannot_say():
    assert verdict_of([5, 5, 5], 5) == FINE == verdict_of([5], 5) == verdict_of([5, 5, 4], 5)
    assert verdict_of([5, 5, 4], 4) == ODD
    assert verdict_of([5, 4], 5) == UNDECIDED == verdict_of([5, 5, 4, 4], 4)


def told(world, config, flipped):
    """What a rank is told after a step, whole or with a bit of its own flipped."""
    core = build_core(config, world, RandomPlan(config), StopRequest(supervised=True), print)
    take_step(core, 0)
    if world.rank == flipped:
        name = next(name for name, local in core.weights.locals.items() if "norm" in name and local.numel())
        core.weights.locals[name].data.view(-1).view(torch.int64)[0] ^= 1
    parts = SimpleNamespace(
        config=config, progress=SimpleNamespace(step=4), world=world, timer=core.timer, mesh=core.mesh, tensors=core.tensors, layout=core.layout,
        placements=core.placements, run=SimpleNamespace(path="runs/one"),
    )  # fmt: skip
    try:
        compare_replicas(parts)
    except (Corrupt, SharedError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "experts", "layout", "accused"),
    [
        (2, False, {}, "all"),
        (3, False, {}, "one"),
        (4, False, {"layout.shard": 2}, "one"),  # norms are whole on every rank
        (4, True, {"layout.expert": 2, "layout.tensor": 2}, "one"),
        (4, False, {"exchange.kind": "powersgd", "exchange.topology": "2x2"}, "one"),
        (4, False, {"exchange.kind": "topk", "exchange.density": 0.1, "exchange.topology": "2x2"}, "one"),
        (4, False, {"exchange.kind": "periodic", "exchange.every": 2, "exchange.topology": "2x2"}, "all"),  # nodes differ, their ranks do not
        (2, False, {"layout.pipeline": 2, "batch.micro": 6}, "nobody"),
    ],
)
def test_whole_replicas_are_never_accused_and_one_with_a_flipped_bit_is(ranks, experts, layout, accused):
    config = with_values(small_question(experts), {"survive.compare": 4, **layout})
    assert run_ranks(told, ranks, config, None) == [""] * ranks
    found = run_ranks(told, ranks, config, 1)
    if accused == "one":
        assert [bool(one) for one in found] == [rank == 1 for rank in range(ranks)]
        assert "Corrupt: after step 4 this rank holds other bits than its replicas (first in" in found[1] and "norm" in found[1]
    elif accused == "all":
        assert all("SharedError: after step 4 replicas of the state on ranks 0, 1 hold" in one and "penstock resume runs/one" in one for one in found)
    else:
        assert found == [""] * ranks


@pytest.mark.slow
def test_a_run_goes_on_without_a_rank_whose_memory_lies(tmp_path, monkeypatch):
    trains = Trains(tmp_path)
    planted = tmp_path / "plant" / "planted.py"
    planted.write_text(planted.read_text() + CORRUPT)
    whole, _ = trains.whole("whole", 3)
    monkeypatch.setenv("CORRUPT", "1")
    healed, run = trains.whole("healed", 3, survive__compare=2)
    assert healed["weights_digest"] == whole["weights_digest"]
    (recovery,) = [event.text for event in read_history(run).events if event.kind == "recovery"]
    assert "rank 1" in recovery and "other bits than its replicas" in recovery and "from the state in memory" in recovery
