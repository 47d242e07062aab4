"""Spans, where somebody wants them."""

from __future__ import annotations

import pytest

from katsura.telemetry import trace

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.mark.parametrize("settled", [False, True])
def test_a_process_that_exports_nothing_has_spans_only_below_those_of_others(
    settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_settled", None)
    if settled:
        trace.settle()
    with trace.span("alone"):
        assert trace.traceparent() == ""
    with trace.span("asked", parent=PARENT), trace.span("within"):
        assert trace.trace_id() == TRACE
