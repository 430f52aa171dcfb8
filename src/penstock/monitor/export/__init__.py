"""Floor 4: a run's metrics and spans for other people's tools, read from its folder, beside training or after it."""

from penstock.monitor.export.latest import Latest, latest
from penstock.monitor.export.openmetrics import exposition, serve
from penstock.monitor.export.spans import Span, read_spans

__all__ = ["Latest", "Span", "exposition", "latest", "read_spans", "serve"]
