"""One layout held against one plain process: loss, every gradient, the gradient's norm, and the losses of many optimizer steps.

Both sides start from the same initial weights (a pure function of seed and name) and see the same random sequences, so in float64 they may differ
only by the order of additions: 1e-10 relative for one step, 1e-8 for the losses of twenty, where differences have grown. The plain side takes each
global batch in one piece, so that accumulation over micro-batches is held against none. In float32 and bfloat16 the plain process is itself off
its float64 self by rounding; a layout may be off by a few times that (`ROUNDING`).

Where a case balances work, every step's shares of the batch are drawn at random instead of measured, so that uneven ones are met.

Also checked: that all replicas of a weight hold the same bits after those steps. A replica that drifts is wrong long before the loss
shows it.

Every rank of the world calls `check`; the lead alone computes the plain side, the others wait for it within the collectives' deadline.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penstock.comm import Axis, World
from penstock.config import Config, ConfigError, parse_config, with_values
from penstock.data import Batch
from penstock.data.batches import IGNORED
from penstock.engine import Core, StopRequest, accumulate, apply_gradients, build_core, check_world, gradient_norm, next_result
from penstock.lab.cases import Case
from penstock.models import balance_experts

ONE_STEP, MANY_STEPS, STEPS = 1e-10, 1e-8, 20
#: Accepted error in a coarser format, as a multiple of the plain process's own, and the least error meant, in roundings of the format.
ROUNDING, FLOOR = 4.0, 8.0
#: Sections of the config that say how ranks work together; one plain process has their defaults.
BETWEEN_RANKS = ("layout", "pipeline", "exchange", "balance")


@dataclass(frozen=True)
class Result:
    """Relative errors of a case, and the verdict: 'equal', 'differs', or 'refused' with the sentence that refused it."""

    name: str
    ranks: int
    settings: dict[str, Any]
    verdict: str
    why: str = ""
    loss: float = 0.0
    gradient: float = 0.0
    worst: str = ""
    norm: float = 0.0
    steps: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """As printed with --json."""
        return asdict(self)


@dataclass(frozen=True)
class Trace:
    """What one side computed: first loss, gradients and norm, then the losses of all steps."""

    loss: float
    gradients: dict[str, Tensor]
    norm: float
    losses: list[float]


class RandomPlan:
    """Random sequences with random documents and a few targets that are not learned: sample `g` is a pure function of (seed, g)."""

    def __init__(self, config: Config) -> None:
        self.config, self.global_batch = config, config.batch.global_

    def sample_ids(self, step: int) -> np.ndarray:
        """The samples of global batch `step`, int64 (global_batch,)."""
        return step * self.global_batch + np.arange(self.global_batch, dtype=np.int64)

    def fetch(self, sample_ids: np.ndarray) -> Batch:
        """The samples as a batch of shape (b, context)."""
        rows = [self._sample(int(i)) for i in sample_ids]
        tokens, targets, documents = (np.stack(column) for column in zip(*rows))
        return Batch(tokens, targets, documents if self.config.data.document_mask else None)

    def describe(self, sample_id: int) -> str:
        """Name of a sample, for messages."""
        return f"random sample {sample_id}"

    def _sample(self, sample_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        context, draw = self.config.model.context, np.random.default_rng((self.config.run.seed, sample_id))
        window = draw.integers(0, self.config.model.vocab, context + 1)
        documents = np.cumsum(draw.random(context) < 4 / context).astype(np.int32)
        targets = window[1:].copy()
        targets[draw.random(context) < 0.1] = IGNORED
        return window[:-1], targets, documents


def check(world: World, config: Config, case: Case, plain: dict[str, Trace]) -> Result:
    """Hold `case` against the plain process; `plain` keeps the lead's traces of set-ups that several cases share."""
    try:
        wanted = with_values(config, case.settings)
        check_world(wanted, world.size)
    except ConfigError as error:
        return Result(case.name, case.ranks, case.settings, "refused", str(error))
    core = build_core(wanted, world, RandomPlan(wanted), StopRequest(supervised=True), print)
    trace = trace_steps(core)
    drift = drifted(core)
    if not world.is_lead:
        return Result(case.name, case.ranks, case.settings, "checked by rank 0")
    return _judge(case, wanted, trace, lambda c: _plain_trace(c, plain), drift)


def trace_steps(core: Core) -> Trace:
    """Gradients of the first step, before it is taken with them, then the other steps."""
    draw_shares(core, 0)
    sums, totals, grads = accumulate(core, 0)
    norm = gradient_norm(core, grads, 0.0).item()
    gradients = {name: _whole_gradient(core, name) for name in core.weights.locals}
    losses = []
    if core.late is None:
        losses.append(apply_gradients(core, 0, sums, totals, grads).loss)
    elif core.config.model.moe.experts:
        balance_experts(core.decoder, 0.0, None)  # steps that are checked later compute their gradients themselves: the same tokens come again
    for step in range(len(losses), core.config.train.steps):
        draw_shares(core, step + 1)
        losses.append(next_result(core, step, step == core.config.train.steps - 1).loss)
    return Trace((totals[0] / totals[1]).item(), gradients, norm, losses)


