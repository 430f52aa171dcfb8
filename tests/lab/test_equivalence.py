"""The equivalence matrix: every layout against one plain process, and planted faults that it must find."""

import random
import re
from dataclasses import replace
from functools import partial

import pytest
from ranks import run_ranks

from lab.models_to_verify import small_question
from penstock.lab import AXES, Case, check, layout_cases
from penstock.lab.faults import FAULTS

#: How many cases of several axes are drawn, of so many ranks; of other numbers all are checked. `penstock verify` checks all.
DRAWN = {(2, False): 0, (4, False): 3, (4, True): 4, (6, False): 1, (6, True): 1, (8, False): 2, (8, True): 2}


def verdicts(world, config, cases):
    """Results of the cases."""
    plain = {}
    return [check(world, config, case, plain) for case in cases]


def failures(results):
    """What differs. (Only the lead judges; it is first.)"""
    return [f"{r.name} with {r.settings}: {r.verdict} {r.why}" for r in results if r.verdict not in ("equal", "refused")]


def cases_of(ranks, experts):
    """All cases of so many ranks, or those of one axis and a few drawn ones of several."""
    cases = [case for case in layout_cases(8, experts) if case.ranks == ranks and not (experts and alone(case))]
    single = [case for case in cases if "," not in case.name]
    several = [case for case in cases if case not in single]
    return thrifty(single + random.Random(ranks + experts).sample(several, DRAWN.get((ranks, experts), len(several))))


def alone(case):
    """Whether it is of the cases of two ranks that the fast tests check: one axis, and pipelines of one kind only."""
    return case.ranks == 2 and "," not in case.name and ("pipeline" not in case.name or "zb-v" in case.name)


def thrifty(cases):
    """The cases with a batch of as few sequences as leave each rank two micro-batches, or four of a pipeline and one for each stage."""
    return [replace(case, settings=case.settings | {"batch.global": min(filter(partial(enough, case), (12, 16, 24)), default=24)}) for case in cases]


def enough(case, sequences):
    """Whether a batch of so many sequences does for a case."""
    stages, tensor = (case.settings.get(f"layout.{axis}", 1) for axis in ("pipeline", "tensor"))
    together = case.ranks // stages // tensor * case.settings.get("batch.micro", 1)
    return sequences % together == 0 and sequences // together >= (max(4, stages) if stages > 1 else 2)


@pytest.mark.slow
@pytest.mark.parametrize("experts", [False, True], ids=["dense", "experts"])
@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 8])
def test_every_layout_equals_one_plain_process(ranks, experts):
    config = small_question(experts, train__steps=6 if ranks == 3 else 3)
    results = run_ranks(verdicts, ranks, config, cases_of(ranks, experts), timeout_s=400)[0]
    assert not failures(results)
    assert any(r.verdict == "equal" for r in results)


@pytest.mark.slow
def test_axes_alone_equal_one_plain_process():
    results = run_ranks(verdicts, 2, small_question(True, train__steps=3), thrifty(filter(alone, layout_cases(2, True))))[0]
    assert not failures(results) and sum(r.verdict == "equal" for r in results) >= 8


#: Switches of model and training that must go with every axis, beside the set-ups of `layout_cases`; several at a time, as each would show.
SWITCHES = {
    "sliding window, one key-value head, averaged weights, stretched rope, softmax router and decay": {
        "model.sliding_window": 7, "model.kv_heads": 1, "model.qk_norm": True, "optim.ema": 0.9, "model.rope_scaling.factor": 4.0, "model.rope_scaling.original_context": 16, "optim.schedule": "wsd", "optim.decay": 0.5,
        "model.moe.scoring": "softmax", "model.moe.normalise": False, "model.moe.shared": 0, "model.moe.scale": 2.5,
    },
    "packing and muon": {"data.document_mask": True, "optim.kind": "muon", "batch.micro": 3},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_switch_goes_with_every_axis(ranks):
    alone = [case for case in layout_cases(4, True) if case.ranks == ranks and ("," not in case.name or "expert 2" in case.name)]
    alone = [case for case in alone if "pipeline" not in case.name or case.name == "pipeline 2 zb-v"]  # kinds differ in order only
    cases = [
        Case(f"{case.name} with {name}", ranks, layout_of(case) | switch)
        for case in (alone if ranks == 2 else [case for case in alone if "tensor 2x2" in case.name])
        for name, switch in SWITCHES.items()
    ]
    results = run_ranks(verdicts, ranks, small_question(True, train__steps=2), thrifty(cases), timeout_s=400)[0]
    assert not failures(results) and sum(r.verdict == "equal" for r in results) >= 0.75 * len(results)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "half"), [("float32", 0), ("bfloat16", 1)])
