"""What a rank measures: the recorder of its rows, the thread beside the training thread, and what it looks at."""

from penstock.monitor.bus.aside import Aside
from penstock.monitor.bus.host import HostGauge
from penstock.monitor.bus.recorder import Recorder, RowSink
from penstock.monitor.bus.spans import SpanRing, ask_for_spans, spans_file
from penstock.monitor.bus.tokens import TokenWatch

__all__ = ["Aside", "HostGauge", "Recorder", "RowSink", "SpanRing", "TokenWatch", "ask_for_spans", "spans_file"]
