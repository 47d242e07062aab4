"""Dashboards, alerts and the PodMonitor ask for metrics, labels and ports that exist."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from katsura.telemetry import metrics

for module in (
    "katsura.attention.gauges",
    "katsura.experts.service",
    "katsura.gateway.metrics",
    "katsura.memory.operations",
    "katsura.memory.collecting",
    "katsura.memory.service",
    "katsura.router.coordinator",
    "katsura.router.decisions",
    "katsura.router.server",
    "katsura.rpc.interceptor",
    "katsura_operator.__main__",
    "katsura_operator.loop",
):
    importlib.import_module(module)  # each registers its metrics when it is read

PROJECT = Path(__file__).resolve().parents[2]
FILES = PROJECT / "charts" / "katsura" / "files"
FROM_PROMETHEUS = {"namespace", "pod", "job", "le"}
NOT_OURS = {"up": FROM_PROMETHEUS}


def exposed() -> dict[str, set[str]]:
    """Every sample name that our processes expose, with its labels."""
    found: dict[str, set[str]] = dict(NOT_OURS)
    for collector in metrics.REGISTRY._collector_to_names:
        for family in collector.describe() if hasattr(collector, "describe") else ():
            labels = {*getattr(collector, "_labelnames", ()), *FROM_PROMETHEUS}
            ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
            found |= {family.name + end: labels for end in ends}
    return found


def wrong(query: str) -> list[str]:
    """Metrics and labels of a PromQL query that nobody exposes. A query that is no PromQL raises."""
    known = exposed()
    seen: list[tuple[str, set[str]]] = []

    def walk(node: Any, grouped: set[str]) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            asked = {matcher.name for matcher in node.matchers.matchers if matcher.name != "__name__"}
            seen.append((node.name, asked | grouped))
        elif isinstance(node, promql_parser.MatrixSelector):
            walk(node.vector_selector, grouped)
        elif isinstance(node, promql_parser.AggregateExpr):
            by = set(node.modifier.labels) if node.modifier else set()
            walk(node.expr, grouped | by)
        elif isinstance(node, promql_parser.BinaryExpr):
            walk(node.lhs, grouped)
            walk(node.rhs, grouped)
        elif isinstance(node, promql_parser.Call):
            for argument in node.args:
                walk(argument, grouped)
        elif isinstance(node, (promql_parser.ParenExpr, promql_parser.UnaryExpr)):
            walk(node.expr, grouped)

    walk(promql_parser.parse(query.replace("$__rate_interval", "5m")), set())
    return [f"{name}{sorted(labels)}" for name, labels in seen if not labels <= known.get(name, set())]


def program() -> Any:
    spec = importlib.util.spec_from_file_location("dashboards", PROJECT / "deploy" / "dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboards"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_dashboards_are_what_their_program_writes() -> None:
    written = {path.name: path.read_text() for path in (FILES / "dashboards").glob("*.json")}
    assert written == program().files(), "run `python deploy/dashboards.py`"


def queries() -> Iterator[tuple[str, str]]:
    for path in sorted((FILES / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"]
    for alert in yaml.safe_load((FILES / "alerts.yaml").read_text()):
        yield alert["alert"], alert["expr"]


@pytest.mark.parametrize("query", [pytest.param(query, id=where) for where, query in queries()])
def test_every_query_is_promql_of_metrics_and_labels_that_processes_expose(query: str) -> None:
    assert wrong(query) == []


def test_the_reader_of_queries_finds_what_is_wrong() -> None:
    assert wrong('sum(rate(katsura_nonsense_total{namespace="x"}[5m]))')
    assert wrong('katsura_rpc_in_flight{colour="red"} > 0')
    assert wrong("sum by (colour) (rate(katsura_kv_events_total[5m]))")
    assert not wrong("max(katsura_shard_pages_free) by (pod)")
    with pytest.raises(ValueError, match=r"."):
        wrong("sum(rate(up[5m])")


def test_every_metric_has_its_panel() -> None:
    shown = " ".join(query for _, query in queries())
    unseen = {re.sub("_(total|bucket|sum|count)$", "", name) for name in exposed()} - {"up"}
    assert {name for name in unseen if name not in shown} == set()


def test_alerts_say_what_happened_and_what_to_do() -> None:
    alerts = yaml.safe_load((FILES / "alerts.yaml").read_text())
    assert len({alert["alert"] for alert in alerts}) == len(alerts)
    for alert in alerts:
        assert set(alert["annotations"]) == {"summary", "description"}
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}


Render = Callable[..., list[dict[str, Any]]]
MONITORED = tuple(f"metrics.{part}.enabled=true" for part in ("podMonitor", "prometheusRule", "dashboards"))


def test_the_pod_monitor_names_ports_that_pods_have(render: Render) -> None:
    documents = render(*MONITORED)
    (monitor,) = [d for d in documents if d["kind"] == "PodMonitor"]
    scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    chart = {
        (port["name"], d["metadata"]["name"])
        for d in documents
        if d["kind"] == "Deployment"
        for c in d["spec"]["template"]["spec"]["containers"]
        for port in c["ports"]
    }
    assert chart == {("http", "katsura-gateway"), ("http", "katsura-operator")}
    assert scraped == {"http", "metrics"}


def test_rules_and_dashboards_speak_of_this_installation(render: Render) -> None:
    documents = render(*MONITORED)
    (rule,) = [d for d in documents if d["kind"] == "PrometheusRule"]
    (group,) = rule["spec"]["groups"]
    said = json.dumps(group)
    assert 'namespace=\\"ns\\"' in said
    assert "$namespace" not in said
    maps = [d for d in documents if d["kind"] == "ConfigMap"]
    names = {f"katsura-dashboard-{path.stem}" for path in (FILES / "dashboards").glob("*.json")}
    assert {d["metadata"]["name"] for d in maps} == names
    for found in maps:
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        (text,) = found["data"].values()
        assert json.loads(text)["uid"].startswith("katsura-")


def test_alerts_about_the_operator_stay_where_it_runs(render: Render) -> None:
    documents = render("metrics.prometheusRule.enabled=true", "operator.enabled=false", "operator.namespace=platform")
    (rule,) = [d for d in documents if d["kind"] == "PrometheusRule"]
    assert "katsura_operator" not in json.dumps(rule)
