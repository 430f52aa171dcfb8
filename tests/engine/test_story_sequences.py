"""Whatever happened to a run on the way (resumed, forked, collected, sent, exported and imported, on other ranks), its state is the plain run's."""

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranks import run_ranks
from small_runs import small_config

from penstock.config import UserError
from penstock.engine import resume_run, start_run
from penstock.engine.starting.start import make_run
from penstock.engine.starting.worker import run_rank
from penstock.engine.story.compare import compare_snapshots
from penstock.engine.story.foreign import export_state, import_state
from penstock.engine.story.fork import fork_run
from penstock.engine.story.replay import replay
from penstock.store import LocalFolder, Policy, Run, collect, find_snapshot, list_snapshots, transfer, verify_run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]
STEPS = 9


def config(folder, **changes):
    """A run whose rate does not depend on how many steps are planned."""
    return small_config(folder, optim__schedule="constant", snapshot__every=1, snapshot__keep=0, eval__every=0, **changes)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run that nothing happened to, with a snapshot of every step."""
    folder = tmp_path_factory.mktemp("plain")
    start_run(config(folder, train__steps=STEPS), "test", "test", 1, folder / "run", None)
    return folder


def newest(run):
    return list_snapshots(run.folder)[-1]


def sequences():
    return st.lists(st.sampled_from(["train", "train", "fork", "older", "gc", "send", "dcp", "safetensors"]), min_size=3, max_size=6)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequences(), st.data())
def test_a_state_is_what_it_would_be_if_nothing_had_happened(plain, sequence, data):
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(Path(scratch) / "0")
        start_run(config(plain, train__steps=2), "test", "test", 1, run.path, None)
        for number, action in enumerate(sequence, start=1):
            run = happens(run, action, Path(scratch) / str(number), lambda snapshots: data.draw(st.sampled_from(snapshots)))
            now = newest(run)
            assert compare_snapshots(find_snapshot(f"{plain / 'run'}@{now.step}"), now).diff.same_state, (sequence, number)
            assert not verify_run(run.folder).damage, (sequence, number)


def happens(run, action, target, choose):
    """Do something to a run; the run that it is then."""
    step = newest(run).step
    if action == "train" and step < STEPS:
        resume_run(run, {"train.steps": step + 1}, 1, None)
    elif action in ("fork", "older"):
        fork_run(newest(run) if action == "fork" else choose(list_snapshots(run.folder)), {"snapshot.keep": 3}, target, 1, False, "test", None)
        return Run(target)
    elif action == "gc":
        collect(run.path, Policy(keep=1))
    elif action == "send":
        transfer(run.folder, LocalFolder(target))
        return Run(target)
    elif action in ("dcp", "safetensors"):
        export_state(newest(run), target.with_suffix(".out"), action)
        import_state(target.with_suffix(".out"), None, {}, target, False, "test", None)
        return Run(target)
    return run


def train_together(world, path):
    run_rank(Run(path), world)


@functools.cache
def two_ranks(folder):
    """A run of two ranks, sharded, 4 steps; gone on with on one rank to step 6."""
    run = make_run(config(folder, train__steps=4, layout__shard=2, data__path=folder / "corpus"), "test", "test", folder / "two", None)
    run_ranks(train_together, 2, run.path)
    resume_run(run, {"train.steps": 6, "layout.shard": 1}, 1, None)
    return run


def test_a_run_that_changed_its_ranks_is_replayed_leg_by_leg_on_as_many(plain):
    run = two_ranks(plain)
    told = replay(find_snapshot(f"{run.path}@3"), newest(run))
    assert told.equal, told.text()
    assert [(leg.first, leg.last, leg.ranks, leg.config.layout.shard) for leg in told.legs] == [(3, 4, 2, 2), (4, 6, 1, 1)]


def test_on_ranks_that_the_layout_does_not_divide_into_nothing_is_replayed(plain):
    run = two_ranks(plain)
    with pytest.raises(UserError, match=r"layout\.shard = 2.* does not divide the number of ranks started, 1"):
        replay(find_snapshot(f"{run.path}@2"), find_snapshot(f"{run.path}@4"), nproc=1)
