"""A step of one rank of a large mesh, rehearsed in one process: the real layers and collectives on tensors without data.

torch's fake process group answers every collective at once and its fake tensors have shapes and formats only, so a step of 64 ranks with
256 k tokens a layer takes a second and no memory, and the meter counts what that rank would send. Losses and gradients mean nothing.
What depends on data cannot be rehearsed: experts that live on other ranks. Cost: private parts of torch, which may move between releases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from penstock.comm import GradientReducer, World
from penstock.parallel.apply import Laid, shape_decoder
from penstock.parallel.cost.traffic import Workload
from penstock.parallel.mesh import Mesh
from penstock.parallel.shard import Formats
from penstock.parallel.weights import Weights

FORMATS = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


@contextmanager
def fake_mesh(work: Workload) -> Iterator[Mesh]:
    """The mesh of `work` as its rank sees it, without other ranks; not within a process group."""
    dist.init_process_group("fake", store=FakeStore(), rank=work.rank, world_size=work.layout.ranks)
    try:
        yield Mesh(work.layout, World(work.rank, work.layout.ranks))
    finally:
        dist.destroy_process_group()


def rehearse_step(work: Workload) -> dict[str, int]:
    """Bytes by `axis.purpose` that the meter counts in one step of `work`."""
    tokens = torch.zeros((work.micro, work.model.context // work.layout.context), dtype=torch.int64)
    return _rehearse(work, lambda laid: run_step(laid, work, tokens))


def rehearse_block(work: Workload) -> dict[str, int]:
    """Bytes by `axis.purpose` that the meter counts for the model's last block alone in a step of one micro-batch, its weights included."""
    return _rehearse(work, lambda laid: run_block(laid, work))


def _rehearse(work: Workload, run: Callable[[Laid], None]) -> dict[str, int]:
    """Bytes that the meter counts while `run` works on the laid-out decoder, whose tensors have no memory."""
    with fake_mesh(work) as mesh:
        decoder, plan, sharder = shape_decoder(work.model, mesh, Formats(FORMATS[work.master], FORMATS[work.compute]))
        with FakeTensorMode(allow_non_fake_inputs=True):
            decoder.to_empty(device="cpu")
            run(Laid(decoder, Weights(decoder, plan, mesh), sharder, {}, {}))
        return counted_bytes(mesh.world)


def run_block(laid: Laid, work: Workload) -> None:
    """Forward, backward and the sums of gradients of the last block of `work`, on one micro-batch of zeros."""
    decoder, layout = laid.decoder, work.layout
    block = decoder.blocks[str(work.model.layers - 1)]
    own = {id(parameter) for parameter in block.parameters()}
    reducer = GradientReducer([(p, axis) for p, axis in laid.routes() if id(p) in own], work.bucket_mb)
    laid.sharder.begin_micro_batch(True)
    tokens = work.tokens // work.micro
    here = tokens if layout.topology == "2.5d" else tokens // layout.row
    x_btd = torch.zeros((work.micro, here, work.part(work.model.dim, "column")), dtype=FORMATS[work.compute], requires_grad=True)
    context = decoder.sequence.context(torch.zeros((work.micro, tokens), dtype=torch.int64))
    reducer.arm()
    block(x_btd, *context).sum().backward()
    reducer.finish()


def run_step(laid: Laid, work: Workload, tokens_bt: torch.Tensor) -> None:
    """Forward, backward and the sums of gradients of a step of `work`, every micro-batch being `tokens_bt`; without an optimizer."""
    reducer = GradientReducer(laid.routes(), work.bucket_mb)
    documents = torch.zeros_like(tokens_bt, dtype=torch.int32) if work.documents else None
    for batch in range(work.micro_batches):
        last = batch == work.micro_batches - 1
        laid.sharder.begin_micro_batch(last)
        if last:
            reducer.arm()
        loss = laid.decoder.loss(tokens_bt, tokens_bt, documents_bt=documents, dtype=FORMATS[work.compute], chunk_tokens=work.chunk_tokens)
        loss.backward()
    reducer.finish()


def counted_bytes(world: World) -> dict[str, int]:
    """What the meter of `world` counted since the last look, by `axis.purpose`."""
    return {name.removesuffix("_bytes"): int(n) for name, n in world.meter.take().items() if name.endswith("_bytes") and n}
