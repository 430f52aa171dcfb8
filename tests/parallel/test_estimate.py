"""The estimate of a layout's traffic and memory, held against what a step really sends and keeps."""

import pytest
import torch
from ranks import run_ranks

from penstock.config import load_config
from penstock.models import resolve_model
from penstock.parallel.apply import lay_out
from penstock.parallel.estimate import step_traffic
from penstock.parallel.layout import build_layout
from penstock.parallel.mesh import Mesh
from penstock.parallel.rehearse import FORMATS, counted_bytes, rehearse_step, run_step
from penstock.parallel.traffic import Workload, bytes_sent

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
    laid = lay_out(work.model, 1, Mesh(work.layout, world), FORMATS[work.master])
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
        ("tensor=4 tensor_topology=2.5d", ODD, torch.bfloat16, 2),
    ],
    8: [
        ("tensor=8 tensor_topology=2.5d", MOE, torch.float32, 1),
        ("shard=2 tensor=4 tensor_topology=2d", ODD, torch.float32, 2), ("shard=2 context=2 tensor=2 zero=2", MOE, torch.bfloat16, 1),
    ],
}

#: Rehearsed, every one with every model.
REHEARSED = [
    (2, "tensor=2"), (2, "replicate=2"), (2, "shard=2"), (2, "shard=2 zero=2"), (4, "tensor=4"), (4, "shard=2 replicate=2"),
    (8, "context=2 tensor=4 tensor_topology=2d"), (8, "tensor=8 tensor_topology=2d tensor_grid=2x4"), (16, "shard=2 context=2 tensor=4 zero=1"),
    (4, "tensor=4 tensor_topology=2.5d"), (8, "tensor=8 tensor_topology=2.5d"), (16, "shard=2 context=2 tensor=4 tensor_topology=2.5d"),
]  # fmt: skip


@pytest.mark.parametrize("ranks", [2, 4, pytest.param(8, marks=pytest.mark.slow)])
def test_the_estimate_is_what_ranks_send(ranks):
    cases = [([*BASE, *model, *layout_sets(layout)], dtype, batches) for layout, model, dtype, batches in REAL[ranks]]
    for rank, of_rank in enumerate(run_ranks(all_counted, ranks, cases, timeout_s=300)):
        for case, (sent, estimated) in zip(cases, of_rank):
            assert sent == estimated, (rank, case)
            assert sent, case


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "layout"), REHEARSED)
def test_the_estimate_is_what_a_rehearsal_counts(ranks, layout):
    for model, dtype in ([], torch.float32), (ODD, torch.float32), (GROUPED, torch.bfloat16), (ONE_KEY, torch.bfloat16), (MOE, torch.float32):
        work = workload([*BASE, *model, *layout_sets(layout)], ranks, ranks - 1, dtype, 2)
        assert rehearse_step(work) == bytes_sent(step_traffic(work), work.layout), model
