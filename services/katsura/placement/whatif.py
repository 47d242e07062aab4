"""Changes of a problem in one line of text: `nodes:H100=+2`, `price:L4=0.5`, `demand:chat=x2`, `itl:chat=80`.

`katsura plan --what-if` solves the changed problem beside the real one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.problem import ModelService, NodeClass, Problem, Service

_FORM = re.compile(r"(?P<what>nodes|price|demand|itl|ttft):(?P<name>[^=]+)=(?P<sign>[+x-]?)(?P<value>\d+(\.\d+)?)\Z")


def changed(problem: Problem, text: str) -> Problem:
    """`problem` with one thing changed. `+2` adds, `-2` takes away, `x2` multiplies, `2` sets; times in milliseconds.

    Raises:
        InvalidArgumentError: not of that form, or nothing has that name.
    """
    match = _FORM.match(text)
    if match is None:
        raise InvalidArgumentError(
            f"--what-if {text!r} is not understood; write nodes:DEVICE=+2, price:DEVICE=0.5, demand:SERVICE=x2, "
            "itl:SERVICE=80 or ttft:SERVICE=1500",
            field="what-if",
        )
    name, value = match["name"], float(match["value"])
    apply = _operation(match["sign"], value)
    if match["what"] in ("nodes", "price"):
        named = [c for c in problem.classes if name in (c.name, (c.device or c.core).name)]
        _check(named, name, "device", [(c.device or c.core).name for c in problem.classes])
        first = named[0]
        make = _resized if match["what"] == "nodes" else _repriced
        new = {c.name: make(c, apply) for c in (named if match["what"] == "price" else [first])}
        return replace(problem, classes=tuple(new.get(c.name, c) for c in problem.classes))
    services = [s for s in problem.services if s.name == name and isinstance(s, ModelService)]
    _check(services, name, "deployment", [s.name for s in problem.services if isinstance(s, ModelService)])
    return replace(
        problem, services=tuple(_asked(s, match["what"], apply) if s in services else s for s in problem.services)
    )


def _check(found: object, name: str, what: str, known: list[str]) -> None:
    if not found:
        raise InvalidArgumentError(
            f"--what-if: no {what} {name!r}; there are {', '.join(sorted(set(known)))}", field="what-if"
        )


def _operation(sign: str, value: float) -> Callable[[float], float]:
    match sign:
        case "+":
            return lambda old: old + value
        case "-":
            return lambda old: old - value
        case "x":
            return lambda old: old * value
        case _:
            return lambda old: value


def _resized(c: NodeClass, apply: Callable[[float], float]) -> NodeClass:
    count = max(0, round(apply(len(c.nodes))))
    made = (*c.nodes, *(f"{c.name}-more-{i}" for i in range(count - len(c.nodes))))[:count]
    return replace(c, nodes=made)


def _repriced(c: NodeClass, apply: Callable[[float], float]) -> NodeClass:
    units = c.accelerators or c.cores
    return replace(c, hourly_usd=max(0.0, apply(c.hourly_usd / units)) * units)


def _asked(service: Service, what: str, apply: Callable[[float], float]) -> Service:
    assert isinstance(service, ModelService)
    if what == "demand":
        return replace(service, requests_s=max(0.0, apply(service.requests_s)))
    old = getattr(service.slo, f"{what}_s")
    return replace(service, slo=replace(service.slo, **{f"{what}_s": apply((old or 0.0) * 1e3) / 1e3}))
