"""Using a run's model without training it: speak, score other text, export it, and make a run from foreign weights.

Each opens the run's newest snapshot, takes the averaged weights where the run keeps them, and needs only the run's folder:
the tokenizer is in it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.comm import World, choose_device
from penstock.config import Config, UserError, with_values
from penstock.data import Tokenizer, load_tokenizer, text_stream, validation_plan
from penstock.engine.build import DTYPES, batch_loss
from penstock.engine.evaluate import continue_text, window_batch
from penstock.engine.requests.agenda import due_after, settings_at
from penstock.engine.starting.resolve import cores, settle_machine
from penstock.engine.state import Progress, state_tensors
from penstock.engine.story.origin import origin_of, record_origin
from penstock.models import Decoder, build_decoder, export_hf, import_hf
from penstock.optim import WeightAverage, build_optimizer
from penstock.parallel import laid_whole
from penstock.store import Run, check_format, create_run, in_use, list_snapshots, load_snapshot, read_manifest, save_snapshot


@dataclass(frozen=True)
class Model:
    """A run's trained model, ready to use."""

    run: Run
    config: Config
    decoder: Decoder
    tokenizer: Tokenizer
    progress: Progress


def open_model(run: Run, device: str | None = None) -> Model:
    """Load the weights of a run's newest snapshot (averaged where kept); raises `UserError` if there is none."""
    check_format(run)
    snapshots = list_snapshots(run.folder)
    if not snapshots:
        raise UserError(f"{run.path} has no snapshot yet; train it first, or go on with another run")
    manifest = read_manifest(snapshots[-1])
    config = settings_at(run.config(), due_after(run, manifest), manifest)
    tokenizer = load_tokenizer(run.path / "tokenizer")
    check_vocabulary(config, tokenizer, run)
    target = choose_device(device or config.run.device)
    decoder = build_decoder(config.model, config.run.seed, target)
    tensors = plain_state(decoder, config)
    with in_use(snapshots[-1]):
        numbers = load_snapshot(snapshots[-1], tensors)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(tensors.get(f"ema.{name}", parameter))
    return Model(run, config, decoder.eval(), tokenizer, Progress(**numbers))


def plain_state(decoder: Decoder, config: Config) -> dict[str, torch.Tensor]:
    """The live tensors of a run's state in one process, with the moments and the average that its optimizer keeps."""
    laid = laid_whole(decoder)
    average = WeightAverage(laid.weights.locals, config.optim.ema) if config.optim.ema else None
    return state_tensors(laid.weights, laid.buffers, build_optimizer(laid.weights.locals, config.optim), average)


def check_vocabulary(config: Config, tokenizer: Tokenizer, run: Run) -> None:
    """Raise `UserError` if the run's tokenizer can give ids that its model has no row for."""
    if tokenizer.vocab_size > config.model.vocab:
        raise UserError(
            f"the tokenizer in {run.path / 'tokenizer'} has {tokenizer.vocab_size} tokens, but the run's model.vocab is {config.model.vocab}; "
            "restore the tokenizer the run was trained with"
        )


def speak(model: Model, prompt: str, max_new: int, temperature: float, top_k: int, seed: int) -> str:
    """A continuation of `prompt` in text."""
    dtype = DTYPES[model.config.precision.compute]
    return continue_text(model.decoder, model.tokenizer, prompt, max_new, temperature, top_k, seed, dtype)


def score(model: Model, path: str) -> dict[str, Any]:
    """Mean cross-entropy of the text at `path` under the model: nats a token, bits a byte, perplexity."""
    config = model.config
    stream, n_bytes = text_stream(with_values(config, {"data.path": path, "data.max_bytes": 0}).data, model.tokenizer)
    plan = validation_plan(stream, config.model.context, 0, config.data.document_mask)
    device, dtype = next(model.decoder.parameters()).device, DTYPES[config.precision.compute]
    total, tokens = 0.0, 0
    with torch.no_grad():
        size = config.batch.first_micro
        for start in range(0, plan.count, size):
            batch = window_batch(plan, np.arange(start, min(start + size, plan.count)), size)
            total += batch_loss(model.decoder, batch, device, dtype, config.train.loss_chunk).item()
            tokens += int((batch.targets_bt >= 0).sum())
    loss = total / tokens
    return {
        "run": str(model.run.path),
        "step": model.progress.step,
        "data": path,
        "tokens": tokens,
        "loss": loss,
        "perplexity": float(np.exp(min(loss, 700.0))),
        "bits_per_byte": total / np.log(2) / n_bytes,
    }


def export_model(model: Model, folder: Path) -> dict[str, Any]:
    """Write a folder that transformers loads: weights, config and tokenizer."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; choose another")
    export_hf(model.decoder, folder, end_id=model.tokenizer.end_id)
    model.tokenizer.to_hf(folder)
    return {"run": str(model.run.path), "step": model.progress.step, "folder": str(folder)}


def import_model(source: Path, config: Config, folder: Path) -> Run:
    """Make a run at step 0 from a Hugging Face folder's weights and tokenizer, to go on from with `penstock resume`."""
    model, tensors = import_hf(source)
    if not (source / "tokenizer.json").is_file():
        raise UserError(f"{source} has no tokenizer.json; save the tokenizer beside the weights")
    values = {"model": model.model_dump(by_alias=True), "data.tokenizer": str(folder.resolve() / "tokenizer" / "tokenizer.json")}
    config = settle_machine(with_values(config, values), cores())
    run = create_run(config, folder, {"command": f"penstock import {source}", "source": str(source)})
    try:
        record_origin(run)
        _write_first_state(run, config, tensors, source)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return run


def _write_first_state(run: Run, config: Config, tensors: dict[str, torch.Tensor], source: Path) -> None:
    shutil.copytree(source, run.path / "tokenizer", ignore=lambda _, names: [n for n in names if not n.startswith("tokenizer")])
    check_vocabulary(config, load_tokenizer(run.path / "tokenizer"), run)
    decoder = build_decoder(config.model, config.run.seed, torch.device("cpu"))
    decoder.load_state_dict(tensors)
    save_snapshot(run.folder, 0, plain_state(decoder, config), Progress().numbers(), World(), about=origin_of(run))
