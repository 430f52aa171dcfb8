"""Hugging Face folders in and out: config.json, generation_config.json and safetensors; never a pickle.

Weights are written in float32, the format of our masters, in files of at most 5 GB. A folder appears whole or not at all: it is
written beside its place and then renamed. Reading streams tensor by tensor; every tensor of the model must be there with its shape and
nothing be left over, because a forgotten one would train from noise without a word. Memory: one file's tensors when writing, the model
when reading.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from penstock.config import ModelSection, UserError
from penstock.models.decoder import Decoder
from penstock.models.hf_config import from_hf_config, to_hf_config
from penstock.models.hf_names import BIAS, hf_names

INDEX = "model.safetensors.index.json"
#: Formats whose values float32 holds exactly.
READABLE = (torch.float32, torch.bfloat16, torch.float16)


def export_hf(decoder: Decoder, folder: Path, *, end_id: int | None, file_bytes: int = 5_000_000_000) -> None:
    """Write `decoder` as a folder that transformers loads; `end_id` is the token that ends a document, if there is one.

    Raises `UserError` where no family holds the model, the folder is not empty, or the disk refuses.
    """
    config = to_hf_config(decoder.model, end_id)
    _check_bias(decoder, config["model_type"])
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_json(partial / "config.json", config)
        _write_json(partial / "generation_config.json", {"bos_token_id": end_id, "eos_token_id": end_id})
        _write_tensors(decoder, partial, file_bytes)
        os.rename(partial, folder)  # takes the place of an empty folder too
    except (OSError, SafetensorError) as error:
        raise UserError(f"could not write {folder}: {error}; name a new or empty folder on a disk with room for the weights") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def import_hf(folder: Path) -> tuple[ModelSection, dict[str, Tensor]]:
    """Read a Hugging Face folder: the model's resolved section and its state by our names, float32 on the CPU.

    Raises `UserError` for a family or feature that Penstock does not have, and for missing, surplus or damaged tensors.
    """
    model = from_hf_config(_read_json(folder / "config.json"))
    with torch.device("meta"):
        wanted = Decoder(model).state_dict()
    with ExitStack() as open_files:
        try:
            reader = _Reader(folder, open_files)
            tensors = {name: reader.take(name, tuple(value.shape), model) for name, value in wanted.items()}
        except (OSError, SafetensorError) as error:
            raise UserError(f"could not read the weights in {folder}: {error}; the files may be damaged or incomplete") from None
        reader.check_nothing_left(model)
    return model, tensors


class _Reader:
    """Takes tensors by their Hugging Face names out of a folder's safetensors files, and knows which were left."""

    def __init__(self, folder: Path, open_files: ExitStack) -> None:
        self.folder = folder
        handles = [open_files.enter_context(safe_open(file, framework="pt")) for file in _weight_files(folder)]
        self.places = {key: handle for handle in handles for key in handle.keys()}  # noqa: SIM118 (a handle is no dict)

    def take(self, name: str, shape: tuple[int, ...], model: ModelSection) -> Tensor:
        """Our tensor `name` of `shape`, float32."""
        if name.endswith(BIAS) and model.moe.scoring == "softmax":
            return torch.zeros(shape)
        sources = hf_names(name, model.moe.experts)
        if len(shape) < 3:
            return self._one(sources[0], shape)
        stacked = torch.empty(shape)
        for row, source in zip(stacked, sources):
            row.copy_(self._one(source, shape[1:]))
        return stacked

    def check_nothing_left(self, model: ModelSection) -> None:
        """Raise `UserError` if the files hold a tensor the model has no place for."""
        for key in self.places:
            if not _dispensable(key, model):
                raise UserError(f"{self.folder}: the weights hold {key!r}, which the model of config.json does not have")

    def _one(self, source: str, shape: tuple[int, ...]) -> Tensor:
        handle = self.places.pop(source, None)
        if handle is None:
            raise UserError(f"{self.folder}: the weights lack {source!r}; a file may be missing")
        value = handle.get_tensor(source)
        if tuple(value.shape) != shape or value.dtype not in READABLE:
            found = f"{tuple(value.shape)} {value.dtype}"
            raise UserError(f"{self.folder}: {source!r} is {found}; config.json asks for {shape} in float32, bfloat16 or float16")
        return value.float()


def _weight_files(folder: Path) -> list[Path]:
    """The files that the index names, else the one file; others beside them may be another format's copies."""
    if (folder / INDEX).is_file():
        return [folder / Path(name).name for name in sorted(set(_read_json(folder / INDEX).get("weight_map", {}).values()))]
    files = [folder / "model.safetensors"] if (folder / "model.safetensors").is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no .safetensors file; save the model in that format (pickles are not read)")
    return files


def _dispensable(key: str, model: ModelSection) -> bool:
    """A stored copy of a tied head, old checkpoints' rotary tables, and layers past the last (multi-token prediction)."""
    layer = re.match(r"model\.layers\.(\d+)\.", key)
    return (
        (key == "lm_head.weight" and model.tie_embeddings)
        or key.endswith("rotary_emb.inv_freq")
        or (layer is not None and int(layer[1]) >= model.layers)
    )


def _check_bias(decoder: Decoder, family: str) -> None:
    for name, buffer in decoder.named_buffers():
        if family == "qwen3_moe" and name.endswith(BIAS) and buffer.count_nonzero():
            raise UserError(
                "cannot export to Hugging Face: no family holds the balancing bias learnt with model.moe.scoring = 'softmax'; "
                "train with model.moe.bias_rate = 0 or model.moe.scoring = 'sigmoid'"
            )


def _write_tensors(decoder: Decoder, folder: Path, file_bytes: int) -> None:
    shards = _shards(decoder, file_bytes)
    if len(shards) == 1:
        return save_file(_hf_tensors(decoder, shards[0]), folder / "model.safetensors", metadata={"format": "pt"})
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = _hf_tensors(decoder, names)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    total = sum(value.numel() * 4 for value in decoder.state_dict().values())
    return _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _shards(decoder: Decoder, file_bytes: int) -> list[list[str]]:
    """Our tensors' names, cut where a file would grow above `file_bytes`; a tensor is never cut."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, value in _exported(decoder):
        if size and size + value.numel() * 4 > file_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += value.numel() * 4
    return shards


def _hf_tensors(decoder: Decoder, names: list[str]) -> dict[str, Tensor]:
    state = dict(_exported(decoder))
    out: dict[str, Tensor] = {}
    for name in names:
        value = state[name].detach().to("cpu", torch.float32)
        targets = hf_names(name, decoder.model.moe.experts)
        out |= dict(zip(targets, value.unbind() if value.dim() == 3 else [value]))
    return {name: value.contiguous() for name, value in out.items()}


def _exported(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    for name, value in decoder.state_dict().items():
        if not (name.endswith(BIAS) and decoder.model.moe.scoring == "softmax"):
            yield name, value


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name the folder of a Hugging Face model") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object; it is not a model's config.json")
    return values
