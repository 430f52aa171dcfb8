"""What the ranks of a made-up run measure: about as many metrics as a real one, with its names, units and habits, and faults put into them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Values = dict[str, np.ndarray]

GLOBAL, CONTEXT, PARAMETERS = 64, 512, 124_000_000


@dataclass(frozen=True)
class Faults:
    """From which step on something is wrong; None: never. `straggler` is (step, rank), and lasts `lasts` steps."""

    straggler: tuple[int, int] | None = None
    lasts: int = 10**9
    poisoned: int | None = None
    non_finite: int | None = None


@dataclass
class MadeValues:
    """`at(steps)` gives every metric as [steps, ranks]."""

    ranks: int = 4
    layers: int = 12
    total: int = 2000
    seed: int = 0
    rate: float = 6e-4
    #: Experts of each layer, and whether ranks have a device and lie on two nodes.
    experts: int = 0
    device: bool = False
    faults: Faults = field(default_factory=Faults)

    def at(self, steps: np.ndarray) -> Values:
        """All metrics of those steps."""
        random = np.random.default_rng((self.seed, int(steps[0])))
        step = np.asarray(steps, float)[:, None]

        def noise(size: float) -> np.ndarray:
            return size * random.standard_normal((len(steps), self.ranks))

        def same(values: np.ndarray) -> np.ndarray:
            return np.repeat(values[:, :1], self.ranks, 1)

        poison = np.zeros_like(step)
        if self.faults.poisoned is not None:
            poison = np.where(step >= self.faults.poisoned, np.exp(-(step - self.faults.poisoned) / 12), 0.0)
        loss = same(2.1 + 8.8 * (1 + step / 25) ** -0.5 + noise(0.03) + 2.5 * poison)
        norm = same((0.35 + 2.5 / (1 + step / 60)) * np.exp(noise(0.2)) * (1 + 20 * poison))
        if self.faults.non_finite is not None:
            loss = np.where(step >= self.faults.non_finite, np.nan, loss)
            norm = np.where(step >= self.faults.non_finite, np.inf, norm)
        warm = np.minimum(1.0, step / 100) * (0.1 + 0.45 * (1 + np.cos(np.pi * np.minimum(1, step / self.total))))
        values = {"loss/total": loss, "loss/micro.00": loss + noise(0.05), "loss/micro.01": loss + noise(0.05), "grad_norm/total": norm}
        for layer in range(self.layers):
            name = f"layer.{layer:02d}"
            depth = 1 + layer / self.layers
            values[f"grad_norm/{name}"] = same(norm / np.sqrt(self.layers) / depth * np.exp(noise(0.1)))
            values[f"grad_norm/{name}.attention"] = values[f"grad_norm/{name}"] * 0.6
            values[f"grad_norm/{name}.ffn"] = values[f"grad_norm/{name}"] * 0.8
            values[f"activation_norm/{name}"] = same(depth * (1 + step / 5000) + noise(0.02))
            values[f"weight_norm/{name}"] = same(30 * depth + step / 100 + noise(0.0))
            values[f"update_ratio/{name}"] = same(1e-3 * warm * np.exp(noise(0.1)))
            values[f"attention_entropy/{name}"] = same(4.5 - layer / 6 + noise(0.05))
            values[f"logit_max/{name}"] = same(8 + layer + step / 200 + noise(0.3))
            values[f"expert_load/{name}.max"] = same(1.3 + 0.4 / (1 + step / 50) + np.abs(noise(0.1)))
            values[f"expert_load/{name}.min"] = same(0.7 - 0.3 / (1 + step / 50) - np.abs(noise(0.05)))
        own = 0.4 * (1 + 0.02 * np.arange(self.ranks)) * np.exp(noise(0.03))
        if self.faults.straggler is not None:
            begin, rank = self.faults.straggler
            slow = (step >= begin) & (step < begin + self.faults.lasts) & (np.arange(self.ranks) == rank)
            own = np.where(slow, 2.2 * own, own)
        full = own.max(1, keepdims=True) + 0.03
        tokens = float(GLOBAL * CONTEXT)
        values |= {
            "time/step": same(full + noise(0.001)), "time/own": own, "time/data": 0.01 + np.abs(noise(0.003)), "time/forward_backward": 0.8 * own,
            "time/exchange": full - own, "time/optimizer": 0.1 * own, "time/between": 0.002 + np.abs(noise(0.001)) + 0.4 * (step % 50 == 0),
            "wait/total": full - own, "wait/replicate.gradients": 0.8 * (full - own), "wait/exchange.exposed": 0.6 * (full - own),
            "wait/exchange.hidden": 0.05 + np.abs(noise(0.01)), "bytes/replicate.gradients": same(2.0 * PARAMETERS + 0 * noise(0)),
            "bytes/world.totals": same(64.0 + 0 * noise(0)), "calls/replicate.gradients": same(12.0 + 0 * noise(0)),
            "pipeline/bubble": 0.18 + noise(0.01), "pipeline/planned_bubble": same(0.16 + 0 * noise(0)), "pipeline/busy": 0.8 * own,
            "pipeline/idle": 0.2 * own, "memory/resident": 2.4e9 + 2e6 * np.sqrt(step) + noise(1e6), "memory/weights": same(5e8 + 0 * noise(0)),
            "memory/gradients": same(5e8 + 0 * noise(0)), "memory/moments": same(1e9 + 0 * noise(0)), "memory/activations": 7e8 + noise(1e6),
            "host/cpu": np.clip(0.7 + noise(0.05), 0, 1), "host/process_cpu": 1.9 + noise(0.1), "host/memory_available": 1.2e10 + noise(1e8),
            "host/temperature": 61 + noise(1.0), "host/disk_free": same(4e11 - 1e6 * step + 0 * noise(0)), "host/load_1m": 3 + noise(0.2),
            "data/tokens": same(tokens + 0 * noise(0)), "data/tokens_total": same(tokens * step + 0 * noise(0)),
            "data/entropy": 6.1 + noise(0.05) - 2 * poison, "data/surprise": 7.2 + noise(0.05) + 4 * poison, "data/repeated": 0 * noise(0),
            "data/sequences": GLOBAL / self.ranks + 0 * noise(0), "optim/lr": same(self.rate * warm + 0 * noise(0)), "optim/lr_factor": same(warm + 0 * noise(0)),
            "optim/progress": same(step / self.total + 0 * noise(0)), "optim/clip_scale": np.minimum(1.0, 1 / norm),
            "cost/tokens_per_s": same(tokens / full), "cost/mfu": same(0.38 * 0.43 / full), "cost/flops": same(6 * tokens * PARAMETERS + 0 * noise(0)),
            "cost/parameters": same(PARAMETERS + 0 * noise(0)), "cost/ranks": same(self.ranks + 0 * noise(0)), "snapshot/age": same(step % 50 + 0 * noise(0)),
            "fault/non_finite": same(0.0 + ~np.isfinite(loss)), "fault/recoveries": same(0 * noise(0)), "monitor/seconds": 2e-4 + np.abs(noise(2e-5)),
        }  # fmt: skip
        if self.experts:
            for layer in range(self.layers):
                even = 1 + np.sin(np.arange(self.experts) + layer) * np.exp(-step / 300) + 0.05 * random.standard_normal((len(steps), self.experts))
                for expert in range(self.experts):
                    load = even[:, expert : expert + 1] * (0.0 if (layer, expert) == (1, 2) else 1.0)
                    values[f"expert_load/layer.{layer:02d}.expert.{expert:03d}"] = np.repeat(np.maximum(load, 0), self.ranks, 1)
        if self.device:
            values |= self._of_device(noise, same, full - own)
        return values

    def _of_device(self, noise, same, waited) -> Values:
        """What ranks with a device on two nodes measure besides."""
        still = same(0 * noise(0))
        ways = {
            "replicate.gradients": (4e8, 0.02, 0.15), "node.gradients": (1e8, 0.3, 0.4), "shard.weights": (6e8, 0.05, 0.2), "tensor.activations": (3e8, 0.25, 0.0),
            "pipeline.activations": (2e7, 0.1, 0.0), "context.keys": (5e7, 0.06, 0.05), "expert.tokens": (1.2e8, 0.12, 0.0),
        }  # fmt: skip
        found = {
            "memory/allocated": 3.1e9 + noise(2e7), "memory/allocated_peak": 5.2e9 + noise(5e7), "memory/reserved": 5.9e9 + still, "memory/device_total": 8.5e9 + still,
            "memory/averages": 2.5e8 + still, "device/temperature": 61 + 4 * np.arange(self.ranks) / self.ranks + noise(0.5), "device/busy": 0.9 + noise(0.01),
        }  # fmt: skip
        for way, (size, exposed, hidden) in ways.items():
            found |= {f"bytes/{way}": size + still, f"calls/{way}": 12 + still, f"wait/{way}": exposed * (waited + 0.01), f"wait/{way}.hidden": hidden * (0.05 + np.abs(noise(0.005)))}
            if way.startswith(("node", "pipeline")):
                found[f"bytes/{way}.between"] = size + still
        return found
