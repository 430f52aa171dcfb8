"""Metrics of made-up training runs, as ranks would report them: a loss with warm-up and noise, heavy-tailed times, noisy norms; and faults put into them."""

import numpy as np

from penstock.monitor.series.table import ABSENT, Names, StepTable

LAYERS = 4


class MadeRun:
    """`table(step)` for steps in order; `faults` are functions (run, step, values by name [ranks]) that change what is measured."""

    def __init__(self, seed=0, ranks=4, steps=2000, schedule="cosine", noise=0.02, faults=()):
        self.random, self.ranks, self.steps, self.schedule, self.noise, self.faults = np.random.default_rng(seed), ranks, steps, schedule, noise, faults
        self.names, self.time = Names(), 1.7e9
        self.speed = 0.4 * (1 + 0.05 * self.random.random(ranks))

    def rate(self, step):
        warm = min(1.0, step / 100)
        if self.schedule == "restarts":
            return warm * (0.1 + 0.9 * (1 - (step % 500) / 500))
        if self.schedule == "drop":
            return warm * (1.0 if step < self.steps // 2 else 0.1)
        return warm * (0.1 + 0.45 * (1 + np.cos(np.pi * step / self.steps)))

    def values(self, step):
        r, n, rate = self.random, self.ranks, self.rate(step)
        loss = 2.0 + 7.0 * (1 + step / 30) ** -0.5 + 0.05 * rate + self.noise * r.normal()
        norm = (0.3 + 3.0 / (1 + step / 50)) * np.exp(0.25 * r.normal() + (r.random() < 0.01) * r.exponential(0.7))
        own = self.speed * np.exp(0.03 * r.normal(size=n) + (r.random(n) < 0.02) * r.exponential(0.5, n))
        if step % 50 == 0:
            own = own + 0.3  # a snapshot
        values = {"loss/total": np.full(n, loss), "grad_norm/total": np.full(n, norm), "optim/lr": np.full(n, 1e-3 * rate)}
        values |= {"optim/progress": np.full(n, step / self.steps), "time/own": own, "time/step": np.full(n, own.max() + 0.02)}
        values |= {"wait/total": own.max() - own + 0.02 * np.exp(0.3 * r.normal(size=n)), "time/at": np.zeros(n)}
        for micro in range(2):
            values[f"loss/micro.{micro}"] = loss + 3 * self.noise * r.normal(size=n)
        for layer in range(LAYERS):
            values[f"grad_norm/layer.{layer:02d}"] = np.full(n, 0.5 * norm * np.exp(0.1 * r.normal()))
            values[f"activation_norm/layer.{layer:02d}"] = np.full(n, 1 + layer + step / 1000 + 0.02 * r.normal())
            values[f"expert_load/layer.{layer:02d}.idlest"] = np.full(n, 3.0 if step > 300 else float(r.integers(16)))
            values[f"expert_load/layer.{layer:02d}.dead"] = np.full(n, 0.1 * (step < 20 or r.random() < 0.02))
        values["memory/resident"] = 2e9 + 2e8 * (1 - np.exp(-step / 30)) + 2e7 * r.random(n) + 2e6 * r.random(n).cumsum()
        values["memory/allocated"] = np.full(n, 1e9) + 1e6 * r.integers(0, 3, n)
        values["data/tokens_read"] = np.full(n, 4096.0)
        values |= {"data/entropy": 3.2 + 0.05 * r.normal(size=n), "data/surprise": 3.3 + 0.06 * r.normal(size=n)}
        values |= {"data/unique": 0.6 + 0.02 * r.normal(size=n), "data/longest_run": 0.01 + 0.01 * r.random(n), "data/repeated": np.zeros(n)}
        return values

    def table(self, step):
        values = self.values(step)
        for fault in self.faults:
            fault(self, step, values)
        self.time += float(np.nanmax(values["time/step"]))
        values["time/at"] = values["time/at"] + self.time + 0.002 * self.random.random(self.ranks)
        columns = [self.names.column(name) for name in values]
        table_rm = np.full((self.ranks, len(self.names)), ABSENT)
        for column, value in zip(columns, values.values()):
            table_rm[:, column] = value
        return StepTable(step, self.time, self.names, tuple(range(self.ranks)), table_rm)


def after(at, change, steps=10**9):
    """A fault from step `at` on, for some steps: `change(values, steps since)` in place."""

    def fault(run, step, values):
        if at <= step < at + steps:
            change(values, step - at)

    return fault
