"""Checks a node against a kind and builds it: the only code that knows how a dataclass reads from YAML.

Works from the type hints and `Rule`s in `kinds`, so a new field needs no code here. Every problem is collected, none
stops the reading; a value with a problem is `None` and its parents are not built.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from katsura.manifests.document import Entries, Items, Leaf, Node
from katsura.manifests.rules import Problem, Rule, camel, parse_quantity

_NO_RULE = Rule("")
T = TypeVar("T")


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean "replicas"?`, or the known words where none is close."""
    choices = sorted(known)
    folded = {choice.lower(): choice for choice in choices}
    plain = word.replace("_", "").replace("-", "").lower()
    close = difflib.get_close_matches(plain, folded, n=1, cutoff=0.6)
    if close:
        return f'; did you mean "{folded[close[0]]}"?'
    return f"; known here: {', '.join(choices)}" if choices else ""


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """Type hints of a dataclass, with their `Rule`s."""
    return get_type_hints(kind, include_extras=True)


class Reader:
    """Reads nodes into dataclasses; `problems` grows with everything that is wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems

    def read(self, kind: type[T], node: Node, path: str, ignore: Iterable[str] = ()) -> T | None:
        """Build `kind` from a mapping node, or None if anything below `path` is wrong.

        Args:
            kind: a frozen dataclass whose hints may carry a `Rule`.
            node: what stands in the file.
            path: of the node, for messages (`spec.roles`).
            ignore: keys that are somebody else's and not read.
        """
        if not isinstance(node, Entries):
            self._wrong(node, path, "fields", node)
            return None
        before = len(self.problems)
        known = {camel(field.name): field for field in fields(kind)}  # type: ignore[arg-type]
        for key in node.nodes:
            if key not in known and key not in ignore:
                at = node.keys[key]
                self.problems.append(at.problem(_join(path, key), f"no such field{suggestion(key, known)}"))
        values = {field.name: self._field(kind, field, node, path) for field in known.values()}
        return kind(**values) if len(self.problems) == before else None

    def _field(self, kind: type, field: Field[Any], node: Entries, path: str) -> Any:
        key = camel(field.name)
        child = node.nodes.get(key)
        if child is None or (isinstance(child, Leaf) and child.value is None):
            if field.default is not MISSING:
                return field.default
            if field.default_factory is not MISSING:
                return field.default_factory()
            doc = _rule(hints_of(kind)[field.name])[1].doc
            place = child.place if child else node.place
            self.problems.append(place.problem(_join(path, key), f"missing; it says {doc}" if doc else "missing"))
            return None
        return self._value(hints_of(kind)[field.name], child, _join(path, key), _NO_RULE)

    def _value(self, hint: Any, node: Node, path: str, rule: Rule) -> Any:
        hint, own = _rule(hint)
        rule = own if own is not _NO_RULE else rule
        origin = get_origin(hint)
        if origin in (Union, types.UnionType):
            inner = next(arg for arg in get_args(hint) if arg is not type(None))
            return self._value(inner, node, path, rule)
        if origin is tuple:
            return self._list(get_args(hint)[0], node, path, rule)
        if origin is not None and issubclass(origin, Mapping):
            return self._map(get_args(hint)[1], node, path)
        if is_dataclass(hint) and isinstance(hint, type):
            return self.read(hint, node, path)
        if not isinstance(node, Leaf):
            return self._wrong(node, path, _wanted(hint, rule), node)
        return self._scalar(hint, node, path, rule)

    def _list(self, item: Any, node: Node, path: str, rule: Rule) -> tuple[Any, ...] | None:
        if not isinstance(node, Items):
            self._wrong(node, path, "a list", node)
            return None
        if rule.maximum is not None and len(node.nodes) > rule.maximum:
            self.problems.append(node.place.problem(path, f"at most {rule.maximum} items, got {len(node.nodes)}"))
        values = tuple(self._value(item, child, f"{path}[{i}]", _NO_RULE) for i, child in enumerate(node.nodes))
        for i, value in enumerate(values):
            if not rule.repeats and value is not None and value in values[:i]:
                self.problems.append(node.nodes[i].place.problem(f"{path}[{i}]", f"{value!r} is listed twice"))
        return values

    def _map(self, item: Any, node: Node, path: str) -> dict[str, Any] | None:
        if not isinstance(node, Entries):
            self._wrong(node, path, "fields", node)
            return None
        return {key: self._value(item, child, _join(path, key), _NO_RULE) for key, child in node.nodes.items()}

    def _scalar(self, hint: Any, node: Leaf, path: str, rule: Rule) -> Any:
        value = node.value
        if isinstance(hint, type) and issubclass(hint, StrEnum):
            if value in set(hint):
                return hint(value)
            return self._wrong(node, path, _wanted(hint, rule), value, suggestion_from=list(hint))
        if hint is int and rule.quantity and isinstance(value, str):
            value = parse_quantity(value)
        fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            fits, value = True, float(value)
        if not fits or not _in_bounds(value, rule) or (rule.pattern and not re.fullmatch(rule.pattern, str(value))):
            return self._wrong(node, path, _wanted(hint, rule), node.value)
        return value

    def _wrong(self, node: Node, path: str, wanted: str, got: Any, suggestion_from: Iterable[str] = ()) -> None:
        match got:
            case Entries():
                shown = "fields"
            case Items():
                shown = "a list"
            case Leaf(value=value):
                shown = repr(value)
            case _:
                shown = repr(got)
        close = difflib.get_close_matches(str(got).lower(), [c.lower() for c in suggestion_from], n=1)
        hint = next((f'; did you mean "{c}"?' for c in suggestion_from if close and c.lower() == close[0]), "")
        self.problems.append(node.place.problem(path, f"expected {wanted}, got {shown}{hint}"))


def _rule(hint: Any) -> tuple[Any, Rule]:
    if get_origin(hint) is Annotated:
        inner, *extras = get_args(hint)
        return inner, next((extra for extra in extras if isinstance(extra, Rule)), _NO_RULE)
    return hint, _NO_RULE


def _in_bounds(value: Any, rule: Rule) -> bool:
    size = len(value) if isinstance(value, str) else value
    return (rule.minimum is None or size >= rule.minimum) and (rule.maximum is None or size <= rule.maximum)


def _wanted(hint: Any, rule: Rule) -> str:
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return "one of " + ", ".join(hint)
    if rule.pattern_help:
        return rule.pattern_help
    noun = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, "a value")
    if rule.quantity:
        noun = "bytes such as 512Mi"
    if hint is str:
        return noun if rule.maximum is None else f"text of {rule.minimum or 0} to {rule.maximum} characters"
    match rule.minimum, rule.maximum:
        case None, None:
            return noun
        case low, None:
            return f"{noun} >= {low}"
        case None, high:
            return f"{noun} <= {high}"
        case low, high:
            return f"{noun} from {low} to {high}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
