"""What a pass sees: every object of our concern at about one moment, read afresh from the API server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from katsura_operator.core.objects import Kind, Object, labels_of, name_of, namespace_of


@dataclass(frozen=True, slots=True)
class Sample:
    """What decode steps of one shard were between two looks, on average.

    Attributes:
        deployment: `namespace/name`; revision: of the shard; node: that it runs on.
        accelerators: of its pod; cores: that its pod requests.
        step_s: seconds of a step; batch: sequences in it; context: tokens that each of them saw.
    """

    deployment: str
    revision: str
    node: str
    accelerators: int
    cores: float
    step_s: float
    batch: float
    context: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Objects by kind. `now`: RFC 3339, the operator's clock when the reading began. `samples`: oldest first.

    `odd`: uids of members that compute other bits than most of their pool (`core.copies`).
    """

    objects: Mapping[str, tuple[Object, ...]]
    now: str
    samples: tuple[Sample, ...] = ()
    odd: tuple[str, ...] = ()
    _index: dict[tuple[str, str, str], Object] = field(default_factory=dict, compare=False, repr=False)
    _labelled: dict[tuple[str, str, str], dict[str, list[Object]]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        for kind, found in self.objects.items():
            self._index.update({(kind, namespace_of(o), name_of(o)): o for o in found})

    def of(self, kind: Kind, namespace: str | None = None) -> list[Object]:
        """Objects of a kind, by namespace and name."""
        found = self.objects.get(kind.name, ())
        chosen = [o for o in found if namespace is None or namespace_of(o) == namespace]
        return sorted(chosen, key=lambda o: (namespace_of(o), name_of(o)))

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """One object."""
        return self._index.get((kind.name, namespace, name))

    def labelled(self, kind: Kind, namespace: str, **wanted: str) -> list[Object]:
        """Objects of a kind that carry these labels (one or more), by name."""
        (first, value), *others = wanted.items()
        key = (kind.name, namespace, first)
        if key not in self._labelled:
            index = self._labelled[key] = {}
            for obj in self.of(kind, namespace):
                index.setdefault(labels_of(obj).get(first, ""), []).append(obj)
        found = self._labelled[key].get(value, [])
        return [o for o in found if all(labels_of(o).get(k) == v for k, v in others)]
