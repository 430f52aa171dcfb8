"""The state of a model on every layout is one state: the same digest, exports and snapshots, and optimizers that go on from another's."""

import functools
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from ranks import run_ranks

import penstock.store.cells.grid as grids
from penstock.comm import World
from penstock.config import load_config
from penstock.engine.state import state_placements, state_tensors, weights_digest, whole_model
from penstock.models import build_decoder, resolve_model
from penstock.optim import WeightAverage, build_optimizer
from penstock.parallel import Laid, Layout, Mesh, Placement, Weights, laid_whole, own_part, plan_weights, saved_buffers, shared_matrices
from penstock.parallel.shard import Sharder
from penstock.store import Increments, LocalFolder, Saver, list_snapshots, load_snapshot, read_manifest, save_snapshot

LAYOUTS = {
    "replicas": (Layout(replicate=4), ()),
    "shards": (Layout(shard=4), ()),
    "context": (Layout(shard=2, context=2), ()),
    "rows": (Layout(replicate=2, row=2), ()),
    "2-D grid, sharded nowhere": (Layout(row=2, column=2, topology="2d"), ()),
    "2.5-D grid": (Layout(row=2, column=2, topology="2.5d"), ()),
    "shards of rows": (Layout(shard=2, row=2), ()),
    "experts": (Layout(shard=4, expert=2), ()),
    "experts in places": (Layout(replicate=2, row=2, expert=2), ((3, 0, 2), (1, 2))),
}


def settings():
    config = load_config(None, ["model.dim=20", "model.heads=3", "model.head_dim=4", "model.layers=2", "model.moe.experts=4", "model.moe.first_dense=1",
                                "model.moe.dim=10", "optim.kind=muon", "optim.ema=0.9"])  # fmt: skip
    return resolve_model(config.model, 53), config.optim


def plain_decoder():
    decoder = build_decoder(settings()[0], 3, torch.device("cpu")).double()
    for i, buffer in enumerate(saved_buffers(decoder).values()):
        buffer.copy_(torch.arange(len(buffer)) + i)
    return decoder


def gradients(weights, step):
    generator = torch.Generator().manual_seed(step)
    for name, placement in weights.placements.items():
        whole = torch.randn(placement.shape, generator=generator, dtype=torch.float64)
        weights.locals[name].grad = weights.part(name, whole)


class State:
    """What a rank trains, its weights cut from the plain decoder's as the layout's plan says."""

    def __init__(self, which, world):
        decoder, (model, optim) = plain_decoder(), settings()
        layout, slots = LAYOUTS[which]
        self.mesh = Mesh(layout, world)
        named = dict(decoder.named_parameters())
        plan = plan_weights(model, layout, {name: tuple(p.shape) for name, p in named.items()}, {"1": slots} if slots else None)
        parts = {name: own_part(p.detach(), plan[name], self.mesh) for name, p in named.items()}
        self.weights = Weights(SimpleNamespace(named_parameters=parts.items), plan, self.mesh)
        self.finish(decoder, optim)

    def finish(self, decoder, optim):
        self.buffers = saved_buffers(decoder)
        self.laid = Laid(decoder, self.weights, Sharder(), self.buffers, {name: Placement(tuple(b.shape)) for name, b in self.buffers.items()})
        self.optimizer = build_optimizer(self.weights.locals, optim, shared_matrices(self.weights))
        self.average = WeightAverage(self.weights.locals, optim.ema)
        self.tensors = state_tensors(self.weights, self.buffers, self.optimizer, self.average)
        self.placements = state_placements(self.tensors, self.weights.placements)

    def step(self, steps):
        for step in steps:
            gradients(self.weights, step)
            self.optimizer.step()
            self.average.update()

    def load(self, folder, world):
        for tensor in self.tensors.values():
            tensor.zero_()
        load_snapshot(list_snapshots(folder)[0], self.tensors, world, self.placements, self.mesh.layout)


class PlainState(State):
    """The same in one plain process."""

    def __init__(self):
        decoder = plain_decoder()
        self.weights = laid_whole(decoder).weights
        self.mesh = self.weights.mesh
        self.finish(decoder, settings()[1])


