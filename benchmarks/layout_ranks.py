"""The part of `layouts` that runs on real ranks: `python -m benchmarks.layout_ranks FOLDER` below the launcher, answers in `FOLDER/figures.json`.

On 4 and 8 ranks a small layer is counted in every topology against the formula; on 2 ranks Penstock's layouts are timed against bare torch calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel, SequenceParallel, parallelize_module

from benchmarks.layouts import layer_of
from benchmarks.rank import answer
from benchmarks.rehearse import FORMATS, counted_bytes, run_block
from benchmarks.timing import ratio, take_turns
from penstock.comm import GradientReducer, World
from penstock.config import ModelSection, load_config
from penstock.models import Decoder, build_decoder, resolve_model
from penstock.models.layers import Linear
from penstock.parallel import Formats, Laid, Layout, Mesh, lay_out
from penstock.parallel.cost.estimate import block_traffic
from penstock.parallel.cost.traffic import bytes_sent
from penstock.parallel.tensor.topology import layer_work, tensor_grids

TURNS = 30
TIMED = ["model.layers=3", "model.dim=384", "model.heads=6", "model.context=128", "model.vocab=2048"]
SEQUENCES, CHUNK = 4, 1024


def count(world: World) -> dict[str, float]:
    """A small layer in every topology on all ranks, counted by the meter and by the formula."""
    model, found = layer_of(128, heads=8), []
    for layout in [*tensor_grids(Layout(row=world.size)), Layout(shard=world.size), Layout(shard=2, row=world.size // 2)]:
        for compute in (4, 2):
            work = layer_work(model, layout, 1024, compute)
            if work is not None:
                laid = lay_out(work.model, 1, Mesh(layout, world), Formats(FORMATS[work.master], FORMATS[work.compute]))
                run_block(laid, work)
                found.append(counted_bytes(world) == bytes_sent(block_traffic(work, 0), layout))
    wrong = world.gather_numbers(float(found.count(False)), "mismatches")
    return {f"real_cases_{world.size}": float(len(found)), f"real_mismatches_{world.size}": sum(wrong)}


def overhead(world: World) -> dict[str, float]:
    """Penstock's layouts against bare FSDP2 and bare DTensor tensor parallelism, in turns."""
    model = resolve_model(load_config(None, TIMED).model, 2048)
    tokens = torch.randint(0, model.vocab, (SEQUENCES, model.context), generator=torch.Generator().manual_seed(world.rank))
    same = torch.randint(0, model.vocab, (SEQUENCES, model.context), generator=torch.Generator().manual_seed(7))
    mesh = init_device_mesh("cpu", (world.size,))
    contestants = {
        "fsdp_ours": laid_step(lay_out(model, 1, Mesh(Layout(shard=2), world)), loss_of(tokens)),
        "fsdp_bare": bare_step(bare_fsdp(model, mesh), loss_of(tokens)),
        "tensor_ours": laid_step(lay_out(model, 1, Mesh(Layout(row=2), world)), hidden_of(same)),
        "tensor_bare": bare_step(bare_tensor(model, mesh), hidden_of(same)),
    }
    seconds = take_turns({name: partial(together, world, step) for name, step in contestants.items()}, TURNS)
    figures: dict[str, float] = {}
    for kind in ("fsdp", "tensor"):
        found = ratio(seconds[f"{kind}_ours"], seconds[f"{kind}_bare"])
        figures |= {f"{kind}_overhead": found["ratio"] - 1, f"{kind}_overhead_low": found["low"] - 1, f"{kind}_overhead_high": found["high"] - 1}
        figures[f"{kind}_step_s"] = sorted(seconds[f"{kind}_bare"])[TURNS // 2]
    return figures


def together(world: World, step: Callable[[], None]) -> None:
    """A step that begins and ends for all ranks at once."""
    world.barrier()
    step()
    world.barrier()


def loss_of(tokens: Tensor) -> Callable[[Decoder], Tensor]:
    """The whole model's loss."""
    return lambda decoder: decoder.loss(tokens, tokens, chunk_tokens=CHUNK)


def hidden_of(tokens: Tensor) -> Callable[[Decoder], Tensor]:
    """A scalar of the hidden states, for contestants whose losses differ."""
    return lambda decoder: decoder(tokens).square().sum()


def laid_step(laid: Laid, loss: Callable[[Decoder], Tensor]) -> Callable[[], None]:
    """Forward, backward and gradient sums as Penstock does them."""
    reducer = GradientReducer(laid.routes(), 25.0)

    def step() -> None:
        laid.sharder.begin_micro_batch(True)
        reducer.arm()
        loss(laid.decoder).backward()
        reducer.finish()
        laid.weights.collect()
        laid.weights.drop_gradients()

    return step


def bare_step(decoder: Decoder, loss: Callable[[Decoder], Tensor]) -> Callable[[], None]:
    """Forward and backward of a decoder that torch has parallelised."""

    def step() -> None:
        loss(decoder).backward()
        decoder.zero_grad(set_to_none=True)

    return step


def bare_fsdp(model: ModelSection, mesh: DeviceMesh) -> Decoder:
    """The plain decoder under FSDP2, block by block, as its documentation has it."""
    decoder = build_decoder(model, 1, "cpu")
    for block in decoder.blocks.values():
        fully_shard(block, mesh=mesh)
    fully_shard(decoder, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(decoder, "loss")
    return decoder


def bare_tensor(model: ModelSection, mesh: DeviceMesh) -> Decoder:
    """The plain decoder under torch's tensor and sequence parallel styles, which know torch's own linear layers only."""
    decoder = build_decoder(model, 1, "cpu")
    _use_torch_linear(decoder)
    inner, outer = Replicate(), Shard(1)
    alone = PrepareModuleInput(input_layouts=(outer,), desired_input_layouts=(inner,))
    attention = PrepareModuleInput(input_layouts=(outer, *[None] * 4), desired_input_layouts=(inner, *[None] * 4))
    block_plan = {
        "attention_norm": SequenceParallel(use_local_output=True), "ffn_norm": SequenceParallel(use_local_output=True),
        "attention": attention, "ffn": alone,
        **{f"attention.{name}": ColwiseParallel() for name in ("wq", "wk", "wv")}, "attention.wo": RowwiseParallel(output_layouts=outer),
        **{f"ffn.{name}": ColwiseParallel() for name in ("gate", "up")}, "ffn.down": RowwiseParallel(output_layouts=outer),
    }  # fmt: skip
    for block in decoder.blocks.values():
        parallelize_module(block, mesh, block_plan)
    ends = {"embedding": RowwiseParallel(input_layouts=inner, output_layouts=outer), "norm": SequenceParallel(use_local_output=True)}
    return parallelize_module(decoder, mesh, ends)  # type: ignore[return-value]


def _use_torch_linear(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Linear):
            out, inputs = child.weight.shape
            linear = nn.Linear(inputs, out, bias=False)
            linear.weight = child.weight
            setattr(module, name, linear)
        else:
            _use_torch_linear(child)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.exit(answer(folder, lambda world: overhead(world) if world.size == 2 else count(world), 600.0))
