"""Changes of a running run's settings, planned: what each setting takes to change between two steps, and what a set of them will come to.

    now       read anew at every step: only the config is replaced
    optimizer rates, decays and betas: put into the optimizer, whose moments stay
    build     decides how ranks are laid out, batched, exchanged or compiled: a rank's parts are built anew, and the state is carried to them
    grow      the model's structure or function: built anew, and the state made from the old one by growth (`models/growth.py`)
    fixed     what the run is, or read once when ranks start: refused

`PLACES` says it of every setting. A plan is made from settings, ranks and the state's shapes before anything is touched, so what cannot be done is
refused with the run as it was. Cost: outlines of the old and new model without values, some milliseconds. When not to use it: for a run that does
not train; `penstock resume --set` and `runs fork --set` change that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from penstock.config import Config, ConfigError, UserError, changed_settings, with_values
from penstock.engine.exchange import check_exchange
from penstock.engine.requests.grow_state import GrownState, grow_state
from penstock.engine.starting.resolve import check_world, cores, settle_machine
from penstock.engine.state import is_withheld
from penstock.engine.story.fit import Shapes
from penstock.models import count_parameters, resolve_model
from penstock.parallel import build_layout
from penstock.plan.footprint import Footprint
from penstock.plan.layout import heaviest, workloads
from penstock.store.story.diff_text import shown

Place = Literal["now", "optimizer", "build", "grow", "fixed"]

#: Where a setting, or a section's all but those named before, takes effect; and of fixed ones, why they are, and what to do instead.
PLACES: dict[str, tuple[Place, str]] = {
    "run.": ("fixed", "it says what the run is and where; start another one, or fork it"),
    "data.skip": ("now", ""),
    "data.": ("fixed", "it decides what the tokens and samples are; fork the run"),
    "model.": ("grow", ""),
    "batch.": ("build", ""),
    "train.steps": ("now", ""),
    "train.loss_chunk": ("build", ""),
    "optim.kind": ("fixed", "the moments of one optimizer mean nothing to another; fork the run with --partial"),
    "optim.ema": ("build", ""),
    "optim.schedule": ("now", ""),
    "optim.warmup": ("now", ""),
    "optim.decay": ("now", ""),
    "optim.min_lr": ("now", ""),
    "optim.clip": ("now", ""),
    "optim.": ("optimizer", ""),
    "precision.compute": ("build", ""),
    "compile.enabled": ("build", ""),
    "layout.timeout_s": ("fixed", "it is read when the ranks meet; stop the run, and resume it with that"),
    "layout.port": ("fixed", "it is read when the ranks start; stop the run, and resume it with that"),
    "layout.": ("build", ""),
    "pipeline.trace": ("now", ""),
    "pipeline.drift": ("now", ""),
    "pipeline.": ("build", ""),
    "exchange.": ("build", ""),
    "balance.": ("build", ""),
    "survive.": ("fixed", "it is read when the ranks start; stop the run, and resume it with that"),
    "elastic.": ("fixed", "it is read when the ranks start; stop the run, and resume it with that"),
    "eval.": ("now", ""),
    "snapshot.": ("now", ""),
    "cost.": ("now", ""),
    "metrics.every": ("now", ""),
    "metrics.": ("fixed", "it is read when the ranks start; stop the run, and resume it with that"),
    "alerts.": ("fixed", "it is read when the run starts; stop the run, and resume it with that"),
}
#: Memory that must be free, as a multiple of the estimate.
MARGIN = 1.25


@dataclass(frozen=True)
class Memory:
    """Bytes of the fullest rank by estimate: held now and after the change, needed beside what is held now while it is made; and free there."""

    now: int
    after: int
    meanwhile: int
    free: float


@dataclass(frozen=True)
class ChangePlan:
    """What a change comes to: settings (before, after), whether the parts are built anew, what growing keeps, what is lost."""

    step: int
    config: Config
    settings: dict[str, list[Any]]
    builds: bool
    keeps: list[str]
    loses: list[str]
    parameters: list[int]
    memory: Memory | None
    #: Whether graphs will be compiled anew.
    compiles: bool
    grown: GrownState | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        told = {name: getattr(self, name) for name in ("settings", "builds", "compiles", "keeps", "loses", "parameters")}
        return told | {"memory": asdict(self.memory) if self.memory else None}

    def sentence(self) -> str:
        """What changes, in words, as the history tells it."""
        told = ", ".join(f"{name} {shown(was)} → {shown(becomes)}" for name, (was, becomes) in self.settings.items())
        return "; ".join([told, *self.keeps, *(f"lost: {what}" for what in self.loses)])


def place_of(name: str) -> tuple[Place, str]:
    """What a setting takes to change, and why not where it is fixed."""
    return PLACES.get(name) or next(place for key, place in PLACES.items() if key.endswith(".") and name.startswith(key))


def plan_change(
    before: Config, values: dict[str, Any], step: int, ranks: int, nodes: Sequence[int], stored: Shapes, free: float, apart: bool
) -> ChangePlan:
    """Plan to go on after `step` with some settings changed, on so many ranks on these nodes; raises `UserError` naming the key that cannot be.

    `stored` are the full shapes of the state's tensors, `free` the bytes that the fullest rank may still take, and `apart` whether nodes train apart.
    """
    config = _settled(before, values)
    settings = changed_settings(before, config)
    if not settings:
        raise UserError(f"nothing would change: {', '.join(f'{name} = {shown(value)}' for name, value in values.items())} is what the run has")
    _check_fixed(settings)
    if config.train.steps <= step:
        raise UserError(f"train.steps = {config.train.steps} is not after the run's step, {step}; stop the run to end it now")
    places = {place_of(name)[0] for name in settings}
    if not places & {"build", "grow"}:
        return ChangePlan(step, config, settings, False, [], [], [_parameters(before)] * 2, None, False)
    _check_size(before, config, ranks, free)
    check_world(config, ranks)
    check_exchange(config, build_layout(config, ranks, nodes))
    grown = _growth(stored, before, config, apart) if before.model != config.model else None
    memory = _memory(before, config, ranks, nodes, free)
    if MARGIN * max(memory.meanwhile, memory.after - memory.now) > memory.free:
        names = ", ".join(f"{name} = {shown(after)}" for name, (_, after) in settings.items())
        raise UserError(
            f"{names} needs about {_size(memory.meanwhile)} more on a rank while the state is carried over, and {_size(memory.free)} are free "
            f"(a rank would then hold {_size(memory.after)}); choose less, or resume on more ranks"
        )
    keeps, loses = (list(grown.growth.preserves), list(grown.growth.loses)) if grown else ([], [])
    loses += _dropped(before, config, stored)
    parameters = [_parameters(before), _parameters(config)]
    return ChangePlan(step, config, settings, True, keeps, loses, parameters, memory, config.compile.enabled == "on", grown)


def _settled(before: Config, values: dict[str, Any]) -> Config:
    config = with_values(before, values)
    model = resolve_model(config.model, before.model.vocab)
    return settle_machine(with_values(config, {"model": model.model_dump(by_alias=True)}), cores())


def _check_fixed(settings: dict[str, list[Any]]) -> None:
    for name, (was, becomes) in settings.items():
        place, why = place_of(name)
        if place == "fixed":
            raise ConfigError(f"{name} cannot change from {shown(was)} to {shown(becomes)} while the run trains: {why}")
    formats = settings.get("precision.compute", [])
    if "float64" in formats:
        raise ConfigError(
            f"precision.compute cannot change from {formats[0]!r} to {formats[1]!r} while the run trains: float64 holds weights and moments in "
            "another format; choose float32 or bfloat16, or start another run"
        )


def _growth(stored: Shapes, before: Config, config: Config, apart: bool) -> GrownState:
    """The change of structure; the state's other tensors are those of the new settings."""
    if apart:
        changed = ", ".join(name for name in changed_settings(before, config) if name.startswith("model."))
        raise UserError(f"{changed} cannot change while exchange.kind = {before.exchange.kind!r} lets nodes train apart; set that to 'dense' first")
    if bool(before.optim.ema) != bool(config.optim.ema):
        raise UserError("optim.ema cannot begin or end together with a change of the model; change one after the other")
    return grow_state(stored, before, config, same_tokenizer=True)


