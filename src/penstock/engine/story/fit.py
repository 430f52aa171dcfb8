"""Whether a stored state fits a config, and how what does not fit begins anew.

The state that a config has is outlined without memory: names and full shapes. Tensors of the same name and shape fit, and so do those with other
rows of nodes, which are taken up as they are on other nodes (`engine/state.py`). What a tensor begins with is a function of seed and name, so one new
layer or head begins as it would have in a new run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from penstock.config import Config
from penstock.engine.state import parameter_of, when_nodes_change
from penstock.engine.use import plain_state
from penstock.models import Decoder, drawn_parameter
from penstock.store.cells.node_rows import has_other_rows

#: Parameters with a row for each token.
VOCABULARY = ("embedding.weight", "head.weight")
#: Most tensors that a refusal names.
MOST_SAID = 4
Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class Fit:
    """Tensors by what becomes of them: `kept`, begun `anew`, `left_out`; `why` says of each of the others what does not fit."""

    kept: list[str] = field(default_factory=list)
    anew: dict[str, Tensor] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)

    def sentence(self) -> str:
        """What does not fit, by name."""
        shown = [f"{name} ({reason})" for name, reason in list(self.why.items())[:MOST_SAID]]
        return ", ".join(shown) + (f" and {len(self.why) - MOST_SAID} more" if len(self.why) > MOST_SAID else "")


def fit_of(stored: Shapes, config: Config, same_tokenizer: bool = True) -> Fit:
    """Hold stored tensors, by their full shapes, against the state that a config has. What nodes withheld of gradients always fits."""
    wanted, fit = outline_state(config), Fit()
    for name, tensor in wanted.items():
        has, needs = stored.get(name), tuple(tensor.shape)
        fits = has == needs or (has is not None and has_other_rows(has, needs, name, when_nodes_change(name)))
        if fits and (same_tokenizer or parameter_of(name) not in VOCABULARY):
            fit.kept.append(name)
        else:
            fit.anew[name] = tensor
            fit.why[name] = "a row for each token of another tokenizer" if fits else f"{has or 'nothing'} there, {needs} here"
    for name in stored.keys() - wanted.keys():
        (fit.kept if name.startswith("exchange.") else fit.left_out).append(name)
    fit.left_out.sort()
    fit.why |= {name: f"{stored[name]} there, nothing here" for name in fit.left_out}
    return fit


def outline_state(config: Config) -> dict[str, Tensor]:
    """The tensors of a config's state by name, without values."""
    with torch.device("meta"):
        decoder = Decoder(config.model)
        return plain_state(decoder.double() if config.precision.compute == "float64" else decoder, config)


def first_values(config: Config, anew: Mapping[str, Tensor], kept: Callable[[str], Tensor | None]) -> dict[str, Callable[[], Tensor]]:
    """How tensors of a state begin: weights as drawn for the seed, averages as the weights, moments, counters and the routers' biases at zero.

    `kept` hands out tensors that do not begin anew, None for others.
    """
    with torch.device("meta"):
        shapes = {name: tuple(parameter.shape) for name, parameter in Decoder(config.model).named_parameters()}

    def first(name: str) -> Tensor:
        kind, _, parameter = name.partition(".")
        like = anew[name]
        if kind == "optim" or parameter not in shapes:
            return torch.zeros(like.shape, dtype=like.dtype)
        weights = kept(f"model.{parameter}") if kind == "ema" else None
        return (drawn_parameter(config.model, config.run.seed, parameter, shapes[parameter]) if weights is None else weights).to(like.dtype)

    return {name: lambda name=name: first(name) for name in anew}  # type: ignore[misc]
