"""A trace goes on at the server, where the application has OpenTelemetry."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

from opentelemetry import baggage, context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from tests.clients.conftest import Protocol
from tests.clients.scripted_servers import Script, scripted

SPAN = SpanContext(
    trace_id=0x0AF7651916CD43DD8448EB211C80319C,
    span_id=0xB7AD6B7169203331,
    is_remote=False,
    trace_flags=TraceFlags(TraceFlags.SAMPLED),
    trace_state=TraceState([("vendor", "value")]),
)
PASSED_ON = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "vendor=value",
}


def passed_on(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("trace") or name == "baggage"}


def test_the_current_span_is_passed_on_and_nothing_without_one(connect: Callable[..., Any], protocol: Protocol) -> None:
    script = Script()
    with scripted(protocol, script) as url:
        client = connect(url)
        client.predict("outside of a span")
        token = context.attach(baggage.set_baggage("customer", "17", trace.set_span_in_context(NonRecordingSpan(SPAN))))
        try:
            client.predict("inside")
        finally:
            context.detach(token)
        client.predict("outside again")
    assert [passed_on(headers) for headers in script.inferences] == [{}, PASSED_ON, {}]


def test_every_request_of_a_list_belongs_to_the_span(connect: Callable[..., Any], protocol: Protocol) -> None:
    script = Script()
    with scripted(protocol, script) as url, trace.use_span(NonRecordingSpan(SPAN)):
        connect(url, max_rows=1).predict_many(["a", "b"])
    assert [passed_on(headers) for headers in script.inferences] == [PASSED_ON, PASSED_ON]


WITHOUT = """
import sys
sys.modules["opentelemetry"] = None  # as where it is not installed
import bet_client
from bet_client.tracing import trace_headers
assert trace_headers() == {}
"""


def test_without_opentelemetry_nothing_is_passed_on_and_nothing_is_missing() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT], check=True, timeout=60)
