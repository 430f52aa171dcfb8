"""Spans of ranks to an OpenTelemetry collector, over HTTP: `pip install penstock[otel]`, then OTEL_EXPORTER_OTLP_ENDPOINT says where it is.

One resource a rank (service `penstock`, with run and rank), spans within spans as they were. The SDK is imported when this is called, not before.
Cost: that of the SDK, some 50 µs a span. When not to use it: to look at a trace oneself (`perfetto.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from penstock.monitor.export.bridges import needed
from penstock.monitor.export.spans import Span, nested

#: Milliseconds to wait for the collector to take what is left.
FLUSH_MS = 30_000


def send_spans(run: str, spans: Iterable[Span], exporter: Any = None) -> int:
    """Send spans; returns how many. `exporter` is one of the SDK's, none: OTLP over HTTP. Raises `UserError` where the SDK is missing."""
    sdk, resources = needed("opentelemetry.sdk.trace", "otel"), needed("opentelemetry.sdk.resources", "otel")
    processors = needed("opentelemetry.sdk.trace.export", "otel")
    context = needed("opentelemetry.trace", "otel").set_span_in_context
    if exporter is None:
        exporter = needed("opentelemetry.exporter.otlp.proto.http.trace_exporter", "otel").OTLPSpanExporter()
    count = 0
    for rank, members in groupby(sorted(spans, key=lambda span: span.rank), key=lambda span: span.rank):
        about = {"service.name": "penstock", "service.instance.id": f"{run}/rank-{rank}", "penstock.run": run, "penstock.rank": rank}
        provider = sdk.TracerProvider(resource=resources.Resource.create(about))
        provider.add_span_processor(processors.BatchSpanProcessor(exporter))
        tracer = provider.get_tracer("penstock")
        open_: list[Any] = []
        for time, span, begins in nested(list(members)):
            if begins:
                open_.append(tracer.start_span(span.name, context=context(open_[-1]) if open_ else None, start_time=time))
                count += 1
            else:
                open_.pop().end(end_time=time)
        provider.force_flush(FLUSH_MS)
    return count