def draw_shares(core: Core, step: int) -> None:
    """Where work is balanced, give the replicas random shares of the step's batch, the same on all ranks; even ones if few others can be computed."""
    if not core.balancer.measured:
        return
    rules, draw = core.balancer.rules(core.micro), random.Random(f"{core.config.run.seed} {step}")
    for _ in range(100):
        cuts = sorted(draw.sample(range(1, rules.sequences), rules.replicas - 1))
        shares = tuple(end - start for start, end in itertools.pairwise([0, *cuts, rules.sequences]))
        if rules.allow(shares) and shares != rules.even:
            break
    core.balancer.shares = shares if rules.allow(shares) else rules.even


def drifted(core: Core) -> list[str]:
    """Weights of which some replica holds other bits, by name; every rank must call it."""
    together: dict[tuple[str, torch.dtype], tuple[Axis, list[str]]] = {}
    for name, tensor in core.weights.locals.items():
        axis = core.mesh.replicas(core.weights.placements[name])
        together.setdefault((axis.name, tensor.dtype), (axis, []))[1].append(name)
    differs = dict.fromkeys(core.weights.locals, 0.0)
    for axis, names in together.values():
        flat = torch.cat([core.weights.locals[name].detach().reshape(-1) for name in names])
        highest, lowest = axis.all_reduce(torch.cat([flat, -flat]), "verify", maximum=True).chunk(2)
        parts = (highest == -lowest).split([core.weights.locals[name].numel() for name in names])
        differs |= {name: float(not part.all()) for name, part in zip(names, parts)}
    seen = core.world.sum_(torch.tensor(list(differs.values()), dtype=torch.float64, device=core.world.device), "verify")
    return [name for name, ranks in zip(differs, seen.tolist()) if ranks]


def _whole_gradient(core: Core, name: str) -> Tensor:
    tensor = core.weights.locals[name]
    grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
    return core.weights.whole(name, grad, "verify").double()


def _plain_trace(config: Config, known: dict[str, Trace]) -> Trace:
    """What one plain process computes; cases that differ only in how ranks work together share it."""
    alone = parse_config({section: values for section, values in config.tree().items() if section not in BETWEEN_RANKS})
    key = alone.model_dump_json()
    if key not in known:
        world = World()
        known[key] = trace_steps(build_core(alone, world, RandomPlan(alone), StopRequest(supervised=True), print))
    return known[key]


def _judge(case: Case, config: Config, trace: Trace, plain: Any, drift: Sequence[str]) -> Result:
    exact = plain(with_values(config, {"precision.compute": "float64", "batch.micro": config.batch.global_}))
    errors = _errors(trace, exact)
    if config.precision.compute == "float64":
        allowed = {"loss": ONE_STEP, "gradient": ONE_STEP, "norm": ONE_STEP, "steps": MANY_STEPS}
    else:
        own, epsilon = _errors(plain(config), exact), torch.finfo(getattr(torch, config.precision.compute)).eps
        allowed = {key: ROUNDING * max(own[key][0], FLOOR * epsilon) for key in own}
    beyond = [f"{key} is off by {errors[key][0]:.1e} (allowed {limit:.0e})" for key, limit in allowed.items() if not errors[key][0] <= limit]
    beyond += [f"replicas of {', '.join(drift[:3])} hold different bits"] if drift else []
    return Result(
        case.name, case.ranks, case.settings, "differs" if beyond else "equal", "; ".join(beyond),
        **{key: errors[key][0] for key in errors}, worst=errors["gradient"][1],
    )  # fmt: skip


def _errors(trace: Trace, exact: Trace) -> dict[str, tuple[float, str]]:
    """Relative error of each quantity, and where it is largest."""
    gradients = {name: _relative(trace.gradients[name], exact.gradients[name]) for name in exact.gradients}
    worst = max(gradients, key=lambda name: gradients[name] if gradients[name] == gradients[name] else float("inf"))
    steps = [abs(a - b) / abs(b) for a, b in zip(trace.losses, exact.losses, strict=True)]
    return {
        "loss": (abs(trace.loss - exact.loss) / abs(exact.loss), ""),
        "gradient": (gradients[worst], worst),
        "norm": (abs(trace.norm - exact.norm) / exact.norm, ""),
        "steps": (float(np.max(steps)), ""),
    }


def _relative(value: Tensor, exact: Tensor) -> float:
    return ((value - exact).norm() / exact.norm().clamp_min(1e-300)).item() if exact.any() else value.norm().item()
