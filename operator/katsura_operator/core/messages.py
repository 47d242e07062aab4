"""What passes between the operator and its solver: JSON texts of one line each.

    to the solver   a Question, then that many objects
    from it         one answer per entry of a Desired, then an empty line

Objects cross once per version: whoever listens keeps them. Answers name objects that were seen instead of repeating
them, so that what is written is judged by the copy that was read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from katsura.domain.errors import InternalError
from katsura_operator.core.desire import Desired
from katsura_operator.core.objects import Object, key_of
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Sample, Snapshot

Key = tuple[str, str, str]
_BODIES: Final = ("seeds", "keep", "events")
_SEEN: Final = ("hold", "mark", "drain", "remove", "delete", "release")


@dataclass(frozen=True, slots=True)
class Question:
    """A decision is asked for.

    Attributes:
        now: of the snapshot. trouble: why nothing can be solved now.
        fresh: how many objects follow. gone: keys of objects that are no more. samples: of running shards.
        odd: members that cannot stand in for others.
    """

    settings: Settings
    now: str
    trouble: str
    fresh: int
    gone: tuple[Key, ...]
    samples: tuple[Sample, ...] = ()
    odd: tuple[str, ...] = ()

    def write(self) -> str:
        """One line."""
        samples = [[getattr(sample, name) for name in Sample.__slots__] for sample in self.samples]
        return json.dumps({**asdict(replace(self, samples=())), "samples": samples})

    @classmethod
    def read(cls, line: str | bytes) -> Question:
        """What `write` wrote."""
        said = json.loads(line)
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in said["settings"].items()}
        gone = tuple((kind, namespace, name) for kind, namespace, name in said["gone"])
        samples = tuple(Sample(*sample) for sample in said["samples"])
        return cls(Settings(**settings), said["now"], said["trouble"], said["fresh"], gone, samples, tuple(said["odd"]))


def snapshot_of(
    objects: Iterable[Object], now: str, samples: tuple[Sample, ...] = (), odd: tuple[str, ...] = ()
) -> Snapshot:
    """A snapshot of loose objects."""
    kinds: dict[str, list[Object]] = {}
    for obj in objects:
        kinds.setdefault(str(obj["kind"]), []).append(obj)
    return Snapshot({kind: tuple(found) for kind, found in kinds.items()}, now, samples, odd)


def write_answers(desired: Desired) -> Iterator[str]:
    """Lines that say `desired`."""
    if desired.plan is not None:
        yield json.dumps(["plan", desired.plan], default=dict)
    for name in _BODIES:
        yield from (json.dumps([name, body], default=dict) for body in getattr(desired, name))
    for name in _SEEN:
        yield from (json.dumps([name, key_of(obj)]) for obj in getattr(desired, name))
    yield from (json.dumps(["statuses", [key_of(obj), body]], default=dict) for obj, body in desired.statuses)


def write_failure(why: str) -> str:
    """The line that says that nothing could be decided."""
    return json.dumps(["failed", why])


def read_answer(line: str | bytes, desired: Desired, seen: Mapping[Key, Object]) -> None:
    """Add what one line says to `desired`.

    Raises:
        InternalError: it says why nothing could be decided.
    """
    name, said = json.loads(line)
    if name == "failed":
        raise InternalError(said)
    if name == "plan":
        desired.plan = said
    elif name == "statuses":
        key, body = said
        desired.statuses.append((seen[tuple(key)], body))
    else:
        getattr(desired, name).append(seen[tuple(said)] if name in _SEEN else said)
