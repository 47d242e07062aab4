"""Dataclasses from nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

import pytest

from katsura.manifests.document import parse
from katsura.manifests.reader import Reader, suggestion
from katsura.manifests.rules import Problem, Rule


class Colour(StrEnum):
    RED = "Red"
    BLUE = "Blue"


@dataclass(frozen=True, slots=True)
class Part:
    name: Annotated[str, Rule("its name", 1, 5)]
    share: float = 0.5


@dataclass(frozen=True, slots=True)
class Whole:
    part_count: Annotated[int, Rule("how many", 1, 9)]
    colour: Colour = Colour.RED
    heap_bytes: Annotated[int, Rule("memory", 1, quantity=True)] = 1
    hidden: bool = False
    parts: Annotated[tuple[Part, ...], Rule("parts", maximum=2)] = ()
    first: Part | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


def read(text: str) -> tuple[Whole | None, list[str]]:
    problems: list[Problem] = []
    (node,) = parse("f", text, problems)
    whole = Reader(problems).read(Whole, node, "spec")
    return whole, [str(problem).removeprefix("f:") for problem in problems]


def test_values_and_defaults_become_a_dataclass() -> None:
    whole, problems = read(
        "{partCount: 3, colour: Blue, heapBytes: 2Ki, hidden: yes, parts: [{name: a, share: 1}], first: {name: b}, "
        "tags: {x: 'y'}}"
    )
    assert problems == []
    assert whole == Whole(3, Colour.BLUE, 2048, True, (Part("a", 1.0),), Part("b"), {"x": "y"})
    assert read("partCount: 1")[0] == Whole(1)


def test_null_is_absent() -> None:
    assert read("{partCount: 1, first: null, colour: ~}")[0] == Whole(1)
    assert read("partCount: null") == (None, ["1: spec.partCount: missing; it says how many"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "1: spec.partCount: missing; it says how many"),
        ("partCount: two", "1: spec.partCount: expected a whole number from 1 to 9, got 'two'"),
        ("partCount: 1.0", "1: spec.partCount: expected a whole number from 1 to 9, got 1.0"),
        ("partCount: true", "1: spec.partCount: expected a whole number from 1 to 9, got True"),
        ("partCount: 10", "1: spec.partCount: expected a whole number from 1 to 9, got 10"),
        ("partCount: [1]", "1: spec.partCount: expected a whole number from 1 to 9, got a list"),
        ("partCount: 1\npartcount: 2", '2: spec.partcount: no such field; did you mean "partCount"?'),
        ("partCount: 1\npart_count: 2", '2: spec.part_count: no such field; did you mean "partCount"?'),
        ("partCount: 1\ncolour: blue", "2: spec.colour: expected one of Red, Blue, got 'blue'; did you mean \"Blue\"?"),
        ("partCount: 1\nheapBytes: 5 MB", "2: spec.heapBytes: expected bytes such as 512Mi >= 1, got '5 MB'"),
        ("partCount: 1\nhidden: 1", "2: spec.hidden: expected true or false, got 1"),
        ("partCount: 1\nparts: {}", "2: spec.parts: expected a list, got fields"),
        ("partCount: 1\nfirst: [a]", "2: spec.first: expected fields, got a list"),
        (
            "partCount: 1\nfirst:\n  name: toolong",
            "3: spec.first.name: expected text of 1 to 5 characters, got 'toolong'",
        ),
        ("partCount: 1\ntags:\n  a: 1", "3: spec.tags.a: expected text, got 1"),
        (
            "partCount: 1\nparts:\n- {name: a}\n- {name: a}",
            "4: spec.parts[1]: Part(name='a', share=0.5) is listed twice",
        ),
        (
            "partCount: 1\nparts: [{name: a}, {name: b}, {name: c}]",
            "2: spec.parts: at most 2 items, got 3",
        ),
    ],
)
def test_a_wrong_value_is_named_with_line_and_field(text: str, problem: str) -> None:
    assert read(text) == (None, [problem])


def test_every_problem_is_listed() -> None:
    _, problems = read("colour: Green\nparts: [{}, {name: 1, size: 2}]")
    assert [problem.split(": ")[1] for problem in problems] == [
        "spec.partCount",
        "spec.colour",
        "spec.parts[0].name",
        "spec.parts[1].size",
        "spec.parts[1].name",
    ]


def test_a_suggestion_lists_what_is_known_when_nothing_is_close() -> None:
    assert suggestion("zzz", ["b", "a"]) == "; known here: a, b"
    assert suggestion("zzz", []) == ""
