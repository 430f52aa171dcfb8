"""The estimate of a layout's traffic and memory, held against what a step really sends and keeps."""

import pytest
import torch
from ranks import run_ranks
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.rehearse import FORMATS, counted_bytes, fake_mesh, rehearse_step, run_step
from penstock.config import ConfigError, load_config
from penstock.models import resolve_model
from penstock.parallel import Formats, Layout, Mesh, build_layout, check_layout, lay_out
from penstock.parallel.apply import shape_decoder
from penstock.parallel.cost.activations import layer_activations, layer_casts
from penstock.parallel.cost.estimate import step_traffic
from penstock.parallel.cost.traffic import Workload, bytes_sent
from penstock.parallel.tensor.topology import choose_topology, layer_bytes, layer_work

BASE = ["model.layers=2", "model.dim=24", "model.heads=4", "model.head_dim=6", "model.context=16", "model.ffn_dim=20"]
ODD = ["model.heads=3", "model.ffn_dim=13"]
GROUPED = ["model.kv_heads=2", "model.qk_norm=true", "model.tie_embeddings=true"]
ONE_KEY = ["model.kv_heads=1"]
MOE = ["model.moe.experts=6", "model.moe.first_dense=1", "model.moe.dim=10", "model.moe.active=2"]
VOCAB, MICRO = 37, 2


def layout_sets(text):
    """`tensor=2 shard=2` as settings."""
    return [f"layout.{pair}" for pair in text.split()]


def workload(sets, world_size, rank, dtype, batches):
    """The workload that `counted` runs."""
    config = load_config(None, sets)
    sizes = {"compute": dtype.itemsize, "master": max(4, dtype.itemsize)}
    model = resolve_model(config.model, VOCAB)
    return Workload(model, build_layout(config, world_size), MICRO, batches, **sizes, chunk_tokens=7, documents=True, bucket_mb=0.01, rank=rank)


