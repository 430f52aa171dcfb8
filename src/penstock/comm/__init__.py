"""Floor 2: what ranks say to each other, counted and with a deadline."""

from penstock.comm.axis import Axis
from penstock.comm.beside import compute_alone
from penstock.comm.differentiable import exchange, gather, scatter_sum, total
from penstock.comm.gradients import Dense, GradientReducer, Periodic, PowerSGD, Route, TopK, build_between, local
from penstock.comm.links import LinkError, Links, Receiver, Sender
from penstock.comm.meter import ByteMeter, Wait, ring_bytes
from penstock.comm.nodes import measured_nodes
from penstock.comm.opaque import opaque
from penstock.comm.world import World, choose_device, join_world, leave_world, under_launcher

__all__ = [
    "Axis", "ByteMeter", "Dense", "GradientReducer", "LinkError", "Links", "Periodic", "PowerSGD", "Receiver", "Route", "Sender", "TopK", "Wait",
    "World", "build_between", "choose_device", "compute_alone", "exchange", "gather", "join_world", "leave_world", "local", "measured_nodes",
    "opaque", "ring_bytes", "scatter_sum", "total", "under_launcher",
]
