"""Floor 5: what is new in runs, for all who watch them: one reader a run, and streams of events."""

from penstock.dashboard.live.hub import Hub
from penstock.dashboard.live.ring import Position

__all__ = ["Hub", "Position"]