def counted(world, sets, dtype, batches):
    """Bytes a step on real ranks sends by the meter, and by the estimate."""
    work = workload(sets, world.size, world.rank, dtype, batches)
    laid = lay_out(work.model, 1, Mesh(work.layout, world), Formats(FORMATS[work.master], FORMATS[work.compute]))
    run_step(laid, work, torch.randint(0, VOCAB, (MICRO, work.model.context // work.layout.context), generator=torch.Generator().manual_seed(3)))
    return counted_bytes(world), bytes_sent(step_traffic(work), work.layout)


def all_counted(world, cases):
    """`counted` for several cases in one set of ranks."""
    return [counted(world, *case) for case in cases]


#: On real ranks: layouts with a model for each, its number format and micro-batches.
REAL = {
    2: [("tensor=2", GROUPED, torch.bfloat16, 2), ("context=2", ONE_KEY, torch.float32, 1), ("shard=2 zero=1", MOE, torch.float32, 2)],
    4: [
        ("tensor=4 tensor_topology=2d", MOE, torch.float32, 1),
        ("tensor=4 tensor_topology=2d", ONE_KEY, torch.bfloat16, 2),
        ("shard=2 context=2", ODD, torch.bfloat16, 2),
        ("shard=2 tensor=2", GROUPED, torch.float32, 2),
        ("replicate=4", [*ODD, "exchange.topology=2x2"], torch.float32, 2),
        ("shard=2", [*GROUPED, "exchange.topology=2x2"], torch.bfloat16, 2),
        ("tensor=4 tensor_topology=2.5d", ODD, torch.bfloat16, 2),
    ],
    8: [
        ("tensor=8 tensor_topology=2.5d", MOE, torch.float32, 1),
        ("shard=2 tensor=4 tensor_topology=2d", ODD, torch.float32, 2), ("shard=2 context=2 tensor=2 zero=2", MOE, torch.bfloat16, 1),
    ],
}

#: Rehearsed, each with three of the models, which change from layout to layout.
REHEARSED = [
    (2, "tensor=2"), (2, "replicate=2"), (2, "shard=2"), (2, "shard=2 zero=2"), (4, "tensor=4"), (4, "shard=2 replicate=2"),
    (8, "context=2 tensor=4 tensor_topology=2d"), (4, "tensor=4 tensor_topology=2d tensor_grid=4x1"), (16, "shard=2 context=2 tensor=2 zero=1"),
    (4, "tensor=4 tensor_topology=2.5d"), (8, "tensor=8 tensor_topology=2.5d"), (16, "shard=2 context=2 tensor=4 tensor_topology=2.5d"),
]  # fmt: skip


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
def test_the_estimate_is_what_ranks_send(ranks):
    cases = [([*BASE, *model, *layout_sets(layout)], dtype, batches) for layout, model, dtype, batches in REAL[ranks]]
    for rank, of_rank in enumerate(run_ranks(all_counted, ranks, cases, timeout_s=300)):
        for case, (sent, estimated) in zip(cases, of_rank):
            assert sent == estimated, (rank, case)
            assert sent, case


MODELS = [([], torch.float32), (ODD, torch.bfloat16), (GROUPED, torch.bfloat16), (ONE_KEY, torch.bfloat16), (MOE, torch.float32)]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "layout"), REHEARSED)
def test_the_estimate_is_what_a_rehearsal_counts(ranks, layout):
    checked, first = 0, next(i for i, case in enumerate(REHEARSED) if case == (ranks, layout))
    for model, dtype in [MODELS[(first + i) % len(MODELS)] for i in range(3)]:
        sets = [*BASE, *model, *layout_sets(layout)]
        work = workload(sets, ranks, ranks - 1, dtype, 2)
        if not refused(sets, work):
            assert rehearse_step(work) == bytes_sent(step_traffic(work), work.layout), model
            checked += 1
    assert checked >= 2


def refused(sets, work):
    """Whether a model cannot be laid out so."""
    try:
        check_layout(load_config(None, [*sets, "batch.global=64"]), work.layout)
    except ConfigError:
        return True
    return False


def exchanged_rows(world, sets):
    """Bytes that experts' rows send by the meter, and by the estimate, with all else equal."""
    sent, estimated = counted(world, sets, torch.float32, 1)
    return sent.pop("expert.experts"), estimated.pop("expert.experts"), sent == estimated


def test_experts_rows_are_estimated_under_even_routing():
    sets = [*BASE, *MOE, "model.context=512", *layout_sets("expert=2")]
    of_ranks = run_ranks(exchanged_rows, 2, sets)
    assert all(same for _, _, same in of_ranks)
    assert sum(sent for sent, _, _ in of_ranks) == pytest.approx(sum(estimated for _, estimated, _ in of_ranks), rel=0.15)


def kept_by_autograd(work):
    """Bytes that the first block of `work` keeps for its backward pass, by autograd's own list, parameters left out."""
    with fake_mesh(work) as mesh:
        decoder, _, _ = shape_decoder(work.model, mesh, Formats(FORMATS[work.master], FORMATS[work.compute]))
        with FakeTensorMode(allow_non_fake_inputs=True):
            decoder.to_empty(device="cpu")
            parameters = {p.untyped_storage()._cdata for p in decoder.parameters()}
            kept, alive = {}, []

            def pack(tensor):
                alive.append(tensor)
                kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
                return tensor

            rows = 1 if work.layout.topology == "2.5d" else work.layout.row
            x_btd = torch.zeros(work.micro, work.tokens // work.micro // rows, work.part(work.model.dim, "column"), dtype=FORMATS[work.compute])
            context = decoder.sequence.context(torch.zeros((work.micro, work.tokens // work.micro), dtype=torch.int64))
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                decoder.blocks["0"](x_btd.requires_grad_(), *context)
            return sum(n for storage, n in kept.items() if storage not in parameters)


WIDE = ["model.layers=1", "model.dim=256", "model.heads=8", "model.context=512", "model.ffn_dim=640"]


@pytest.mark.parametrize("model", [[], ["model.kv_heads=4", "model.qk_norm=true"], ["model.moe.experts=8", "model.moe.dim=128"]])
@pytest.mark.parametrize(
    ("ranks", "layout"), [(1, ""), (2, "tensor=2"), (4, "tensor=4 tensor_topology=2d"), (8, "tensor=8 tensor_topology=2d"), (4, "tensor=4 tensor_topology=2.5d")]
)
def test_activations_are_what_autograd_keeps(ranks, layout, model):
    for compute in (4, 2):
        config = load_config(None, [*WIDE, *model, *layout_sets(layout)])
        work = Workload(resolve_model(config.model, VOCAB), build_layout(config, ranks), MICRO, compute=compute)
        estimated = layer_activations(work, 0) + layer_casts(work, 0)
        assert estimated == pytest.approx(kept_by_autograd(work), rel=0.06), compute


def test_the_chosen_topology_never_sends_more_than_one_dimension():
    model = resolve_model(load_config(None, ["model.layers=1", "model.dim=1024", "model.heads=64"]).model, VOCAB)
    winners = set()
    for ranks in (4, 16, 64):
        for tokens in (1024, 16384, 262144):
            choice = choose_topology(model, ranks, tokens)
            widest = choose_topology(model, ranks, tokens, shard=True)
            work = layer_work(model, Layout(row=ranks), tokens)
            assert widest.n_bytes <= choice.n_bytes <= layer_bytes(work)
            winners.add(choice.layout.topology)
    assert winners >= {"2d", "2.5d"}
    assert choose_topology(model, 1, 1024).layout == Layout()


def test_a_grid_that_one_dimension_cannot_form_is_refused():
    model = resolve_model(load_config(None, ["model.layers=1", "model.dim=96", "model.heads=3"]).model, VOCAB)
    with pytest.raises(ValueError, match="3 heads"):
        choose_topology(model, 4, 1024)