def _check_size(before: Config, config: Config, ranks: int, free: float) -> None:
    """Refuse at once a model that fits no layout, as already an outline of it would take long: weights and a moment, in equal shares."""
    if config.model != before.model and 8 * _parameters(config) / ranks > free:
        names = ", ".join(f"{name} = {shown(after)}" for name, (_, after) in changed_settings(before, config).items())
        raise UserError(
            f"{names} makes {_parameters(config):,} parameters, {_size(8 * _parameters(config) / ranks)} or more on each of {ranks} ranks, and "
            f"{_size(free)} are free; choose less, or resume on more ranks"
        )


def _dropped(before: Config, config: Config, stored: Shapes) -> list[str]:
    """What of the state, other than the model's, has no place any more."""
    lost = []
    if before.optim.ema and not config.optim.ema:
        lost.append("the average of the weights")
    if any(is_withheld(name) for name in stored) and (before.exchange.kind != config.exchange.kind or before.model != config.model):
        lost.append("what the exchange between nodes has not sent yet")
    return lost


def _memory(before: Config, config: Config, ranks: int, nodes: Sequence[int], free: float) -> Memory:
    now, after = _held(before, ranks, nodes), _held(config, ranks, nodes)
    return Memory(now.total, after.total, after.weights + after.moments, free)


def _held(config: Config, ranks: int, nodes: Sequence[int]) -> Footprint:
    return heaviest(workloads(config, build_layout(config, ranks, nodes)), config.optim)[1]


def _parameters(config: Config) -> int:
    return count_parameters(config.model)["total"]


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.2f} MB"
