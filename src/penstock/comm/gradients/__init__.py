"""Gradient exchange: inside the node on the fast network, then between nodes on the slow one."""

from penstock.comm.gradients.between import Dense
from penstock.comm.gradients.bucket import Route, cut_buckets, local
from penstock.comm.gradients.kinds import build_between
from penstock.comm.gradients.periodic import Periodic
from penstock.comm.gradients.powersgd import PowerSGD
from penstock.comm.gradients.reducer import GradientReducer
from penstock.comm.gradients.topk import TopK

__all__ = ["Dense", "GradientReducer", "Periodic", "PowerSGD", "Route", "TopK", "build_between", "cut_buckets", "local"]
