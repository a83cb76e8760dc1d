"""The caller's trace, passed on: Triton then puts its own spans under the span that is current here.

The W3C trace context alone (https://www.w3.org/TR/trace-context/), which is what Triton reads; baggage may hold what is
nobody else's business. Only where the application has `opentelemetry-api`, which the client does not ask for.
"""

from __future__ import annotations

try:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    _propagator = None
else:
    _propagator = TraceContextTextMapPropagator()


def trace_headers() -> dict[str, str]:
    """`traceparent`, and `tracestate` where there is one; nothing outside of a span or without OpenTelemetry."""
    headers: dict[str, str] = {}
    if _propagator is not None:
        _propagator.inject(headers)
    return headers
