"""Which kind of exchange between nodes `exchange.kind` asks for."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from penstock.comm.gradients.between import Between, Dense
from penstock.comm.gradients.periodic import Periodic
from penstock.comm.gradients.powersgd import PowerSGD
from penstock.comm.gradients.topk import TopK
from penstock.config import ExchangeSection


def build_between(section: ExchangeSection, cuttable: Callable[[nn.Parameter], bool]) -> Between:
    """The kind of the section; only parameters that are `cuttable` may have state that is cut like them."""
    usual = 0.1 if section.kind == "periodic" else 0.05
    density = usual if section.density == "auto" else section.density
    if section.kind == "periodic":
        return Periodic(section.every, TopK(density, section.values, 0, lambda parameter: True, feedback=False))
    if section.kind == "topk":
        return TopK(density, section.values, section.warmup, cuttable)
    if section.kind == "powersgd":
        return PowerSGD(section.rank, cuttable)
    return Dense()
