"""What clients and agents ask of each deployment together: `traffic`, and the calls of every agent's flow.

`problem` asks. An agent's call counts as often as a run is expected to make it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from katsura.manifests.bundle import Bundle
from katsura.manifests.kinds import Agent, AgentCall, ModelDeployment
from katsura.placement.agents import AgentGraph, AgentRuns, Call, Edge
from katsura.placement.cost import Load

_ANY = Load(1024, 256)
"""Of a deployment that says nothing about its traffic."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests per second, and the mean of what they are."""

    requests_s: float
    load: Load


def agent_runs(bundle: Bundle) -> tuple[AgentRuns, ...]:
    """Agents that say how their runs go, as graphs."""
    loads = {d.metadata.name: _own(d).load for d in bundle.deployments}
    made = []
    for agent in bundle.agents:
        flow = agent.spec.flow
        # A bundle that was cut down to some deployments may lack the models of an agent: its calls ask nothing of them.
        if flow is None or not {_model(agent, c) for c in flow.calls} - {""} <= set(loads):
            continue
        calls = tuple(_call(agent, c, loads) for c in flow.calls)
        edges = tuple(Edge(e.before, e.after, e.probability) for e in flow.edges)
        limit = None if flow.seconds is None else float(flow.seconds)
        made.append(AgentRuns(agent.metadata.name, AgentGraph(calls, edges), flow.runs_per_second, limit))
    return tuple(made)


def demands(bundle: Bundle) -> dict[str, Demand]:
    """The demand of each deployment, by its name."""
    asked: dict[str, list[Demand]] = {d.metadata.name: [_own(d)] for d in bundle.deployments}
    runs = {r.name: r for r in agent_runs(bundle)}
    for agent in bundle.agents:
        if agent.spec.flow is None or agent.metadata.name not in runs:
            continue
        visits = runs[agent.metadata.name].graph.visits()
        for call in agent.spec.flow.calls:
            name = _model(agent, call)
            if name:
                usual = asked[name][0].load
                load = Load(call.prompt_tokens or usual.prompt, call.output_tokens or usual.output, usual.cached_share)
                asked[name].append(Demand(agent.spec.flow.runs_per_second * visits[call.name], load))
    return {name: _together(parts) for name, parts in asked.items()}


def memory_rates(bundle: Bundle) -> dict[str, float]:
    """Requests per second that each store hears of: an agent's go to its own, others to all alike."""
    total = sum(d.requests_s for d in demands(bundle).values())
    rates = dict.fromkeys((s.metadata.name for s in bundle.memory_stores), 0.0)
    runs = {r.name: sum(r.graph.demand(r.runs_s).values()) for r in agent_runs(bundle)}
    for agent in bundle.agents:
        if agent.spec.memory_ref is not None and agent.spec.memory_ref.name in rates:
            rates[agent.spec.memory_ref.name] += runs.get(agent.metadata.name, 0.0)
    shared = total - sum(rates.values())
    return {name: rate + shared / len(rates) for name, rate in rates.items()}


def _own(deployment: ModelDeployment) -> Demand:
    said = deployment.spec.traffic
    if said is None:
        return Demand(0.0, _ANY)
    return Demand(said.requests_per_second, Load(said.prompt_tokens, said.output_tokens, said.cached_share))


def _model(agent: Agent, call: AgentCall) -> str:
    """The deployment that a call asks; empty for a tool."""
    if call.tool_seconds is not None:
        return ""
    return (call.model_ref or agent.spec.model_ref).name


def _call(agent: Agent, call: AgentCall, loads: Mapping[str, Load]) -> Call:
    model = _model(agent, call)
    return Call(call.name, model, call.tool_seconds or 0.0, (call.output_tokens or loads[model].output) if model else 0)


def _together(parts: list[Demand]) -> Demand:
    """The sum of rates, with mean tokens: prompts and answers weigh by their rate, what is cached by its tokens."""
    rate = sum(p.requests_s for p in parts)
    if not rate:
        return parts[0]
    prompt = sum(p.requests_s * p.load.prompt for p in parts) / rate
    output = sum(p.requests_s * p.load.output for p in parts) / rate
    cached = sum(p.requests_s * p.load.prompt * p.load.cached_share for p in parts) / rate
    return Demand(rate, Load(max(1, round(prompt)), max(1, round(output)), cached / prompt))
