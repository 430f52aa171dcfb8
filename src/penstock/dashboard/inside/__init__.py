"""Floor 5: what the page shows of the inside of the machine beyond courses: ranks × time, steps as ranks ran them, and where ranks lie."""

from penstock.dashboard.inside.layout import layout_told
from penstock.dashboard.inside.ranks import Known, known_grid, ranks_told
from penstock.dashboard.inside.timeline import timeline_told

__all__ = ["Known", "known_grid", "layout_told", "ranks_told", "timeline_told"]
