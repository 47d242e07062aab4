"""A plan as a picture (SVG text): nodes with what they hold, and cost against time between tokens for each service.

`katsura plan --svg` writes it. Colours are by service, one square is one accelerator or one core; nodes that hold the
same are drawn once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape

from katsura.placement.greedy import share_cost
from katsura.placement.patterns import Column, enumerate_patterns
from katsura.placement.plan import Place, Plan
from katsura.placement.problem import ModelService, NodeClass, Problem

_COLOURS = (
    *("#3b6ea5", "#c8553d", "#5a9367", "#8e6c8a", "#d9a441", "#4aa3a2", "#a44a6b", "#6b705c"),
    *("#1f3a5f", "#f08a6b", "#2d5a3d", "#c9a9d6", "#7a5c1e", "#9ad6d5", "#5f1f3a", "#b5b89f"),
)
_SQUARE, _GAP, _WIDTH, _PER_ROW = 10, 2, 960, 16
_NODES_DRAWN = 60
_NAMES_PER_LINE = 5
_UNPLACED = "#888888"
_PLOT = (420.0, 220.0)


def draw(plan: Plan, problem: Problem) -> str:
    """The picture as SVG text, a thousand points wide."""
    drawn = _drawn(plan, problem)
    colour = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(drawn)}
    parts, y = [], 30.0
    headline = f"${plan.hourly_usd:.2f}/h, gap {plan.gap:.2%}"
    if not plan.feasible:
        headline += "; served in part: " + ", ".join(s.name for s in plan.services if s.unmet > 0)
    parts.append(_text(20, y, headline, size=16))
    for name, fill in colour.items():
        y += 16
        parts.append(f'<rect x="20" y="{y - 9:.0f}" width="10" height="10" fill="{fill}"/>' + _text(36, y, name))
    beside = [f"{s.name} x{s.instances}" for s in plan.services if s.instances and s.name not in colour]
    for i in range(0, len(beside), _NAMES_PER_LINE):
        y += 16
        words = ", ".join(beside[i : i + _NAMES_PER_LINE])
        parts.append(_text(20, y, f"On cores of these nodes: {words}" if not i else words))
    y += 20
    nodes, y = _nodes(plan, problem, colour, y)
    plots, y = _frontiers(plan, problem, colour, y + 20)
    body = "\n".join([*parts, *nodes, *plots])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + 40}" height="{y:.0f}" '
        f'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, words: str, size: int = 11, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}">{escape(words)}</text>'


def _drawn(plan: Plan, problem: Problem) -> list[str]:
    """Services that own a square, in their order."""
    whole = {c.name: bool(c.accelerators) for c in problem.classes}
    places = ((i.column.service, p) for i in plan.instances for p in i.places)
    owners = {name for name, p in places if p.accelerators or not whole[p.node_class]}
    return [s.name for s in problem.services if s.name in owners]


def _nodes(plan: Plan, problem: Problem, colour: dict[str, str], y: float) -> tuple[list[str], float]:
    held: dict[str, list[tuple[str, Place]]] = defaultdict(list)
    for instance in plan.instances:
        for place in instance.places:
            held[place.node].append((instance.column.service, place))
    alike: dict[object, list[tuple[NodeClass, str]]] = defaultdict(list)
    for c in problem.classes:
        for name in (n for n in c.nodes if n in held):
            shown = sorted((s, p.role, p.accelerators, p.cores) for s, p in held[name] if s in colour)
            alike[(c.device or c.core).name, c.accelerators, c.cores, tuple(shown)].append((c, name))
    parts: list[str] = []
    x, row_height = 20.0, 0.0
    groups = list(alike.values())
    for c, name, many in ((*same[0], len(same)) for same in groups[:_NODES_DRAWN]):
        units = int(c.accelerators or c.cores)
        columns = min(units, _PER_ROW)
        width = max(columns * (_SQUARE + _GAP) + 14, 170.0)
        height = 18 + (-(-units // _PER_ROW)) * (_SQUARE + _GAP) + 12
        if x + width > _WIDTH:
            x, y, row_height = 20.0, y + row_height + 6, 0.0
        title = name if many == 1 else f"{name} and {many - 1} like it"
        parts += _node(c, title, held[name], colour, x, y)
        x, row_height = x + width, max(row_height, height)
    y += row_height
    left = sum(map(len, groups[_NODES_DRAWN:]))
    if left:
        y += 16
        parts.append(_text(20, y, f"and {left} more nodes"))
    return parts, y


def _node(
    c: NodeClass, name: str, held: Sequence[tuple[str, Place]], colour: dict[str, str], x: float, y: float
) -> Iterator[str]:
    yield _text(x, y + 10, _cut(name), size=9)
    fills = []
    for service, place in sorted(held, key=lambda h: (-h[1].accelerators, h[0])):
        units = place.accelerators if c.accelerators else round(place.cores)
        fills += [(colour.get(service, "#e6e6e6"), f"{service} {place.role}")] * units
    total = int(c.accelerators or c.cores)
    fills = fills[:total] + [("#e6e6e6", "free")] * (total - len(fills))
    for i, (fill, title) in enumerate(fills):
        across, down = i % _PER_ROW, i // _PER_ROW
        left, top = x + across * (_SQUARE + _GAP), y + 16 + down * (_SQUARE + _GAP)
        yield (
            f'<rect x="{left:.0f}" y="{top:.0f}" width="{_SQUARE}" height="{_SQUARE}" fill="{fill}">'
            f"<title>{escape(title)}</title></rect>"
        )


def _frontiers(plan: Plan, problem: Problem, colour: dict[str, str], y: float) -> tuple[list[str], float]:
    columns = enumerate_patterns(problem).columns(problem.classes)
    chosen = {i.column.key for i in plan.instances}
    parts: list[str] = []
    models = [s for s in problem.services if isinstance(s, ModelService)]
    parts.append(_text(20, y, "One dot per pattern; filled: chosen; line: nothing is both faster and cheaper", size=9))
    y += 20
    for i, service in enumerate(models[:6]):
        mine = [c for c in columns if c.service == service.name and c.point is not None]
        x = 20 + (i % 2) * (_PLOT[0] + 60)
        if mine:
            parts += _frontier(problem, service, mine, chosen, colour.get(service.name, _UNPLACED), x, y)
        if i % 2 or i == len(models[:6]) - 1:
            y += _PLOT[1] + 50
    return parts, y


def _frontier(
    problem: Problem,
    service: ModelService,
    columns: Sequence[Column],
    chosen: set[str],
    fill: str,
    x: float,
    y: float,
) -> Iterator[str]:
    """$ per million output tokens against milliseconds between tokens: one dot per pattern, the chosen ones filled; a
    line through those than which none is both cheaper and faster, and one at the limit."""
    classes = {c.name: c for c in problem.classes}
    dots = set()
    for column in columns:
        assert column.point is not None
        usd = share_cost(problem, classes, column) / 3600 / service.load.output * 1e6
        dots.add((column.key in chosen, column.point.itl_s * 1e3, max(usd, 1e-6), column.key))
    width, height = _PLOT
    right, top, low = max(d[1] for d in dots) * 1.05, max(d[2] for d in dots) * 1.1, min(d[2] for d in dots) / 1.1
    yield _text(x, y, f"{_cut(service.name)}: cost and time between tokens")
    yield f'<path d="M{x:.0f} {y + 8:.0f} V{y + height:.0f} H{x + width:.0f}" fill="none" stroke="#888"/>'
    yield _text(x, y + height + 14, "0")
    yield _text(x + width, y + height + 14, f"{right:.0f} ms", anchor="end")
    yield _text(x + 4, y + 18, f"{_usd(top)} per 1M output tokens, log scale")
    yield _text(x + 4, y + height - 4, _usd(low))

    def at(itl: float, usd: float) -> tuple[float, float]:
        rise = math.log(usd / low) / math.log(top / low)
        return x + itl / right * width, y + height - rise * (height - 10)

    best = [at(itl, usd) for itl, usd in _undominated([(itl, usd) for _, itl, usd, _ in dots])]
    steps = "".join(f" H{across:.1f} V{down:.1f}" for across, down in best[1:])
    line = f"M{best[0][0]:.1f} {best[0][1]:.1f}{steps} H{x + width:.1f}"
    yield f'<path d="{line}" fill="none" stroke="{fill}"/>'
    if service.slo.itl_s is not None and service.slo.itl_s * 1e3 <= right:
        limit = x + service.slo.itl_s * 1e3 / right * width
        yield f'<path d="M{limit:.1f} {y + 8:.0f} V{y + height:.0f}" fill="none" stroke="#c8553d"/>'
        yield _text(limit - 4, y + 30, f"{service.slo.itl_s * 1e3:.0f} ms allowed", anchor="end")
    for taken, itl, usd, key in sorted(dots):
        across, down = at(itl, usd)
        style = f'fill="{fill}"' if taken else f'fill="white" stroke="{fill}"'
        yield f'<circle cx="{across:.1f}" cy="{down:.1f}" r="4" {style}><title>{escape(key)}</title></circle>'


def _undominated(dots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those than which none is both smaller in the first and no larger in the second, in order of the first."""
    made: list[tuple[float, float]] = []
    for dot in sorted(dots):
        if not made or dot[1] < made[-1][1]:
            made.append(dot)
    return made


def _cut(name: str) -> str:
    return name if len(name) < 34 else f"{name[:32]}.."


def _usd(value: float) -> str:
    return f"${value:.3g}" if value < 100 else f"${value:,.0f}"
