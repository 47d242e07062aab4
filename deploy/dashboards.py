"""Write the Grafana dashboards of the chart: `python deploy/dashboards.py`. A test holds the files to this program.

Queries are made of the constants that processes register their metrics by, so a renamed metric cannot stay behind.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from katsura.telemetry import names

FOLDER = Path(__file__).resolve().parents[1] / "charts" / "katsura" / "files" / "dashboards"
HERE = 'namespace="$namespace"'
COLUMNS, WIDTH, HEIGHT = 3, 8, 7
Query = tuple[str, str]
"""Legend and PromQL."""


@dataclass(frozen=True)
class Panel:
    """One graph. `unit` is Grafana's name of it; `why` is what a person looks at it for."""

    title: str
    unit: str
    why: str
    queries: tuple[Query, ...]


def rate(metric: str, by: str = "", where: str = "") -> str:
    """Per second, summed over pods."""
    grouped = f" by ({by})" if by else ""
    chosen = f"{HERE}, {where}" if where else HERE
    return f"sum{grouped} (rate({metric}{{{chosen}}}[$__rate_interval]))"


def quantiles(metric: str, by: str = "") -> tuple[Query, ...]:
    """Median and 95th percentile of a histogram."""
    legend = f" {{{{{by}}}}}" if by else ""
    grouped = f"le, {by}" if by else "le"
    return tuple(
        (f"p{q * 100:.0f}{legend}", f"histogram_quantile({q}, {rate(f'{metric}_bucket', grouped)})")
        for q in (0.5, 0.95)
    )


def each(metric: str, by: str = "pod") -> tuple[Query, ...]:
    """A gauge of every pod."""
    return ((f"{{{{{by}}}}}", f"sum by ({by}) ({metric}{{{HERE}}})"),)


def share(part: str, whole: str, by: str = "") -> str:
    """One rate as a part of another."""
    return f"{rate(part, by)} / {rate(whole, by)}"


