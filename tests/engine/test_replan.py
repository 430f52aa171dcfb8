"""An elastic pipeline: a rank that slows down in the middle of a run is scheduled around, and the run learns what one process does."""

import time

import pytest
from ranks import run_ranks
from small_runs import small_config

from penstock.engine.start import make_run
from penstock.engine.worker import run_rank
from penstock.monitor import MetricStore
from penstock.parallel.pipeline.stage import DecoderStage
from penstock.store import Run

#: Seconds a layer sleeps in each work, so that two cores hold four ranks.
NAP = 0.003


def train_napping(world, folder, slow_rank, slow_from):
    """Train with stages that sleep in proportion to their layers, one rank 60 % longer from a step on."""
    steps = [0]
    kept = {name: getattr(DecoderStage, name) for name in ("forward", "backward", "weights")}

    def slowed(name):
        def work(self, *args):
            result = kept[name](self, *args)
            slow = 1.6 if world.rank == slow_rank and steps[0] >= slow_from else 1.0
            time.sleep(NAP * slow * (len(self.part.layers) + self.part.head) * (2 if name == "backward" and not args[-1] else 1))
            return result

        return work

    if slow_rank is not None:
        for name in kept:
            setattr(DecoderStage, name, slowed(name))
        from penstock.engine.pipeline import Pipeline

        train = Pipeline.train

        def counted(self, *args):
            steps[0] += 1
            return train(self, *args)

        Pipeline.train = counted
    return run_rank(Run(folder), world)["val_loss"]


@pytest.mark.slow
def test_a_rank_that_slows_down_is_noticed_and_scheduled_around(tmp_path):
    changes = {"model__layers": 24, "model__dim": 16, "batch__global": 8, "batch__micro": 1, "train__steps": 36,
               "snapshot__every": 0, "eval__every": 0, "precision__compute": "float64"}
    plain = make_run(small_config(tmp_path, **changes), "test", "test", tmp_path / "plain", None).path
    piped = make_run(small_config(tmp_path, layout__pipeline=4, **changes), "test", "test", tmp_path / "piped", None).path
    alone = run_ranks(train_napping, 1, plain, None, 0)[0]
    together = run_ranks(train_napping, 4, piped, 2, 16, timeout_s=300)
    assert together == pytest.approx([alone] * 4, rel=1e-8)
    events = [row for row in MetricStore(piped / "metrics").read("event") if row["what"] == "pipeline"]
    noticed = [row for row in events if "rank 2" in row["text"]]
    assert noticed and 16 < noticed[0]["step"] <= 36, events
    assert "layers" in noticed[0]["text"], events
    assert any("since the change" in row["text"] for row in events if row["step"] > noticed[0]["step"]), events
