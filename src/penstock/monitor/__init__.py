"""Floor 4: what a run records, shows and reports."""

from penstock.monitor.board import TensorBoardWriter
from penstock.monitor.live import LiveLine
from penstock.monitor.store import MetricStore

__all__ = ["LiveLine", "MetricStore", "TensorBoardWriter"]
