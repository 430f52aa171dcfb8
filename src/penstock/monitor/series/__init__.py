"""Floor 4: what ranks measured, by step: rows as they come, put together, stored as columns, to be asked."""

from penstock.monitor.series.catalogue import CATALOGUE
from penstock.monitor.series.course import Course
from penstock.monitor.series.gather import Gather
from penstock.monitor.series.grid import Grid, grid_of_logs
from penstock.monitor.series.grid_file import GridKeeper, read_grid
from penstock.monitor.series.keeper import Keeper
from penstock.monitor.series.kinds import UNKNOWN, Kind, Kinds, read_kinds, write_kinds
from penstock.monitor.series.merge import Merged
from penstock.monitor.series.query import Bound, Series
from penstock.monitor.series.rows import RowLog, next_generation
from penstock.monitor.series.table import ABSENT, Names, StepTable
from penstock.monitor.series.tail import Rows, RowTail

__all__ = [
    "ABSENT", "CATALOGUE", "UNKNOWN", "Bound", "Course", "Gather", "Grid", "GridKeeper", "Keeper", "Kind", "Kinds", "Merged", "Names", "RowLog",
    "RowTail", "Rows", "Series", "StepTable", "grid_of_logs", "next_generation", "read_grid", "read_kinds", "write_kinds",
]  # fmt: skip
