"""Floor 2: what ranks say to each other, counted and with a deadline."""

from penstock.comm.axis import Axis
from penstock.comm.differentiable import exchange, gather, scatter_sum, total
from penstock.comm.links import LinkError, Links, Receiver, Sender
from penstock.comm.meter import ByteMeter, Wait, ring_bytes
from penstock.comm.replicate import GradientReducer, local
from penstock.comm.world import World, choose_device, join_world, leave_world, under_launcher

__all__ = [
    "Axis", "ByteMeter", "GradientReducer", "LinkError", "Links", "Receiver", "Sender", "Wait", "World", "choose_device", "exchange", "gather",
    "join_world", "leave_world", "local", "ring_bytes", "scatter_sum", "total", "under_launcher",
]
