"""Which kind of exchange between nodes `exchange.kind` asks for."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from penstock.comm.codec import select_exact, select_sampled
from penstock.comm.gradients.between import Between, Dense
from penstock.comm.gradients.periodic import Periodic
from penstock.comm.gradients.powersgd import PowerSGD
from penstock.comm.gradients.topk import TopK
from penstock.config import ExchangeSection

SELECT = {"sampled": select_sampled, "exact": select_exact}


def build_between(section: ExchangeSection, cuttable: Callable[[nn.Parameter], bool]) -> Between:
    """The kind of the section; only parameters that are `cuttable` may have state that is cut like them."""
    usual = 0.1 if section.kind == "periodic" else 0.05
    density = usual if section.density == "auto" else section.density
    if section.kind == "periodic":
        return Periodic(section.every, TopK(density, section.values, 0, lambda parameter: True, SELECT[section.selection], feedback=False))
    if section.kind == "topk":
        return TopK(density, section.values, section.warmup, cuttable, SELECT[section.selection], momentum=section.momentum)
    if section.kind == "powersgd":
        return PowerSGD(section.rank, cuttable)
    return Dense()
