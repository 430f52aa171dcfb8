"""The equivalence matrix: every layout against one plain process, and planted faults that it must find."""

import contextlib
import random
import re

import pytest
from lab.models_to_verify import small_question
from ranks import run_ranks

from penstock.lab import AXES, Case, check, layout_cases
from penstock.lab.faults import FAULTS

DRAWN = 14


def verdicts(world, config, cases, fault=None):
    """Check the cases; under a fault stop at the first that shows it."""
    plain, found = {}, []
    with FAULTS[fault](world) if fault else contextlib.nullcontext():
        for case in cases:
            found.append(check(world, config, case, plain))
            if fault and world.any(found[-1].verdict == "differs", "test"):
                break
    return found


def failures(results):
    return [f"{r.name} with {r.settings}: {r.verdict} {r.why}" for r in results if r.verdict not in ("equal", "refused")]


def cases_of(ranks, experts):
    """All cases of so many ranks; of eight, a few drawn ones beside those of one axis."""
    cases = [case for case in layout_cases(8, experts) if case.ranks == ranks]
    if ranks < 6:
        return cases
    single = [case for case in cases if "," not in case.name]
    return single + random.Random(ranks + experts).sample([case for case in cases if case not in single], DRAWN)


@pytest.mark.slow
@pytest.mark.parametrize("experts", [False, True], ids=["dense", "experts"])
@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 8])
def test_every_layout_equals_one_plain_process(ranks, experts):
    config = small_question(experts, train__steps=20 if ranks < 6 else 6)
    results = run_ranks(verdicts, ranks, config, cases_of(ranks, experts), timeout_s=400)[0]
    assert not failures(results)
    assert any(r.verdict == "equal" for r in results)


def test_axes_alone_equal_one_plain_process():
    cases = [case for case in layout_cases(2, True) if case.ranks == 2]
    results = run_ranks(verdicts, 2, small_question(True, train__steps=3), cases)[0]
    assert not failures(results) and sum(r.verdict == "equal" for r in results) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_coarse_formats_differ_by_the_error_of_reordering(precision):
    cases = [case for case in layout_cases(4, False) if case.ranks == 4 and "," in case.name]
    results = run_ranks(verdicts, 4, small_question(False, precision__compute=precision, train__steps=3), cases, timeout_s=300)[0]
    assert not failures(results)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_matrix_finds_a_planted_fault(fault):
    """Ten and more ways in which parallel training goes silently wrong; none gets by."""
    config = small_question(True, train__steps=4)
    names = {
        "replicate 2, tensor 2 1d", "shard 2 zero 3, context 2", "tensor 2x2 2d", "tensor 2x2x1 2.5d", "replicate 2, expert 2, tensor 2 1d",
        "context 2, expert 2, tensor 2 1d", "shard 2 zero 3, tensor 2 1d",
    }  # fmt: skip
    cases = [Case(c.name, c.ranks, c.settings | {"data.document_mask": True}) for c in layout_cases(4, True) if c.name in names]
    results = run_ranks(verdicts, 4, config, cases, fault, timeout_s=300)[0]
    assert failures(results), f"{fault} was not noticed in {[r.name for r in results]}"


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