def on_every_layout(world, folder):
    """For each layout: digest at the start, the lead's whole model, digests before and after saving, and the state after going on."""
    found = {}
    for which, (layout, _) in LAYOUTS.items():
        state = State(which, world)
        first, whole = weights_digest(state.laid), whole_model(state.laid)
        state.step(range(2))
        save_snapshot(folder / which, 2, state.tensors, {}, world, state.placements, layout)
        trained = weights_digest(state.laid)
        state = State(which, world)
        state.load(folder / "plain", world)
        loaded = weights_digest(state.laid)
        state.step(range(2, 4))
        found[which] = first, whole, trained, loaded, whole_model(state.laid)
    return found


def go_through(world, folder, legs):
    """Train on one layout after the other, each taking up what the one before saved last, and saving after every step in the background."""
    grids.CELL = 1 << 10
    folder, taken, before = LocalFolder(folder), None, 0
    for which, steps in legs:
        state = State(which, world)
        if taken:
            load_snapshot(taken, state.tensors, world, state.placements, state.mesh.layout)
        saver = Saver(folder, world, Increments(chain=2), read_manifest(taken) if taken else None)
        for step in range(before + 1, before + steps + 1):
            state.step([step])
            saver.save(step, state.tensors, state.placements, state.mesh.layout, {"step": step}, {})
        saver.wait()
        taken = saver.outcomes()[-1].snapshot
        saver.close()
        before += steps


@pytest.mark.slow
@examples(max_examples=2)
@given(st.lists(st.tuples(st.sampled_from(list(LAYOUTS)), st.integers(1, 2)), min_size=2, max_size=4))
def test_training_that_moves_from_layout_to_layout_is_plain_training(legs):
    plain = PlainState()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        run_ranks(go_through, 4, Path(folder), legs)
        patch.setattr(grids, "CELL", 1 << 10)
        for snapshot in list_snapshots(Path(folder)):
            plain.step([snapshot.step])
            found = {name: torch.zeros_like(tensor) for name, tensor in plain.tensors.items()}
            assert load_snapshot(snapshot, found) == {"step": snapshot.step}
            for name, tensor in plain.tensors.items():
                torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
        assert snapshot.step == sum(steps for _, steps in legs)


@functools.cache
def results(folder):
    plain = PlainState()
    plain.step(range(2))
    save_snapshot(folder / "plain", 2, plain.tensors, {}, World())
    return run_ranks(on_every_layout, 4, folder, timeout_s=300.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("states")


@pytest.mark.slow
@pytest.mark.parametrize("which", LAYOUTS)
def test_a_layout_has_the_plain_models_digest_and_weights(folder, which):
    plain = PlainState()
    answers = [answer[which] for answer in results(folder)]
    assert {first for first, *_ in answers} == {weights_digest(plain.laid)}
    whole = answers[0][1]
    assert whole.keys() == plain_decoder().state_dict().keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in plain_decoder().state_dict().items())
    assert all(not answer[1] for answer in answers[1:]), "only the lead keeps the whole model"


@pytest.mark.parametrize("which", LAYOUTS)
def test_one_process_takes_up_what_a_layout_saved_and_the_other_way_round(folder, which):
    answers = [answer[which] for answer in results(folder)]
    plain = PlainState()
    plain.load(folder / which, World())
    assert {trained for _, _, trained, *_ in answers} == {weights_digest(plain.laid)}
    plain.load(folder / "plain", World())
    assert {loaded for *_, loaded, _ in answers} == {weights_digest(plain.laid)}
    plain.step(range(2, 4))
    for name, tensor in whole_model(plain.laid).items():
        torch.testing.assert_close(answers[0][-1][name], tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("which", LAYOUTS)
def test_moments_and_averages_of_a_layout_are_the_plain_ones(folder, which):
    results(folder)
    loaded, plain = PlainState(), PlainState()
    loaded.load(folder / which, World())
    plain.step(range(2))
    assert loaded.tensors.keys() == plain.tensors.keys()
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(loaded.tensors[name], tensor, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
