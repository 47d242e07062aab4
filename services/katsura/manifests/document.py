"""YAML text to a tree of values that remember where they stood, so that an error can name its line.

Only the plain data of YAML 1.1 as Kubernetes reads it: no tags, no merge keys, no duplicate keys. `reader` walks the
result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from katsura.manifests.rules import Problem

_PLAIN = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp"))
Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node begins. `line` and `column` count from 1."""

    file: str
    line: int
    column: int

    def problem(self, field: str, message: str) -> Problem:
        """`message` about `field`, at this place."""
        return Problem(self.file, self.line, self.column, field, message)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A text, number, boolean or nothing."""

    place: Place
    value: Scalar


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    place: Place
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Entries:
    """A mapping with text keys; `keys` says where each key stands."""

    place: Place
    nodes: Mapping[str, Node]
    keys: Mapping[str, Place]


Node = Leaf | Items | Entries


class _Converter:
    """Turns the nodes of one composed document into ours; `problems` collects what plain data cannot hold."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self._file = file
        self._problems = problems
        self._constructor = yaml.constructor.SafeConstructor()
        self._open: set[int] = set()

    def convert(self, node: yaml.Node, path: str) -> Node:
        place = self._place(node)
        if id(node) in self._open:
            self._problems.append(place.problem(path, "an anchor that contains itself has no end; write the value out"))
            return Leaf(place, None)
        self._open.add(id(node))
        try:
            match node:
                case yaml.MappingNode():
                    return self._mapping(node, path, place)
                case yaml.SequenceNode():
                    return Items(place, tuple(self.convert(v, f"{path}[{i}]") for i, v in enumerate(node.value)))
                case _:
                    return Leaf(place, self._scalar(node, path, place))
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: str, place: Place) -> Entries:
        nodes: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        for key_node, value_node in node.value:
            at = self._place(key_node)
            key = str(getattr(key_node, "value", ""))
            if not isinstance(key_node, yaml.ScalarNode):
                self._problems.append(at.problem(path, "a field name must be a plain word"))
                continue
            child = f"{path}.{key}" if path else key
            if key in nodes:
                self._problems.append(at.problem(child, f"written twice; the first is on line {keys[key].line}"))
                continue
            keys[key] = at
            nodes[key] = self.convert(value_node, child)
        return Entries(place, nodes, keys)

    def _scalar(self, node: yaml.Node, path: str, place: Place) -> Scalar:
        if node.tag not in _PLAIN:
            self._problems.append(place.problem(path, f"tags such as {node.tag!r} are not read; write plain data"))
            return None
        try:
            value = self._constructor.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            self._problems.append(place.problem(path, f"cannot be read: {error}"))
            return None
        # A date is text to us, as it is to Kubernetes.
        return value if value is None or isinstance(value, str | int | float) else str(node.value)

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._file, node.start_mark.line + 1, node.start_mark.column + 1)


def tree(file: str, data: Any) -> Node:
    """Parsed JSON as a tree: what YAML reads otherwise than JSON (`1e-05`, characters written as two escapes) stays."""
    place = Place(file, 1, 1)
    if isinstance(data, Mapping):
        return Entries(place, {str(k): tree(file, v) for k, v in data.items()}, {str(k): place for k in data})
    if isinstance(data, list | tuple):
        return Items(place, tuple(tree(file, v) for v in data))
    return Leaf(place, data)


def parse(file: str, text: str, problems: list[Problem]) -> Iterator[Node]:
    """Yield the non-empty documents of `text`; syntax errors go to `problems` with their line.

    Args:
        file: name for messages only.
        text: one or more YAML documents.
        problems: appended to.
    """
    try:
        for document in yaml.compose_all(text, Loader=yaml.SafeLoader):
            if document is not None and document.tag != "tag:yaml.org,2002:null":
                yield _Converter(file, problems).convert(document, "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = ", ".join(part for part in (error.context, error.problem) if part)
        problems.append(Problem(file, line, column, "", f"not YAML: {what}"))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problems.append(Problem(file, line, 1, "", f"not YAML: {error.reason} (character {error.character!r})"))
