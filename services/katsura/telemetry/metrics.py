"""Prometheus metrics of this process: made once by name, served over HTTP or rendered by the gateway."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TypeVar
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server

M = TypeVar("M", Counter, Gauge, Histogram)

REGISTRY = CollectorRegistry(auto_describe=True)
"""The registry of this process: ours only, nothing from libraries."""

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Histogram bounds for durations in seconds."""

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of `render`."""


def counter(name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
    """A counter named by a constant of `names`."""
    return Counter(name, help_text, tuple(labels), registry=REGISTRY)


def gauge(name: str, help_text: str, labels: Sequence[str] = ()) -> Gauge:
    """A gauge named by a constant of `names`."""
    return Gauge(name, help_text, tuple(labels), registry=REGISTRY)


def histogram(name: str, help_text: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS) -> Histogram:
    """A histogram named by a constant of `names`; `buckets` are its upper bounds."""
    return Histogram(name, help_text, tuple(labels), registry=REGISTRY, buckets=tuple(buckets))


@cache
def child(metric: M, *values: str) -> M:
    """`metric.labels(*values)`, found without a lock: for what is counted at every call."""
    return metric.labels(*values)


def render() -> bytes:
    """All metrics in Prometheus' text format."""
    return generate_latest(REGISTRY)


def serve(host: str, port: int) -> tuple[WSGIServer, int]:
    """Serve `/metrics` on a thread; port 0 picks a free one. Returns the server and its port."""
    server, _ = start_http_server(port, addr=host, registry=REGISTRY)
    return server, int(server.server_port)
