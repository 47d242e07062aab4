"""The published pages by their chained hash (`katsura.domain.pages`): what a new prompt can be matched against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Node:
    page: int
    name: bytes
    parent: bytes
    namespace: bytes
    children: set[bytes] = field(default_factory=set)


class PrefixIndex:
    """A forest of pages, one tree per namespace; a name covers all tokens before it, so one lookup a page is enough."""

    def __init__(self) -> None:
        self._by_name: dict[bytes, _Node] = {}
        self._by_page: dict[int, _Node] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: bytes) -> bool:
        return name in self._by_name

    def page_of(self, name: bytes) -> int | None:
        """The page published under `name`."""
        node = self._by_name.get(name)
        return None if node is None else node.page

    def match(self, names: Iterable[bytes]) -> list[int]:
        """Pages of the longest known prefix of a chain of names."""
        pages: list[int] = []
        for name in names:
            node = self._by_name.get(name)
            if node is None:
                break
            pages.append(node.page)
        return pages

    def insert(self, page: int, name: bytes, parent: bytes, namespace: bytes) -> None:
        """Add `page`, which follows the page named `parent` (empty: a prompt begins with it)."""
        node = _Node(page, name, parent, namespace)
        self._by_name[name] = node
        self._by_page[page] = node
        if parent:
            self._by_name[parent].children.add(name)

    def remove(self, page: int) -> bytes:
        """Forget `page`; returns its name."""
        node = self._by_page.pop(page)
        del self._by_name[node.name]
        above = self._by_name.get(node.parent)
        if above is not None:
            above.children.discard(node.name)
        return node.name

    def namespace_of(self, name: bytes) -> bytes | None:
        """Namespace of the page named `name`."""
        node = self._by_name.get(name)
        return None if node is None else node.namespace

    def below(self, page: int) -> list[int]:
        """`page` and all pages after it, last ones first; empty if it is not in the index."""
        top = self._by_page.get(page)
        found = [] if top is None else [top]
        for node in found:
            found.extend(self._by_name[child] for child in sorted(node.children))
        return [node.page for node in reversed(found)]

    def of_namespace(self, namespace: bytes) -> list[int]:
        """All pages of a namespace."""
        return [node.page for node in self._by_name.values() if node.namespace == namespace]

    def names(self) -> list[bytes]:
        """Names of all pages."""
        return list(self._by_name)
