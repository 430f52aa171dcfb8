"""Floor 6: studies made of whole runs."""

from penstock.lab.cases import AXES, Case, layout_cases
from penstock.lab.equivalence import Result, check
from penstock.lab.verify import table, verify

__all__ = ["AXES", "Case", "Result", "check", "layout_cases", "table", "verify"]
