"""What a field may hold, said once beside its type: `replicas: Annotated[int, Rule("...", minimum=0)]`.

The reader enforces it, documentation and custom resource definitions are generated from it. `bundle` is the caller
that turns several problems into one error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from katsura.domain.errors import InvalidArgumentError

_QUANTITY = re.compile(r"(?P<count>\d+(?:\.\d+)?)(?P<unit>Ki|Mi|Gi|Ti|k|M|G|T)?\Z")
_SCALE = {None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True)
class Rule:
    """Bounds and meaning of one field.

    Attributes:
        doc: one sentence for people; becomes the description in the schema.
        minimum, maximum: inclusive bounds of a number, of the length of a text or of the size of a list.
        pattern: regular expression that a whole text must match; `pattern_help` says it in words.
        quantity: the number may be written as a Kubernetes quantity (`512Mi`); the value is in bytes.
        repeats: items of the list may be equal.
    """

    doc: str
    minimum: int | None = None
    maximum: int | None = None
    pattern: str | None = None
    pattern_help: str = ""
    quantity: bool = False
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Invariant:
    """A rule between the fields of one spec; a CEL rule in the cluster.

    Attributes:
        field: the field that a person would change, relative to `spec`.
        holds: whether a spec keeps the rule.
        message: what is wrong and what to do.
        cel: the same rule for the API server, `self` being the spec.
    """

    field: str
    holds: Callable[[Any], bool]
    message: str
    cel: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in one file. `line` and `column` count from 1; `field` is empty for a syntax error."""

    file: str
    line: int
    column: int
    field: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}"
        return f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"


class ManifestError(InvalidArgumentError):
    """Manifests that cannot be used; `problems` lists everything that is wrong, in the order of the files."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        files = list(dict.fromkeys(problem.file for problem in problems))
        self.problems = tuple(sorted(problems, key=lambda problem: (files.index(problem.file), problem.line)))
        super().__init__(
            "\n".join(str(problem) for problem in self.problems),
            field=self.problems[0].field if self.problems else None,
        )


def parse_quantity(text: str) -> int | None:
    """Bytes of a Kubernetes quantity (`512Mi`, `1.5G`), rounded down; None for what is not one."""
    match = _QUANTITY.match(text)
    return int(float(match["count"]) * _SCALE[match["unit"]]) if match else None


def camel(name: str) -> str:
    """`page_tokens` -> `pageTokens`: the name of a Python field in YAML."""
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)
