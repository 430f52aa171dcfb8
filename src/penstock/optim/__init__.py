"""Floor 3: optimizers, schedules, clipping, averaging."""

from penstock.optim.clip import clip_grad_norm
from penstock.optim.ema import WeightAverage
from penstock.optim.muon import SharedMatrices
from penstock.optim.optimizer import Optimizer, build_optimizer
from penstock.optim.schedule import lr_factor

__all__ = ["Optimizer", "SharedMatrices", "WeightAverage", "build_optimizer", "clip_grad_norm", "lr_factor"]
