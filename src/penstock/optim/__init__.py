"""Floor 3: optimizers, schedules, clipping, averaging."""

from penstock.optim.clip import clip_grad_norm
from penstock.optim.ema import WeightAverage
from penstock.optim.optimizer import Optimizer, build_optimizer
from penstock.optim.schedule import lr_factor

__all__ = ["Optimizer", "WeightAverage", "build_optimizer", "clip_grad_norm", "lr_factor"]
