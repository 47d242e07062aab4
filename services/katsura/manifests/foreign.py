"""Objects of the API server's own kinds (Nodes, Pods, ResourceSlices), of which a plan needs a few fields.

What is missing is empty, what nobody here needs is passed over, and what has the wrong shape is a problem that names
its place. `cluster` reads with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from katsura.manifests.document import Entries, Items, Leaf, Node, Place
from katsura.manifests.rules import Problem


@dataclass(frozen=True, slots=True)
class Foreign:
    """One object. `tree` is the YAML it was read from, where it was; `problems` grows with what is wrong."""

    file: str
    data: Any
    problems: list[Problem]
    tree: Node | None = None

    @property
    def title(self) -> str:
        """Its kind and name."""
        data = self.data if isinstance(self.data, Mapping) else {}
        metadata = data.get("metadata")
        name = metadata.get("name", "") if isinstance(metadata, Mapping) else ""
        return f"{data.get('kind', 'object')} {name}".strip()

    def mapping(self, *path: str | int) -> Mapping[str, Any]:
        """The fields at `path`; empty where nothing stands there."""
        value = self._value(path)
        if value is not None and not isinstance(value, Mapping):
            self.wrong(path, f"expected fields, got {_shown(value)}")
            return {}
        return value or {}

    def count(self, *path: str | int) -> int:
        """Items of the list at `path`; 0 where nothing stands there."""
        value = self._value(path)
        if value is not None and not isinstance(value, list | tuple):
            self.wrong(path, f"expected a list, got {_shown(value)}")
            return 0
        return len(value or ())

    def wrong(self, path: tuple[str | int, ...], message: str) -> None:
        """Note that what stands at `path` is not as it must be."""
        said = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")
        problem = self.place(path).problem(f"{self.title}: {said}" if said else self.title, message)
        if problem not in self.problems:
            self.problems.append(problem)

    def _value(self, path: tuple[str | int, ...]) -> Any:
        value = self.data
        for key in path:
            if isinstance(key, str):
                value = value.get(key) if isinstance(value, Mapping) else None
            else:
                value = value[key] if isinstance(value, list | tuple) and key < len(value) else None
        return value

    def place(self, path: tuple[str | int, ...]) -> Place:
        """Where `path` stands in its file, or the deepest of its parents that is written."""
        node = self.tree
        for key in path:
            match node:
                case Entries() if key in node.nodes:
                    node = node.nodes[str(key)]
                case Items() if isinstance(key, int) and key < len(node.nodes):
                    node = node.nodes[key]
                case _:
                    break
        return node.place if node is not None else Place(self.file, 1, 1)


def plain(node: Node) -> Any:
    """A tree as the data it stands for."""
    match node:
        case Entries():
            return {key: plain(value) for key, value in node.nodes.items()}
        case Items():
            return [plain(item) for item in node.nodes]
        case Leaf():
            return node.value


def _shown(value: object) -> str:
    return "fields" if isinstance(value, Mapping) else "a list" if isinstance(value, list | tuple) else repr(value)
