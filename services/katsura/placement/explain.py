"""A plan in words: who goes where, what it costs, what limits it, and what would change.

`katsura plan` prints it. The facts are all in `plan.Plan`; nothing is decided here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from katsura.placement.agents import AgentSummary
from katsura.placement.patterns import Column, Member
from katsura.placement.plan import Instance, Plan, ServiceSummary
from katsura.placement.problem import PIPELINE, PLANNED_ONLY, ModelService, Objective, Problem
from katsura.placement.replan import Replan

_NODES_SHOWN = 4
_REFUSED_SHOWN = 8
_PROVEN = 1e-6
"""A larger gap is no optimum, whatever the solver calls what it stopped at."""


def explain(plan: Plan, problem: Problem) -> str:
    """The plan as text, no line longer than a wide terminal."""
    parts = [
        _headline(plan, problem),
        _services(plan),
        _placement(plan, problem),
        _section("Planned only", list(_planned_only(plan.instances))),
        _section("Tables of measured points", list(_tables(plan, problem))),
        _section("Runs of agents", list(_agents(plan.agents))),
        _section("What limits it", plan.binding),
        _section("Ways to serve everything", _relaxations(plan)),
        _section("Other ways, and why not", _alternatives(plan)),
        _section("One more node of", _marginals(plan, problem)),
        _section("Not possible", _refused(plan)),
        _section("Sizes that are not sure", list(_guessed(problem))),
        _section("Left out", plan.unknown),
        _footer(plan, problem),
    ]
    return "\n\n".join(part for part in parts if part)


def _headline(plan: Plan, problem: Problem) -> str:
    used, have = sum(plan.nodes_used.values()), sum(len(c.nodes) for c in problem.classes)
    first = f"{used} of {have} nodes, ${plan.hourly_usd:.2f}/h, {plan.watts / 1e3:.2f} kW"
    if not plan.feasible:
        short = [s for s in plan.services if s.unmet > 1e-6]
        first = f"NOT EVERYTHING FITS ({', '.join(f'{s.name} {_short(s)}' for s in short)}): {first}"
    elif not plan.kept:
        first = f"TOO SLOW FOR {', '.join(a.name for a in plan.agents if not a.kept)}: {first}"
    proof = f"{plan.objective} {_value(plan)}, gap {plan.gap:.2%}"
    these = "this 1 pattern" if plan.columns == 1 else f"these {plan.columns} patterns"
    bound = f"no plan of {these} is better than {plan.bound:.4g}"
    whole = "" if plan.feasible else "all of it, "
    free = f"; {whole}with nodes free to cut: {plan.pattern_free_bound:.4g}" if plan.pattern_free_bound else ""
    return f"{first}\n{proof} ({bound}{free})"


def _value(plan: Plan) -> str:
    units: dict[str, str] = {Objective.COST: "$/h", Objective.ENERGY: "W", Objective.LATENCY: "s"}
    return f"{plan.value:.4g} {units.get(plan.objective, 'x demand')}"


def _short(s: ServiceSummary) -> str:
    if s.capacity < s.demand * (1 - 1e-6):
        return f"serves {s.capacity / s.demand:.0%}"
    return "lacks instances or domains" if s.instances else "has no place"


def _services(plan: Plan) -> str:
    titles = "service instances capacity demand ITL TTFT batch $/1M-out J/token estimate"
    rows = [tuple(titles.split())]
    for s in plan.services:
        p = s.point
        rows.append(
            (
                s.name,
                str(s.instances),
                _per_s(s.capacity),
                _per_s(s.demand) if s.demand else "any",
                _ms(p.itl_s) if p else "",
                _ms(p.ttft_s) if p else "",
                str(p.batch) if p else "",
                _number(s.usd_per_million_output),
                _number(s.joules_per_token),
                s.error_class if p else "prior",
            )
        )
    return _table(rows)


def _per_s(rate: float) -> str:
    return f"{rate:.1f}/s" if rate >= 1 else f"{rate:.2g}/s"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _placement(plan: Plan, problem: Problem) -> str:
    return "Who goes where\n" + "\n".join(f"  {line}" for line in placement_lines(plan.instances, problem))


def placement_lines(instances: tuple[Instance, ...], problem: Problem) -> Iterator[str]:
    """One line per shape of each service, on whichever domains: what it is made of, and on which nodes."""
    kinds = {c.name: (c.device or c.core).name for c in problem.classes}
    groups: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[f"{instance.column.service}: {{}} x {_shape(instance.column, kinds)}"].append(instance)
    for words, members in groups.items():
        yield words.format(len(members))
        nodes: Mapping[str, Counter[str]] = defaultdict(Counter)
        for place in (p for i in members for p in i.places):
            nodes[place.role][place.node] += 1
        for role, where in nodes.items():
            shown = [f"{name}{f' x{n}' if n > 1 else ''}" for name, n in sorted(where.items())]
            more = f" and {len(shown) - _NODES_SHOWN} more" if len(shown) > _NODES_SHOWN else ""
            yield f"    {role}: {', '.join(shown[:_NODES_SHOWN])}{more}"


def _shape(column: Column, kinds: Mapping[str, str]) -> str:
    parts = (f"{m.count} {_role(m)} on {_slice(m.accelerators, m.cores, kinds[m.node_class])}" for m in column.members)
    extra = ""
    if column.point and column.point.stages:
        extra += f", {_runs(column.point.stages)} layers"
    if column.point and column.point.micro_batches > 1:
        extra += f", {column.point.micro_batches} micro-batches"
    if column.point and column.point.link_bytes_s:
        extra += f", {_rate(column.point.link_bytes_s)} between them"
    return f"{column.topology} ({' + '.join(parts)}{extra})"


def _role(m: Member) -> str:
    return "stages" if m.role == "stage" and m.count > 1 else m.role


def _runs(numbers: Sequence[int]) -> str:
    """`9, 9, 8` as `2 x 9 + 8`."""
    groups = ((n, len(list(same))) for n, same in groupby(numbers))
    return " + ".join(f"{many} x {n}" if many > 1 else str(n) for n, many in groups)


def _planned_only(instances: Sequence[Instance]) -> Iterator[str]:
    found = {(i.column.service, i.column.topology) for i in instances}
    for service, topology in sorted(found):
        if topology == PIPELINE:
            yield (
                f"{service} as a pipeline: no engine of ours runs one. An engine: external that cuts models by layers "
                "can (vLLM: --pipeline-parallel-size)."
            )
        elif topology in PLANNED_ONLY:
            yield (
                f"{service} as {topology}: no engine of ours runs it. An engine: external that moves KV from prefill "
                "to decode can."
            )


def _tables(plan: Plan, problem: Problem) -> Iterator[str]:
    kinds = {c.name: (c.device or c.core).name for c in problem.classes}
    for t in plan.tables:
        judged = f"{t.judged} of them, left out, were foretold with a median error of {t.median_error:.1%}"
        told = judged if t.judged else "too few to foretell each other"
        rows = f"{t.rows} row{'s' * (t.rows > 1)} of {t.engine}, told for no other version"
        yield f"{t.service} on {t.device}: {rows}; {told}"
        mine = (i.column for i in plan.instances if i.column.service == t.service)
        for column in dict.fromkeys(c for c in mine if kinds[c.members[0].node_class] == t.device):
            p = column.point
            if p is not None and p.margin is not None:
                margin = "as it ran" if p.margin == 1 else f"nine of ten below {p.margin * p.itl_s * 1e3:.1f} ms"
                what = _slice(column.members[0].accelerators, column.members[0].cores, t.device)
                yield f"    {what}, batch {p.batch}: {p.itl_s * 1e3:.1f} ms, {margin} ({p.error_class.value})"


def _guessed(problem: Problem) -> Iterator[str]:
    for s in problem.services:
        if isinstance(s, ModelService) and not s.card.exact:
            yield (
                f"{s.name}: nobody has compared how {s.card.family or 'its family'} is counted; by the names of its "
                f"fields it has {s.card.parameters / 1e9:.3g} billion parameters. Where that is wrong, so is its part "
                "of this plan"
            )


def _agents(agents: Sequence[AgentSummary]) -> Iterator[str]:
    for a in agents:
        if a.lacks:
            yield f"{a.name}: not timed, {', '.join(a.lacks)} has no place"
            continue
        limit = "no limit" if a.limit_s is None else f"{a.limit_s:g} s allowed{'' if a.kept else ': MISSED'}"
        yield f"{a.name}: {a.runs_s:g} runs/s of {a.mean_s:.1f} s on average"
        yield f"    longest path {' > '.join(a.path)}: {a.path_s:.1f} s, {limit}"
        for c in a.calls:
            who = f"by {c.service}" if c.service else "a tool, run by clients"
            yield f"    {c.name}: {c.visits:.3g} x {c.seconds:.2f} s {who}, {c.at_once:.3g} at once"


def _rate(bytes_s: float) -> str:
    return f"{bytes_s / 1e9:.1f} GB/s" if bytes_s >= 1e8 else f"{bytes_s / 1e6:.1f} MB/s"


def _slice(accelerators: int, cores: float, kind: str) -> str:
    return f"{accelerators} {kind}" if accelerators else f"{cores:g} core{'s' * (cores > 1)} of a {kind} node"


def _refused(plan: Plan) -> list[str]:
    lines = [f"{r.service} {r.topology} on {r.device}: {r.detail}" for r in plan.refused]
    more = len(lines) - _REFUSED_SHOWN
    return [*lines[:_REFUSED_SHOWN], f"and {more} more (--json)"] if more > 0 else lines


def _relaxations(plan: Plan) -> list[str]:
    return [
        f"{r.what}: {_usd(r.hourly_usd, r.at_least)}{', by its bound: no whole plan was made' if r.at_least else ''}"
        for r in plan.relaxations
    ]


def _alternatives(plan: Plan) -> list[str]:
    return [
        f"{a.what}: {f'{_usd(a.hourly_usd, a.at_least)}, ' if a.hourly_usd is not None else ''}{a.why_not}"
        for a in plan.alternatives
    ]


def _usd(hourly: float, at_least: bool) -> str:
    return f"{'at least ' if at_least else ''}${hourly:.2f}/h"


def _marginals(plan: Plan, problem: Problem) -> list[str]:
    if plan.feasible and not plan.marginals and problem.objective is Objective.COST:
        return ["any kind: saves nothing, by the linear bound"]
    words = []
    for m in plan.marginals:
        saves = f"saves ${-m.change_usd:.2f}/h" if m.change_usd < -0.005 else "saves nothing"
        words.append(f"{m.node_class}: {saves}{', by the linear bound' if m.at_most else ''}")
    return words


def _section(title: str, lines: Sequence[str]) -> str:
    return f"{title}\n" + "\n".join(f"  {line}" for line in lines) if lines else ""


def _footer(plan: Plan, problem: Problem) -> str:
    dates = sorted({(c.device or c.core).date for c in problem.classes} - {""})
    prices = f"Prices: catalogue of {', '.join(dates)} and AcceleratorProfiles, per accelerator or core and hour. "
    margin = (
        "Objectives are checked against the median prediction."
        if problem.confidence <= 0.5
        else f"Objectives are checked with the margin below which {problem.confidence:.0%} of measured points lay."
    )
    ended = plan.ended if plan.ended != "optimal" or plan.gap < _PROVEN else "near enough (--gap)"
    return f"{prices}{margin} Search: {ended}."


def explain_change(change: Replan) -> str:
    """What leads from the current plan to `change.plan`, in order."""
    if change.kept:
        return f"Keep what runs: {change.why}."
    lines = [f"{len(change.steps)} steps: {change.why}."]
    for number, step in enumerate(change.steps, 1):
        where = ", ".join(sorted({p.node for p in step.places}))
        dip = "  (before its replacement: there is no room for both)" if step.breaks else ""
        lines.append(f"  {number}. {step.action} {step.key} on {where}{dip}")
    return "\n".join(lines)


def explain_what_if(text: str, made: Plan, other: Plan) -> str:
    """The difference that one change of the problem makes."""
    if not other.feasible:
        short = ", ".join(f"{s.name} {_short(s)}" for s in other.services if s.unmet > 1e-6)
        return f"With {text}: not everything fits ({short})"
    difference = other.hourly_usd - made.hourly_usd
    nodes = sum(other.nodes_used.values()) - sum(made.nodes_used.values())
    sign = "+" if difference >= 0 else "-"
    value = "" if other.objective == Objective.COST else f"{other.objective} {_value(other)} (it was {_value(made)}), "
    dollars = f"${other.hourly_usd:.2f}/h ({sign}${abs(difference):.2f})"
    return f"With {text}: {value}{dollars}, {nodes:+d} nodes, gap {other.gap:.2%}"


def explain_tightened(asked: Problem, solved: Problem) -> str:
    """Which models were held to shorter times than their deployments ask for; empty where none was."""
    old = {s.name: s for s in asked.services}
    lines = [
        f"{s.name} is held to {s.slo.itl_s * 1e3:.0f} ms between tokens, so that runs of agents keep their seconds."
        for s in solved.services
        if isinstance(s, ModelService) and s != old[s.name] and s.slo.itl_s is not None
    ]
    return "\n".join(lines)
