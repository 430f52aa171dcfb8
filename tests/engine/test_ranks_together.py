"""Several ranks train one run: the same losses as one rank, and the same end when one of them meets a bad loss."""

import pytest
from ranks import run_ranks
from small_runs import small_config

from penstock.config import UserError
from penstock.engine.build import Parts
from penstock.engine.starting.start import make_run
from penstock.engine.starting.worker import run_rank
from penstock.monitor import MetricStore
from penstock.store import Run, list_snapshots


def losses(folder):
    return [row["loss"] for row in MetricStore(folder / "metrics").read("train")]


def train_together(world, folder):
    return run_rank(Run(folder), world)["weights_digest"]


def prepared(tmp_path, name, **changes):
    return make_run(small_config(tmp_path, **changes), "test", "test", tmp_path / name, None).path


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"data__document_mask": True, "optim__kind": "muon"}, {"model__moe__experts": 4, "layout__bucket_mb": 0.01}])
def test_ranks_learn_what_one_does_and_hold_the_same_weights(tmp_path, changes):
    one, four = prepared(tmp_path, "one", **changes), prepared(tmp_path, "four", **changes)
    run_ranks(train_together, 1, one)
    digests = run_ranks(train_together, 4, four)
    assert len(set(digests)) == 1, "replicas must hold the same bits"
    assert losses(four) == pytest.approx(losses(one), rel=1e-4)


def train_with_a_bad_rank(world, folder):
    real = Parts.loss

    def loss(self, batch):
        return real(self, batch) * (float("nan") if world.rank == 1 and self.progress.step == 3 else 1.0)

    Parts.loss = loss
    try:
        run_rank(Run(folder), world)
    except UserError as error:
        return str(error)
    return "no error"


@pytest.mark.slow
def test_a_bad_loss_on_one_rank_is_named_by_all_and_the_good_state_saved(tmp_path):
    run = prepared(tmp_path, "bad", eval__every=0)
    said = run_ranks(train_with_a_bad_rank, 2, run)
    assert said[0] == said[1] and "step 3: loss nan" in said[0] and "micro-batch 0 of rank 1" in said[0] and ".txt" in said[0]
    assert list_snapshots(run)[-1].step == 3
