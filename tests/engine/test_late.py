"""Steps that are updated before they are checked end where the barrier ends, whether they count, are clipped, or are taken back."""

import pytest
from ranks import run_ranks

from lab.models_to_verify import small_question
from penstock.engine import StopRequest, build_core, next_result
from penstock.engine.step import NonFinite
from penstock.lab.equivalence import RandomPlan

STEPS = 8


def losses(world, config):
    """Losses and norms of some steps, how many were taken back, and the sum of all this rank holds at the end."""
    core = build_core(config, world, RandomPlan(config), StopRequest(supervised=True), print)
    results = [next_result(core, step, step in (4, STEPS - 1)) for step in range(STEPS)]
    held = sum(tensor.double().abs().sum().item() for tensor in core.tensors().values())
    return [value for r in results for value in (r.loss, r.grad_norm)], core.late.taken_back if core.late else 0, held


def several(world, configs):
    """`losses` of one config after the other."""
    return [losses(world, config) for config in configs]


@pytest.mark.slow
def test_late_checks_give_the_results_of_the_barrier_bit_for_bit_and_take_back_what_should_have_been_clipped():
    settings = {"layout__pipeline": 2, "pipeline__schedule": "zb-h1", "batch__micro": 4, "optim__schedule": "constant", "optim__warmup": 0, "train__steps": STEPS}
    norms = run_ranks(losses, 2, small_question(False, optim__clip=0.0, **settings))[0][0][1::2]
    middle = max(norms[1:]) * 0.999  # some step is just above it, and those before are well below only sometimes
    limits = [0.0, 2 * max(norms), middle, 0.5 * min(norms)]
    configs = [small_question(False, pipeline__check=check, optim__clip=limit, **settings) for limit in limits for check in ("before", "after")]
    both = run_ranks(several, 2, configs)
    for answers in both:
        for limit, before, after in zip(limits, answers[::2], answers[1::2]):
            assert after[0] == pytest.approx(before[0], rel=1e-12), limit
            assert after[2] == pytest.approx(before[2], rel=1e-12), limit
            assert limit or (after[0], after[2]) == (before[0], before[2]), "nothing is clipped, so not a bit may differ"


def taken_back(world, config):
    """A run whose third step's gradient is far larger than the one before."""
    core = build_core(config, world, RandomPlan(config), StopRequest(supervised=True), print)
    real = type(core).nominal_weight
    core.step_now = -1
    type(core).nominal_weight = property(lambda core: real.fget(core) * (50.0 if core.step_now == 2 else 1.0))
    fetch = core.plan.sample_ids

    def sample_ids(step):
        core.step_now = step
        return fetch(step)

    core.plan.sample_ids = sample_ids
    try:
        results = [next_result(core, step, step == 4).grad_norm for step in range(5)]
    finally:
        type(core).nominal_weight = real
    held = sum(tensor.double().abs().sum().item() for tensor in core.tensors().values())
    return results, core.late.taken_back if core.late else 0, held


@pytest.mark.slow
def test_a_step_that_should_have_been_clipped_is_taken_back_exactly():
    settings = {"layout__pipeline": 2, "pipeline__schedule": "1f1b", "batch__micro": 4, "optim__warmup": 0, "optim__clip": 5.0, "optim__kind": "adamw"}
    before, after = (run_ranks(taken_back, 2, small_question(False, pipeline__check=check, **settings)) for check in ("before", "after"))
    for one, other in zip(before, after):
        assert other[0] == pytest.approx(one[0], rel=1e-12) and other[2] == pytest.approx(one[2], rel=1e-12)
        assert other[0][2] > 5.0 and (one[1], other[1]) == (0, 1)


def bad(world, config):
    """What a run says whose fourth step has no finite loss."""
    plan = RandomPlan(config)
    core = build_core(config, world, plan, StopRequest(supervised=True), print)
    real, steps = core.pipeline.train, []

    def train(batches, weight):
        steps.append(0)
        return real(batches, float("nan") if len(steps) > 3 else weight)

    core.pipeline.train = train
    done = 0
    try:
        for step in range(6):
            next_result(core, step, step == 5)
            done += 1
    except NonFinite as error:
        return done, str(error)
    return done, "no error"


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_after_the_last_good_step():
    settings = {"layout__pipeline": 2, "pipeline__schedule": "1f1b", "batch__micro": 4, "optim__clip": 100.0}
    for done, said in run_ranks(bad, 2, small_question(False, pipeline__check="after", **settings)):
        assert done == 3 and "step 3" in said and "nan" in said
