"""Gradient exchange: inside the node on the fast network, then between nodes on the slow one."""

from penstock.comm.gradients.bucket import Route, cut_buckets, local
from penstock.comm.gradients.reducer import GradientReducer

__all__ = ["GradientReducer", "Route", "cut_buckets", "local"]
