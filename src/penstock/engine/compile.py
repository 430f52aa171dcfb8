"""torch.compile of the model, trusted only after a check.

Some releases of the compiler give wrong gradients without a word (pytorch #193061, #193183). So before a run
compiles, the very function it would train with, on random tokens of the shape it will train on, computes all gradients
both eagerly and compiled; where they differ by more than rounding, or the compiler fails, the run goes on eagerly and
says so. All ranks take the same verdict. The pass that #193061 is about stays off (`TORCHINDUCTOR_MIX_ORDER_REDUCTION=0`).

There are two ways, `compiles_whole` chooses:

- *By block* ("regional compilation"), on CUDA and for deep models: all blocks share one compiled graph, so the time to
  compile does not grow with depth, and what wraps a block (sharding, recomputation) stays outside it. The check is
  made on one block of each structure, and the loss kernel is compiled on its own.
  Stages of a pipeline are compiled so on any device; where their schedule splits the backward pass, the check splits it too (`models/later.py`).
- *Whole*, for shallow models on a CPU: embedding, blocks and loss are one graph. A small model's step there is short enough
  for what happens between graphs to show: some 10 % of it. The time to compile grows with depth.

Cost: seconds to a minute at the start of a run, less when torch's on-disk cache is warm. When not to use it: short
runs on a CPU, hence `compile.enabled = "auto"`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from penstock.comm import World
from penstock.config import Config
from penstock.models import Decoder, balance_experts, build_decoder
from penstock.models.later import KEEP_BUFFERS, finish, later
from penstock.models.loss import Kernel, softmax_gradient

os.environ.setdefault("TORCHINDUCTOR_MIX_ORDER_REDUCTION", "0")

#: Largest accepted relative difference of a gradient, by compute format: some hundred roundings of its epsilon.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float64: 1e-10}

#: Most blocks that are compiled as one graph.
WHOLE_LAYERS = 12

#: Summed cross-entropy of (decoder, tokens, targets, documents or None, compute format, tokens whose logits are held at once).
LossFunction = Callable[[Decoder, Tensor, Tensor, Tensor | None, torch.dtype, int], Tensor]

#: Tokens (b, t) and their documents (b, t) or None.
Example = tuple[Tensor, Tensor | None]


def sequence_loss(
    decoder: Decoder,
    tokens_bt: Tensor,
    targets_bt: Tensor,
    documents_bt: Tensor | None,
    dtype: torch.dtype,
    chunk: int,
    kernel: Kernel = softmax_gradient,
) -> Tensor:
    """Summed cross-entropy of a batch under `decoder`, float32; no logits beyond `chunk` tokens are held."""
    return decoder.loss(tokens_bt, targets_bt, documents_bt=documents_bt, dtype=dtype, chunk_tokens=chunk, kernel=kernel)


def compile_model(
    decoder: Decoder, config: Config, dtype: torch.dtype, micro: int, world: World, warn: Callable[[str], None], sharded: bool = False
) -> LossFunction:
    """Compile `decoder` after the check; return the loss function to train with, which is `sequence_loss` where compiling is refused.

    `micro` is the number of sequences in training's micro-batches; evaluation's is the config's, or the same. A `sharded` decoder is compiled by
    block, and the check made on whole blocks of the same structure.
    """
    if sharded or not compiles_whole(decoder, world.device):
        kernel = compile_blocks(decoder, config, dtype, micro, world, warn, partly=sharded)
        return partial(sequence_loss, kernel=kernel) if kernel else sequence_loss
    torch._dynamo.reset()
    compiled: LossFunction = torch.compile(sequence_loss, dynamic=False)
    train_bt, score_bt = example_batches(decoder, config, micro, world.device)
    failure = check_whole(decoder, compiled, train_bt, score_bt, dtype, config.train.loss_chunk)
    return compiled if agreed(decoder, failure, world, warn) else sequence_loss


def compile_blocks(
    decoder: Decoder,
    config: Config,
    dtype: torch.dtype,
    micro: int,
    world: World,
    warn: Callable[[str], None],
    partly: bool = False,
    split: bool = False,
) -> Kernel | None:
    """Compile each block of `decoder` after the check; return the compiled kernel of the loss, None where compiling is refused.

    Where this rank has the decoder only `partly`, the check is made on whole blocks of the same structure. With `split`, blocks run while
    `later.splitting`. All ranks must call it, whichever blocks they have.
    """
    torch._dynamo.reset()  # its limit on recompilations counts all models a process has had
    example = few_blocks(decoder, world.device, dtype) if partly else decoder
    later.know(example)
    failure = check_blocks(example, *example_batches(example, config, micro, world.device), dtype, split)
    if not agreed(example, failure, world, warn):
        return None
    run_compiled(decoder, split)
    return torch.compile(softmax_gradient, dynamic=False)


def run_compiled(decoder: Decoder, split: bool) -> None:
    """Compile each block when it first runs; the check must have been passed."""
    later.know(decoder)
    for block in decoder.blocks.values():
        block.compile(dynamic=False, options=KEEP_BUFFERS if split else None)


def run_eagerly(decoder: Decoder) -> None:
    """Take `run_compiled` back."""
    for block in decoder.blocks.values():
        block._compiled_call_impl = None


def agreed(example: Decoder, failure: str, world: World, warn: Callable[[str], None]) -> bool:
    """Whether no rank's check failed; the run goes on eagerly where one did, and says so."""
    balance_experts(example, 0.0, None)  # the check's random tokens are no load
    if not world.any(bool(failure), "compile_check"):
        return True
    warn(f"torch.compile is off for this run: {failure or 'another rank refused it'}")
    torch._dynamo.reset()
    return False