def test_coarse_formats_differ_by_the_error_of_reordering(precision, half):
    """Half of the cases of several axes, each in one of the formats."""
    cases = [case for case in layout_cases(4, False) if case.ranks == 4 and "," in case.name]
    cases = [case for case in cases if "pipeline" not in case.name or "zb-v," in case.name][half::4]  # kinds differ in order only
    results = run_ranks(verdicts, 4, small_question(False, precision__compute=precision, train__steps=3), thrifty(cases), timeout_s=300)[0]
    assert not failures(results)


#: A case in which each fault must show.
SHOWN_BY = {
    "a missing reduction": "tensor 2x2 2d",
    "the gradient of a gather not summed": "shard 2 zero 3, tensor 2 1d",
    "a wrong divisor": "replicate 2, tensor 2 1d",
    "a mean of means over uneven shares": "replicate 2 measured shares, tensor 2 1d",
    "replicas of one axis forgotten": "replicate 2, tensor 2 1d",
    "a norm counted twice": "tensor 2x2 2d",
    "a replicated weight updated on some ranks only": "context 2, expert 2, tensor 2 1d",
    "an unsynchronised balancing bias": "context 2, expert 2, tensor 2 1d",
    "positions that begin anew on every rank": "shard 2 zero 3, context 2",
    "a softmax over the own vocabulary only": "tensor 2x2x1 2.5d",
    "tokens in another order after their experts": "context 2, expert 2, tensor 2 1d",
    "gradients averaged over the shard axis": "shard 2 zero 3, tensor 2 1d",
    "ranks that read the same data": "replicate 2, tensor 2 1d",
    "documents of the own part only": "shard 2 zero 3, context 2",
    "gradients left for later and forgotten": "pipeline 2 zb-h1, replicate 2",
    "the two ends of a tied embedding apart": "pipeline 2 zb-h1, replicate 2",
}


def layout_of(case):
    """The settings of a case that make its layout, with the layers and micro-batches that its pipeline needs."""
    piped = ("pipeline.", "model.layers", "batch.micro") if "pipeline" in case.name else ()
    return {key: value for key, value in case.settings.items() if key.startswith(("layout.", "balance.", *piped))}


def with_and_without(world, config, cases):
    """Faults under which their case does not differ, and the cases' results without any fault."""
    plain, missed = {}, []
    healthy = [check(world, config, case, plain) for case in cases.values()]
    for fault, name in SHOWN_BY.items():
        with FAULTS[fault](world):
            missed += [fault] if not failures([check(world, config, cases[name], plain)]) else []
    return missed, healthy


@pytest.mark.slow
def test_the_matrix_finds_every_planted_fault():
    """Ten and more ways in which parallel training goes silently wrong; none gets by, and without them all is equal."""
    assert len(FAULTS) >= 10 and SHOWN_BY.keys() == FAULTS.keys()
    cases = {
        c.name: Case(c.name, c.ranks, layout_of(c) | {"data.document_mask": "context" in c.name, "model.tie_embeddings": "pipeline" in c.name})
        for c in layout_cases(4, True)
        if c.name in SHOWN_BY.values()
    }
    missed, healthy = run_ranks(with_and_without, 4, small_question(True, train__steps=2), cases, timeout_s=400)[0]
    assert not missed
    assert all(result.verdict == "equal" for result in healthy), failures(healthy)


def test_any_two_axes_together_are_in_the_table_or_refused_by_name():
    for experts in (True, False):
        named = [{key.removeprefix("layout.") for key in case.settings if key.startswith("layout.")} for case in layout_cases(8, experts)]
        axes = ["replicate", "shard", "context", "tensor", *(["expert"] if experts else [])]
        for i, one in enumerate(axes):
            for other in axes[i + 1 :]:
                assert any({one, other} <= names for names in named), f"{one} with {other}"
        for topology in ("tensor 2d", "tensor 2.5d"):
            assert any(case.settings.get("layout.tensor_topology") == topology.split()[1] and "," in case.name for case in layout_cases(8, experts))
    assert len(layout_cases(8, False)) >= 60 and set(AXES) >= {"replicate", "shard", "context", "tensor", "expert"}


def test_a_layout_that_cannot_be_is_refused_in_one_sentence():
    config = small_question(False)
    case = Case("context 2", 2, {"layout.context": 2, "model.context": 26})
    result = run_ranks(verdicts, 2, config, [case])[0][0]
    assert result.verdict == "refused" and re.search(r"model\.context = 26 .*layout\.context", result.why)
