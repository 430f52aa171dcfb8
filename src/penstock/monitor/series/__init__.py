"""Floor 4: what ranks measured, by step: rows as they come, columns to be asked."""

from penstock.monitor.series.rows import RowLog, next_generation
from penstock.monitor.series.table import ABSENT, Names, StepTable
from penstock.monitor.series.tail import Rows, RowTail

__all__ = ["ABSENT", "Names", "RowLog", "RowTail", "Rows", "StepTable", "next_generation"]
