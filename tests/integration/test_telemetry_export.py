"""Spans cross processes and reach a real OTLP collector; without an endpoint nothing is exported."""

import os
import subprocess
import sys

from katsura.telemetry import trace
from katsura.testing.collector import Collector

CHILD = """
import os, sys
from katsura.telemetry import setup, trace
setup.configure(sys.argv[1], sys.argv[1] + "-1", os.environ)
with trace.span("rpc.call", {"katsura.layer": 3}, parent=sys.argv[2]):
    print(trace.traceparent())
from opentelemetry import trace as api
provider = api.get_tracer_provider()
if hasattr(provider, "shutdown"):
    provider.shutdown()
"""


def run_child(name: str, parent: str, endpoint: str) -> str:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    if endpoint:
        environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    command = [sys.executable, "-c", CHILD, name, parent]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.strip()


def test_a_trace_goes_on_in_the_next_process() -> None:
    with Collector() as collector:
        parent = run_child("gateway", "", collector.endpoint)
        run_child("memory", parent, collector.endpoint)
        spans = {span.service: span for span in collector.wait_for({"katsura-gateway", "katsura-memory"}, 30)}
    assert spans["katsura-memory"].parent_id == spans["katsura-gateway"].span_id
    assert spans["katsura-memory"].attributes["katsura.layer"] == "3"


def test_without_an_endpoint_there_is_no_trace() -> None:
    assert run_child("gateway", "", "") == ""
    assert trace.traceparent() == ""
