"""Floor 4: what ranks measured, by step: rows as they come, columns to be asked."""

from penstock.monitor.series.table import ABSENT, Names, StepTable

__all__ = ["ABSENT", "Names", "StepTable"]