DASHBOARDS: dict[str, tuple[Panel, ...]] = {
    "serving": (
        Panel("First token", "s", "What people wait for.", quantiles(names.VLLM_TTFT, "model_name")),
        Panel("Between tokens", "s", "How fluently answers come.", quantiles(names.VLLM_ITL, "model_name")),
        Panel("Whole answers", "s", "From request to end.", quantiles(names.VLLM_E2E, "model_name")),
        Panel(
            "Requests",
            "short",
            "Waiting for long means that capacity is short.",
            (
                ("running {{model_name}}", f"sum by (model_name) ({names.VLLM_RUNNING}{{{HERE}}})"),
                ("waiting {{model_name}}", f"sum by (model_name) ({names.VLLM_WAITING}{{{HERE}}})"),
            ),
        ),
        Panel(
            "Answers by how they ended",
            "reqps",
            "A rise of `length` or of errors is worth a look.",
            (("{{finished_reason}}", rate(f"{names.VLLM_SUCCESS}_total", "finished_reason")),),
        ),
        Panel(
            "Tokens",
            "short",
            "Read and drawn, per second.",
            (
                ("prompt", rate(f"{names.VLLM_PROMPT_TOKENS}_total")),
                ("drawn", rate(f"{names.VLLM_GENERATION_TOKENS}_total")),
            ),
        ),
        Panel(
            "Prompt found in caches",
            "percentunit",
            "What the tree saves: tokens that no shard had to compute again.",
            (("found", share(f"{names.VLLM_PREFIX_HITS}_total", f"{names.VLLM_PREFIX_QUERIES}_total")),),
        ),
        Panel(
            "Trees: commits",
            "ops",
            "Writes that were acknowledged.",
            (("{{operation}}", rate(names.MEMORY_COMMITS, "operation")),),
        ),
        Panel(
            "Trees: assembly",
            "s",
            "Seconds from a branch to a prompt.",
            quantiles(names.MEMORY_ASSEMBLE_SECONDS),
        ),
    ),
    "engine": (
        Panel("Step", "s", "One step of a batch.", quantiles(names.SHARD_STEP_SECONDS, "pod")),
        Panel(
            "On the way to members",
            "s",
            "The split's price in each step.",
            quantiles(names.SHARD_TRANSPORT_SECONDS, "pod"),
        ),
        Panel("Tokens of a step", "short", "How full batches are.", quantiles(names.SHARD_STEP_TOKENS)),
        Panel(
            "Sequences",
            "short",
            "In the batch, and before it.",
            (
                ("running {{pod}}", f"sum by (pod) ({names.SHARD_RUNNING}{{{HERE}}})"),
                ("waiting {{pod}}", f"sum by (pod) ({names.SHARD_WAITING}{{{HERE}}})"),
            ),
        ),
        Panel("Pages free", "short", "None left: sequences wait.", each(names.SHARD_PAGES_FREE)),
        Panel(
            "Prompt found in pages",
            "percentunit",
            "By shard.",
            (("{{pod}}", share(names.SHARD_CACHED_TOKENS, names.SHARD_PROMPT_TOKENS, "pod")),),
        ),
        Panel("Tokens drawn", "short", "Per second.", (("{{pod}}", rate(names.SHARD_GENERATED_TOKENS, "pod")),)),
        Panel(
            "Frames of members",
            "short",
            "Refused frames went to an alternate.",
            (("{{outcome}} {{pod}}", rate(names.MEMBER_FRAMES, "outcome, pod")),),
        ),
        Panel(
            "Members at work",
            "percentunit",
            "Seconds of computing per second: one is a core without a pause.",
            (("{{pod}}", rate(f"{names.MEMBER_FRAME_SECONDS}_total", "pod")),),
        ),
        Panel("Weights held", "bytes", "By member.", each(names.MEMBER_LOADED_BYTES)),
        Panel(
            "Frames that failed over",
            "short",
            "An alternate served them.",
            (("{{pod}}", rate(names.SHARD_FAILOVERS, "pod")),),
        ),
        Panel("KV events", "short", "What the router's index lives on.", (("{{pod}}", rate(names.KV_EVENTS, "pod")),)),
    ),
    "control": (
        Panel(
            "Calls",
            "reqps",
            "Between our processes.",
            (("{{method}} {{code}}", rate(f"{names.RPC_SECONDS}_count", "method, code")),),
        ),
        Panel(
            "Calls: how long", "s", "95th percentile is what a request meets.", quantiles(names.RPC_SECONDS, "method")
        ),
        Panel("Calls in flight", "short", "By pod.", each(names.RPC_IN_FLIGHT)),
        Panel("Decisions", "ops", "Shards chosen.", (("{{deployment}}", rate(names.ROUTER_DECISIONS, "deployment")),)),
        Panel(
            "Decisions: how long", "s", "Of model and of shard.", quantiles(names.ROUTER_DECISION_SECONDS, "question")
        ),
        Panel(
            "Prompt tokens at the chosen shard",
            "short",
            "How well routing follows the trees.",
            (("{{deployment}}", rate(names.ROUTER_MATCHED_TOKENS, "deployment")),),
        ),
        Panel("Who coordinates", "short", "One, always.", each(names.ROUTER_COORDINATOR)),
        Panel("Who leads", "short", "One operator, always.", each(names.OPERATOR_LEADS)),
        Panel(
            "Passes of the operator",
            "ops",
            "By how they ended.",
            (("{{result}}", rate(names.OPERATOR_PASSES, "result")),),
        ),
        Panel("Passes: how long", "s", "Seconds of a pass.", quantiles(names.OPERATOR_PASS_SECONDS)),
        Panel(
            "Writes of the operator", "ops", "None while nothing changes.", (("writes", rate(names.OPERATOR_WRITES)),)
        ),
        Panel(
            "Writes that lost",
            "ops",
            "Two writers on one branch.",
            (("{{operation}}", rate(names.MEMORY_CONFLICTS, "operation")),),
        ),
        Panel(
            "Collected by itself",
            "ops",
            "What retention does not keep; lost: claims that another process took over.",
            (
                ("nodes", rate(names.MEMORY_COLLECTED_NODES)),
                ("branches", rate(names.MEMORY_COLLECTED_BRANCHES)),
                ("lost", rate(names.MEMORY_COLLECT_LOST)),
            ),
        ),
    ),
}


def dashboard(name: str) -> dict[str, Any]:
    """As Grafana imports it."""
    return {
        "uid": f"katsura-{name}",
        "title": f"Katsura: {name}",
        "tags": ["katsura"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_variable("datasource", "datasource", "prometheus"), _namespace()]},
        "panels": [_panel(number, panel) for number, panel in enumerate(DASHBOARDS[name])],
    }


def _variable(name: str, kind: str, query: str) -> dict[str, Any]:
    return {"name": name, "type": kind, "query": query}


def _namespace() -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    found = _variable("namespace", "query", f"label_values({names.RPC_IN_FLIGHT}, namespace)")
    return found | {"datasource": source, "refresh": 2}


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS)
    targets = [
        {"refId": chr(ord("A") + index), "expr": expr, "legendFormat": legend}
        for index, (legend, expr) in enumerate(panel.queries)
    ]
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.why,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": column * WIDTH, "y": row * HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


def files() -> dict[str, str]:
    """Name to content."""
    return {f"{name}.json": json.dumps(dashboard(name), indent=1) + "\n" for name in DASHBOARDS}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text)
