"""OpenTelemetry: one span per request, with decode, queue and inference as its children. Needs the extra ``otel``.

>>> create_app(engines, settings, tracing=otlp("http://127.0.0.1:4318/v1/traces"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.types import Scope

from digpt.errors import ConfigError, MissingDependencyError
from serve.observe import Observation

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

MISSING = "Traces need OpenTelemetry: pip install -e '.[otel]', or leave --otlp-endpoint out."
CARRIED = ("traceparent", "tracestate")  # W3C Trace Context, https://www.w3.org/TR/trace-context/


def otlp(endpoint: str) -> Tracing:
    """Send spans to a collector by OTLP over HTTP, in the background and in batches.

    Raises:
        ConfigError: ``endpoint`` is no URL.
        MissingDependencyError: the extra is not installed.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"otlp_endpoint={endpoint!r} must be a URL such as http://127.0.0.1:4318/v1/traces.")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingDependencyError(MISSING) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "digpt"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracing(provider)


class Tracing:
    """Makes spans of observations; ``close`` sends those that still wait."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("digpt.serve")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, scope: Scope, seen: Observation) -> Span:
        """Start a request's span, within the trace that its ``traceparent`` names."""
        from opentelemetry.trace import SpanKind

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        parent = self._propagator.extract({name: headers[name] for name in CARRIED if name in headers})
        return self._tracer.start_span(scope["method"], context=parent, kind=SpanKind.SERVER, start_time=seen.began_ns)

    def finish(self, span: Span, scope: Scope, seen: Observation) -> str:
        """End it with what became known, its stages as children; return the trace's id as 32 hex digits."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        within = set_span_in_context(span)
        for name, (began, seconds) in seen.stages.items():
            start = seen.began_ns + round(1e9 * (began - seen.began))
            child = self._tracer.start_span(name, context=within, start_time=start)
            child.end(start + round(1e9 * seconds))
        span.update_name(f"{scope['method']} {seen.endpoint}")
        span.set_attributes(
            {
                "http.request.method": scope["method"],
                "http.route": seen.endpoint,
                "http.response.status_code": seen.status,
                "digpt.request_id": seen.request_id,
                "digpt.model": seen.model,
                "digpt.images": seen.images,
                "digpt.texts": seen.texts,
            }
        )
        if seen.error:
            span.set_attribute("error.type", seen.error)
        if seen.exception is not None:
            span.record_exception(seen.exception)
        if seen.status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end()
        return format(span.get_span_context().trace_id, "032x")

    def close(self) -> None:
        """Send what waits and end the sender's thread."""
        self._provider.shutdown()
