"""torch.compile of the model's blocks, trusted only after a check.

Some releases of the compiler give wrong gradients without a word (pytorch #193061, #193183). So before a run
compiles, its own first block computes the gradients of a random input both eagerly and compiled; where they differ by
more than rounding, or the compiler fails, the run goes on eagerly and says so. All ranks take the same verdict. The
pass that #193061 is about stays off (`TORCHINDUCTOR_MIX_ORDER_REDUCTION=0`).

Blocks are compiled one by one ("regional compilation"): all share one compiled graph, so the time to compile does not
grow with depth, and what wraps a block (sharding, recomputation) stays outside it.

Cost: seconds to a minute at the start of a run, less when torch's on-disk cache is warm. When not to use it: short
runs on a CPU, hence `compile.enabled = "auto"`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from penstock.comm import World
from penstock.models import Decoder, balance_experts
from penstock.models.loss import Kernel, softmax_gradient

os.environ.setdefault("TORCHINDUCTOR_MIX_ORDER_REDUCTION", "0")

#: Largest accepted relative difference of a gradient, by compute format: some hundred roundings of its epsilon.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def compile_model(decoder: Decoder, dtype: torch.dtype, batch: int, context: int, world: World, warn: Callable[[str], None]) -> Kernel:
    """Compile every block of `decoder` in place after the check; return the loss kernel, compiled too, or the eager one.

    `batch` and `context` are the shape training will use, so that the check compiles what training then runs.
    """
    blocks = list(decoder.blocks.values())
    failure = ""
    for block in representative_blocks(blocks):
        failure = failure or check_block(decoder, block, dtype, batch, context, world.device)
    balance_experts(decoder, 0.0, None)  # the check's random tokens are no load
    if world.any(bool(failure), "compile_check"):
        warn(f"torch.compile is off for this run: {failure or 'another rank refused it'}")
        torch._dynamo.reset()
        return softmax_gradient
    for block in blocks:
        block.compile(dynamic=False)
    return torch.compile(softmax_gradient, dynamic=False)


def representative_blocks(blocks: list[nn.Module]) -> list[nn.Module]:
    """One block of each structure (a dense one and one with experts, say)."""
    seen = {tuple(name for name, _ in block.named_parameters()): block for block in reversed(blocks)}
    return list(seen.values())


def check_block(decoder: Decoder, block: nn.Module, dtype: torch.dtype, batch: int, context: int, device: torch.device) -> str:
    """Compare compiled with eager gradients of one block; return what is wrong, or an empty string."""
    generator = torch.Generator().manual_seed(0)
    x_btd = torch.randn(batch, context, decoder.model.dim, generator=generator).to(device, dtype)
    try:
        eager = block_gradients(block, decoder, x_btd)
        compiled = block_gradients(torch.compile(block, dynamic=False), decoder, x_btd)
    except Exception as error:  # the compiler may fail in any way; the run must not
        return f"the compiler failed on this model's block ({type(error).__name__}: {str(error).splitlines()[0][:160]})"
    for name, reference in eager.items():
        difference = ((compiled[name] - reference).norm() / reference.norm().clamp_min(1e-12)).item()
        if not difference <= TOLERANCE[dtype]:
            return f"the compiled gradient of {name} differs from the eager one by {difference:.1e} (allowed {TOLERANCE[dtype]:.0e})"
    return ""


def block_gradients(block: Callable[..., Tensor], decoder: Decoder, x_btd: Tensor) -> dict[str, Tensor]:
    """Gradients of a fixed random projection of the block's output, for its input and all its parameters."""
    module = getattr(block, "_orig_mod", block)
    assert isinstance(module, nn.Module)
    x_btd = x_btd.detach().clone().requires_grad_()
    module.zero_grad(set_to_none=True)
    y_btd = block(x_btd, *decoder.sequence.context(x_btd[..., 0]))
    weight = torch.linspace(-1, 1, y_btd.numel(), device=y_btd.device, dtype=y_btd.dtype).view_as(y_btd)
    (y_btd * weight).float().sum().backward()
    gradients = {name: p.grad.detach().clone() for name, p in module.named_parameters() if p.grad is not None}
    assert x_btd.grad is not None
    gradients["input"] = x_btd.grad
    module.zero_grad(set_to_none=True)
    return gradients
