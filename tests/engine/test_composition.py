"""Every pair of switches composes: the cut of the batch does not change the losses, and resuming goes on bit for bit."""

import itertools

import pytest
from small_runs import small_config, write_corpus

from penstock.engine import resume_run, start_run
from penstock.monitor import MetricStore
from penstock.store import find_run, list_snapshots

SWITCHES = {
    "document mask": {"data__document_mask": True},
    "sliding window": {"model__sliding_window": 7},
    "experts": {"model__moe__experts": 8, "model__moe__first_dense": 1, "model__moe__groups": 4, "model__moe__active_groups": 2},
    "grouped queries": {"model__heads": 4, "model__kv_heads": 2, "model__head_dim": 16},
    "qk-norm": {"model__qk_norm": True},
    "tied embeddings": {"model__tie_embeddings": True},
    "stretched rope": {"model__rope_scaling__factor": 4.0, "model__rope_scaling__original_context": 16},
    "muon": {"optim__kind": "muon"},
    "averaged weights": {"optim__ema": 0.9},
    "wsd": {"optim__schedule": "wsd", "optim__decay": 0.5},
    "small loss chunk": {"train__loss_chunk": 24},
    "bfloat16": {"precision__compute": "bfloat16"},
    "probes in every step": {"metrics__probe_every": 1},
    "judged steps": {"alerts__act": "non_finite=skip, gradient_explosion=skip, loss_spike=skip"},
    "samples left out": {"data__skip": "2 5-9"},
}
BASE = {"train__steps": 4, "eval__micro": 2, "optim__warmup": 1, "eval__every": 0, "eval__sample_tokens": 0, "snapshot__every": 2, "snapshot__keep": 0, "metrics__tensorboard": False}


def losses(result):
    return [row["loss"] for row in MetricStore(find_run(result["run"]).path / "metrics").read("train")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Settings of one corpus for all tests of this file, prepared once."""
    folder = tmp_path_factory.mktemp("corpus")
    return {"data__path": write_corpus(folder / "text"), "data__cache_dir": folder / "cache"}


def check(tmp_path, changes):
    """Train whole and eagerly, and in pieces, then resume the latter from its middle."""
    runs = {}
    for name, cut in (("whole", {"batch__micro": 4, "snapshot__every": 0, "compile__enabled": "off"}), ("pieces", {"batch__micro": 2})):
        runs[name] = start_run(small_config(tmp_path, **BASE | changes | cut), "test", "test", 1, tmp_path / name, None)
    rough = "precision__compute" in changes
    assert losses(runs["pieces"]) == pytest.approx(losses(runs["whole"]), rel=5e-3 if rough else 5e-5)
    run = find_run(runs["pieces"]["run"])
    list_snapshots(run.folder)[-1].path.unlink()
    resumed = resume_run(run, {}, 1, None)
    assert resumed["weights_digest"] == runs["pieces"]["weights_digest"] and resumed["val_loss"] == runs["pieces"]["val_loss"]


def covering(size):
    """Sets of so many switches in which every two are together somewhere, each chosen to have the most pairs that none has yet."""
    left, found = set(itertools.combinations(SWITCHES, 2)), []
    while left:
        found.append(max(itertools.combinations(SWITCHES, size), key=lambda names: len(left & set(itertools.combinations(names, 2)))))
        left -= set(itertools.combinations(found[-1], 2))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("names", covering(4), ids=" + ".join)
def test_every_pair_of_switches_composes(tmp_path, corpus, names):
    check(tmp_path, corpus | {key: value for name in names for key, value in SWITCHES[name].items()})


@pytest.mark.slow
def test_compiling_composes_with_the_switches(tmp_path, corpus):
    names = "experts", "document mask", "muon", "sliding window", "grouped queries", "qk-norm", "tied embeddings", "averaged weights"
    check(tmp_path, corpus | {key: value for name in names for key, value in SWITCHES[name].items()} | {"compile__enabled": "on"})
