"""Floor 2: what ranks say to each other, counted and with a deadline."""

from penstock.comm.meter import ByteMeter
from penstock.comm.replicate import GradientReducer
from penstock.comm.world import World, choose_device, join_world, leave_world, under_launcher

__all__ = ["ByteMeter", "GradientReducer", "World", "choose_device", "join_world", "leave_world", "under_launcher"]
