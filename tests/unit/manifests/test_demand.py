from __future__ import annotations

import pytest

from katsura.manifests.bundle import Bundle, read_manifests
from katsura.manifests.demand import agent_runs, demands, memory_rates
from katsura.manifests.rules import ManifestError

HEAD = "apiVersion: katsura.dev/v1alpha1\n"
MODEL = (
    HEAD
    + """\
kind: ModelDeployment
metadata: {name: %s}
spec:
  model: {source: file:///m}
  traffic: {requestsPerSecond: %s, promptTokens: 1000, outputTokens: 100, cachedShare: 0.5}
---
"""
)
STORE = HEAD + "kind: MemoryStore\nmetadata: {name: %s}\nspec: {}\n---\n"
AGENT = (
    HEAD
    + """\
kind: Agent
metadata: {name: worker}
spec:
  modelRef: {name: small}
  memoryRef: {name: trees}
  flow:
    runsPerSecond: 2
    seconds: 30
    calls:
      - {name: plan, modelRef: {name: big}, outputTokens: 400, promptTokens: 3000}
      - {name: act}
      - {name: tool, toolSeconds: 1.5}
    edges:
      - {before: plan, after: act}
      - {before: act, after: tool}
      - {before: tool, after: act, probability: 0.5}
"""
)


def bundle(agent: str = AGENT) -> Bundle:
    text = MODEL % ("small", 1) + MODEL % ("big", 0) + STORE % "trees" + STORE % "other"
    return read_manifests([("a.yaml", text + agent)])


def test_the_calls_of_runs_are_demand_beside_traffic() -> None:
    asked = demands(bundle())
    assert asked["small"].requests_s == pytest.approx(1 + 2 * 2)
    assert (asked["small"].load.prompt, asked["small"].load.output) == (1000, 100)
    assert asked["big"].requests_s == pytest.approx(2)
    assert (asked["big"].load.prompt, asked["big"].load.output) == (3000, 400)
    assert asked["big"].load.cached_share == pytest.approx(0.5)


def test_mixed_requests_have_the_mean_of_their_tokens() -> None:
    made = demands(bundle(AGENT.replace("{name: act}", "{name: act, outputTokens: 350, promptTokens: 2000}")))["small"]
    assert made.load.output == round((1 * 100 + 4 * 350) / 5)
    assert made.load.prompt == round((1 * 1000 + 4 * 2000) / 5)


def test_an_agent_becomes_a_graph_whose_tools_have_their_seconds() -> None:
    (runs,) = agent_runs(bundle())
    assert (runs.runs_s, runs.limit_s) == (2, 30)
    calls = {c.name: c for c in runs.graph.calls}
    assert (calls["tool"].service, calls["tool"].seconds) == ("", 1.5)
    assert (calls["plan"].service, calls["plan"].output) == ("big", 400)
    assert (calls["act"].service, calls["act"].output) == ("small", 100)


def test_the_store_of_an_agent_hears_its_calls_and_all_share_the_rest() -> None:
    rates = memory_rates(bundle())
    assert rates == pytest.approx({"trees": 6 + 0.5, "other": 0.5})


def test_an_agent_without_a_flow_asks_nothing() -> None:
    made = bundle(AGENT.split("  flow:")[0])
    assert agent_runs(made) == ()
    assert demands(made)["big"].requests_s == 0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("probability: 0.5", "probability: 1.0", r"a.yaml:\d+: spec.flow.edges: .*never left"),
        ("after: tool}", "after: nap}", r"spec.flow.edges: edge act -> nap names no call"),
        ("{name: act}", "{name: plan}", r"spec.flow.calls: .*no two of one name"),
        ("{name: act}", "{name: act, modelRef: {name: bigg}}", r"spec.flow.calls\[1\].modelRef.name: .*did you mean"),
        ("toolSeconds: 1.5", "toolSeconds: 1.5, modelRef: {name: big}", "of a model or of a tool, not of both"),
    ],
)
def test_a_flow_that_cannot_be_is_refused_with_its_line(old: str, new: str, said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        bundle(AGENT.replace(old, new))