def few_blocks(decoder: Decoder, device: torch.device, dtype: torch.dtype) -> Decoder:
    """A plain model on `device`, to compute in `dtype`, with a block of each structure that `decoder` has, or has on other ranks."""
    layers = decoder.model.moe.first_dense + 1 if decoder.model.moe.experts else 1
    example = build_decoder(decoder.model.model_copy(update={"layers": layers}), 0, device)
    return example.double() if dtype == torch.float64 else example


def compiles_whole(decoder: Decoder, device: torch.device) -> bool:
    """Whether decoder and loss are compiled as one graph rather than block by block."""
    return device.type == "cpu" and len(decoder.blocks) <= WHOLE_LAYERS


def example_batches(decoder: Decoder, config: Config, micro: int, device: torch.device) -> tuple[Example, Example]:
    """Random micro-batches of the shapes that are trained and scored."""
    documents = config.data.document_mask
    return example_batch(decoder, micro, documents, device), example_batch(decoder, config.eval.micro or micro, documents, device)


def example_batch(decoder: Decoder, batch: int, documents: bool, device: torch.device) -> Example:
    """Random tokens (batch, context), and documents of random lengths if `documents`."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, decoder.model.context)
    tokens_bt = torch.randint(decoder.model.vocab, shape, generator=generator)
    borders_bt = torch.rand(shape, generator=generator) < 4 / shape[1]
    return tokens_bt.to(device), borders_bt.cumsum(1).to(device, torch.int32) if documents else None


def check_whole(decoder: Decoder, compiled: LossFunction, train_bt: Example, score_bt: Example, dtype: torch.dtype, chunk: int) -> str:
    """Compare the compiled loss and its gradients with the eager ones; return what is wrong, or an empty string."""

    def results(loss_of: Callable[..., Tensor], example_bt: Example) -> dict[str, Tensor]:
        tokens_bt, documents_bt = example_bt
        loss = loss_of(decoder, tokens_bt, tokens_bt.roll(-1, 1), documents_bt, dtype, chunk)
        if loss.requires_grad:
            loss.backward()
        return {"loss": loss.detach(), **take_gradients(decoder)}

    return compare(decoder, results, sequence_loss, compiled, train_bt, score_bt, dtype)


def check_blocks(decoder: Decoder, train_bt: Example, score_bt: Example, dtype: torch.dtype, split: bool = False) -> str:
    """Compare one compiled block of each structure with the eager one; return what is wrong, or an empty string.

    With `split`, both leave the weights' gradients for later, so that what is left over from a compiled backward pass is checked too.
    """
    for block in representative_blocks(list(decoder.blocks.values())):

        def results(forward: Callable[..., Tensor], example_bt: Example, block: nn.Module = block) -> dict[str, Tensor]:
            with later.split(split):
                return block_results(decoder, block, forward, example_bt, dtype)

        compiled = torch.compile(block, dynamic=False, options=KEEP_BUFFERS if split else None)
        failure = compare(decoder, results, block, compiled, train_bt, score_bt, dtype)
        if failure:
            return failure
    return ""


def compare(
    decoder: Decoder,
    results: Callable[[Callable[..., Tensor], Example], dict[str, Tensor]],
    eager: Callable[..., Tensor],
    compiled: Callable[..., Tensor],
    train_bt: Example,
    score_bt: Example,
    dtype: torch.dtype,
) -> str:
    """What is wrong with the `results` of `compiled` in training and in evaluation; an empty string if nothing is."""
    try:
        pairs = [(results(eager, train_bt), results(compiled, train_bt))]
        decoder.eval()
        with torch.no_grad():
            pairs.append((results(eager, score_bt), results(compiled, score_bt)))
    except Exception as error:  # the compiler may fail in any way; the run must not
        return f"the compiler failed on this model ({type(error).__name__}: {str(error).splitlines()[0][:160]})"
    finally:
        decoder.train()
    for references, values in pairs:
        for name, reference in references.items():
            difference = ((values[name] - reference).norm() / reference.norm().clamp_min(1e-12)).item()
            if not difference <= TOLERANCE[dtype]:
                return f"the compiled {name} differs from the eager one by {difference:.1e} (allowed {TOLERANCE[dtype]:.0e})"
    return ""


def representative_blocks(blocks: list[nn.Module]) -> list[nn.Module]:
    """One block of each structure (a dense one and one with experts, say)."""
    seen = {tuple(name for name, _ in block.named_parameters()): block for block in reversed(blocks)}
    return list(seen.values())


def block_results(decoder: Decoder, block: nn.Module, forward: Callable[..., Tensor], example_bt: Example, dtype: torch.dtype) -> dict[str, Tensor]:
    """The block's output for a random input and, where they are taken, the gradients of a fixed random projection of it."""
    tokens_bt, documents_bt = example_bt
    generator = torch.Generator().manual_seed(0)
    x_btd = torch.randn(*tokens_bt.shape, decoder.model.dim, generator=generator).to(tokens_bt.device, dtype).requires_grad_()
    y_btd = forward(x_btd, *decoder.sequence.context(tokens_bt, documents_bt))
    if not y_btd.requires_grad:
        return {"output": y_btd}
    weight = torch.linspace(-1, 1, y_btd.numel(), device=y_btd.device, dtype=y_btd.dtype).view_as(y_btd)
    with later.collect() as left:
        (y_btd * weight).float().sum().backward()
    finish(left)
    assert x_btd.grad is not None
    return {"output": y_btd.detach(), "gradient of its input": x_btd.grad, **take_gradients(block)}


def take_gradients(module: nn.Module) -> dict[str, Tensor]:
    """The gradients of the module's parameters, which it no longer has afterwards."""
    gradients = {f"gradient of {name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return gradients
