"""Changes of a problem in one line of text: `nodes:H100=+2`, `price:L4=0.5`, `demand:chat=x2`, `itl:chat=80`.

`katsura plan --what-if` solves the changed problem beside the real one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.plan import Plan
from katsura.placement.problem import ModelService, NodeClass, Problem, Service

_FORM = re.compile(r"(?P<what>nodes|price|demand|itl|ttft):(?P<name>[^=]+)=(?P<sign>[+x-]?)(?P<value>\d+(\.\d+)?)\Z")


def changed(problem: Problem, text: str) -> Problem:
    """`problem` with one thing changed. `+2` adds, `-2` takes away, `x2` multiplies, `2` sets; times in milliseconds.

    Raises:
        InvalidArgumentError: not of that form, nothing has that name, or less would be left than there can be.
    """
    match = _FORM.match(text)
    if match is None:
        raise InvalidArgumentError(
            f"--what-if {text!r} is not understood; write nodes:DEVICE=+2, price:DEVICE=0.5, demand:SERVICE=x2, "
            "itl:SERVICE=80 or ttft:SERVICE=1500; +2 adds, -2 takes away, x2 multiplies, 2 sets",
            field="what-if",
        )
    name, change = match["name"], _Change(text, match["sign"], float(match["value"]))
    if match["what"] in ("nodes", "price"):
        named = [c for c in problem.classes if name in (c.name, (c.device or c.core).name)]
        _check(named, name, "device", [(c.device or c.core).name for c in problem.classes])
        made = _resized(named, change) if match["what"] == "nodes" else [_repriced(c, change) for c in named]
        new = {c.name: c for c in made}
        return replace(problem, classes=tuple(new.get(c.name, c) for c in problem.classes))
    services = [s for s in problem.services if s.name == name and isinstance(s, ModelService)]
    _check(services, name, "deployment", [s.name for s in problem.services if isinstance(s, ModelService)])
    return replace(
        problem, services=tuple(_asked(s, match["what"], change) if s in services else s for s in problem.services)
    )


def _check(found: object, name: str, what: str, known: list[str]) -> None:
    if not found:
        folded = {k.lower(): k for k in known}
        near = difflib.get_close_matches(name.lower(), folded, n=1)
        hint = f"; did you mean {folded[near[0]]}?" if near else ""
        raise InvalidArgumentError(
            f"--what-if: no {what} {name!r}; there are {', '.join(sorted(set(known)))}{hint}", field="what-if"
        )


@dataclass(frozen=True, slots=True)
class _Change:
    text: str
    sign: str
    value: float

    def of(self, old: float, unit: str) -> float:
        """What `old` becomes."""
        match self.sign:
            case "+":
                new = old + self.value
            case "-":
                new = old - self.value
            case "x":
                new = old * self.value
            case _:
                new = self.value
        if new < 0:
            raise InvalidArgumentError(f"--what-if {self.text}: there are {old:g} {unit}", field="what-if")
        return new


def _resized(named: Sequence[NodeClass], change: _Change) -> list[NodeClass]:
    """More nodes are more of the first class; fewer are taken from the last classes first."""
    have = sum(len(c.nodes) for c in named)
    want = change.of(have, "nodes")
    if want != int(want):
        raise InvalidArgumentError(f"--what-if {change.text}: {want:g} nodes; name a whole number", field="what-if")
    more = int(want) - have
    first, made = named[0], []
    for c in reversed(named):
        gone = min(len(c.nodes), max(0, -more))
        more += gone
        made.append(replace(c, nodes=c.nodes[: len(c.nodes) - gone]))
    added = tuple(f"{first.name}-more-{i}" for i in range(more))
    made[-1] = replace(made[-1], nodes=(*made[-1].nodes, *added))
    return made


def _repriced(c: NodeClass, change: _Change) -> NodeClass:
    units = c.accelerators or c.cores
    return replace(c, hourly_usd=change.of(c.hourly_usd / units, "dollars per hour") * units)


def _asked(service: Service, what: str, change: _Change) -> Service:
    assert isinstance(service, ModelService)
    if what == "demand":
        return replace(service, requests_s=change.of(service.requests_s, "requests per second"))
    old: float | None = getattr(service.slo, f"{what}_s")
    if change.sign and old is None:
        raise InvalidArgumentError(
            f"--what-if {change.text}: {service.name} has no such limit to change; set one: {what}:{service.name}=80",
            field="what-if",
        )
    new = change.of((old or 0.0) * 1e3, "ms")
    if new <= 0:
        raise InvalidArgumentError(f"--what-if {change.text}: expected more than 0 ms", field="what-if")
    return replace(service, slo=replace(service.slo, **{f"{what}_s": new / 1e3}))


def outcome_document(text: str, made: Plan, other: Plan) -> dict[str, Any]:
    """What the change `text` makes of the plan `made`, an entry of `status.whatIf`: `other` answers it."""
    return {
        "change": text,
        "feasible": other.feasible,
        "gap": round(other.gap, 6),
        "value": float(f"{other.value:.6g}"),
        "hourlyUsd": float(f"{other.hourly_usd:.6g}"),
        "changeUsd": float(f"{other.hourly_usd - made.hourly_usd:.6g}"),
        "nodes": sum(other.nodes_used.values()),
        "unmet": {s.name: float(f"{s.unmet:.6g}") for s in other.services if s.unmet > 1e-6},
    }
