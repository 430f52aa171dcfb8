"""Initial weights as a pure function of (seed, name), the same in every layout and on every device.

Each parameter has a generator of its own, seeded with a hash of the run's seed and the parameter's name (for stacked expert weights
also the expert's number), and is drawn on the CPU. So any rank can draw just what it holds, and no seed checkpoint is needed.

Matrices are normal with standard deviation `init_std`; those that write into the residual stream (`wo`, `down`) are scaled by
1/sqrt(2 layers), so that its variance does not grow with depth (GPT-2, Radford et al. 2019, section 2.3). Norms start at one.

Cost: the CPU draws about 10⁸ numbers a second and core.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from penstock.config import ModelSection
from penstock.models.decoder import Decoder


def load_decoder(model: ModelSection, state: dict[str, Tensor], device: torch.device | str, dtype: torch.dtype) -> Decoder:
    """Build the resolved `model` on `device` with the values of `state`, held in `dtype`."""
    with torch.device("meta"):
        decoder = Decoder(model).to(dtype)
    allocate(decoder, device)
    decoder.load_state_dict(state)
    return decoder


def build_decoder(model: ModelSection, seed: int, device: torch.device | str) -> Decoder:
    """Build the resolved `model` on `device` with its initial weights for `seed`; balancing biases and loads start at zero."""
    with torch.device("meta"):
        decoder = Decoder(model)
    allocate(decoder, device)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.dim() == 3:  # stacked experts, drawn one by one to bound the memory on the CPU
                for expert, weight in enumerate(parameter):
                    weight.copy_(initial_value(model, seed, name, tuple(weight.shape), expert))
            else:
                parameter.copy_(initial_value(model, seed, name, tuple(parameter.shape)))
        for buffer in decoder.buffers():
            buffer.zero_()
    return decoder


def allocate(model: nn.Module, device: torch.device | str) -> None:
    """Give a model on the meta device memory, unset. (Not by `to_empty`, which imports symbolic algebra to find the strides.)"""
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        owner, _, key = name.rpartition(".")
        fresh = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        setattr(model.get_submodule(owner), key, nn.Parameter(fresh) if isinstance(tensor, nn.Parameter) else fresh)


def initial_value(model: ModelSection, seed: int, name: str, shape: tuple[int, ...], expert: int | None = None) -> Tensor:
    """The value of parameter `name` before training, float32 on the CPU; of one expert where `name` is a stack of them."""
    if len(shape) == 1:
        return torch.ones(shape)
    key = f"{seed}/{name}" + ("" if expert is None else f"/{expert}")
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1)
    return torch.empty(shape).normal_(0.0, _std(model, name), generator=generator)


def drawn_parameter(model: ModelSection, seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """A whole parameter before training, float32 on the CPU; stacked experts are drawn one by one."""
    if len(shape) < 3:
        return initial_value(model, seed, name, shape)
    return torch.stack([initial_value(model, seed, name, shape[1:], expert) for expert in range(shape[0])])


def _std(model: ModelSection, name: str) -> float:
    into_residual = {"wo", "down", "down_edf"} & set(name.split("."))
    return model.init_std / math.sqrt(2 * model.layers) if into_residual else model.init_std
