"""Answers without what the planner fails on: one object that it cannot bear must not keep it from serving the others.

    attempt(all) fails -> kind by kind, halves are added to what works until those are found without which it works

What was found is remembered for as long as the planner's process lives and the object stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeVar

from katsura.domain.errors import KatsuraError, UnavailableError
from katsura.manifests.conditions import Why
from katsura.manifests.decision import Situation
from katsura_operator.core.objects import digest

T = TypeVar("T")
Refusal = tuple[Why, str]
Known = MutableMapping[str, Refusal]
"""Why something was left out, by what it is (`_mark`)."""
_OF_BUNDLE: Final = {
    "ModelDeployment": "deployments",
    "Agent": "agents",
    "AcceleratorProfile": "profiles",
    "MemoryStore": "memory_stores",
}
_OBSERVED: Final = {"Node": "nodes", "ResourceSlice": "slices", "Pod": "pods"}
_TRIES_MAX: Final = 64
"""Attempts per kind: enough for two among thousands; what was not tried by then is left out too."""
_UNTRIED: Final = (Why.PLANNER_FAILED, "the operator fails, maybe because of it; please report this")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What `attempt` made, and why what was left out: by (kind, name)."""

    made: T
    left_out: dict[tuple[str, str], Refusal]


def bear(
    asked: Situation,
    attempt: Callable[[Situation], T],
    known: Known,
    prove: Callable[[Situation], object] | None = None,
) -> Answer[T]:
    """`attempt` of as much of `asked` as it does not fail on.

    Args:
        prove: shows whether it would, where `attempt` may answer by what was found before.

    Raises:
        UnavailableError: of `attempt`. Exception: what it fails with, where no kind of object is to blame.
    """
    left_out: dict[tuple[str, str], Refusal] = {}
    for kind in (*_OF_BUNDLE, *_OBSERVED):
        marks = [(item, _mark(kind, item)) for item in _items(asked, kind)] if known else []
        if any(mark in known for _, mark in marks):
            asked = _with(asked, kind, [item for item, mark in marks if mark not in known])
            left_out |= {(kind, _name(item)): known[mark] for item, mark in marks if mark in known}
    try:
        return Answer(attempt(asked), left_out)
    except UnavailableError:
        raise
    except Exception as error:  # noqa: BLE001  # told in conditions: of what is to blame, or else of all
        refusal = error
    # What the planner says itself is about all, but for profiles of devices that nobody knows.
    for kind in ("AcceleratorProfile",) if isinstance(refusal, KatsuraError) else (*_OF_BUNDLE, *_OBSERVED):
        items = _items(asked, kind)
        search = _Search(asked, kind, prove or attempt)
        search.add(items[: len(items) // 2])
        search.add(items[len(items) // 2 :])
        if search.good or (items and search.works_without()):
            known.update({_mark(kind, item): why for item, why in search.bad})
            bad = {(kind, _name(item)): why for item, why in search.bad}
            return Answer(attempt(_with(asked, kind, search.good)), left_out | bad)
    raise refusal


@dataclass(slots=True)
class _Search:
    """Which items of a kind are to blame."""

    asked: Situation
    kind: str
    prove: Callable[[Situation], object]
    good: list[Any] = field(default_factory=list)
    bad: list[tuple[Any, Refusal]] = field(default_factory=list)
    tries: int = 0

    def add(self, items: Sequence[Any]) -> None:
        """Add what works of `items`."""
        if not items:
            return
        self.tries += 1
        if self.tries > _TRIES_MAX:
            self.bad += [(item, _UNTRIED) for item in items]
            return
        try:
            self.prove(_with(self.asked, self.kind, [*self.good, *items]))
            self.good += items
        except UnavailableError:
            raise
        except Exception as error:  # noqa: BLE001  # this is what is searched for
            if len(items) == 1:
                self.bad.append((items[0], _refusal(error)))
                return
            middle = len(items) // 2
            self.add(items[:middle])
            self.add(items[middle:])

    def works_without(self) -> bool:
        """Whether it works without all of them."""
        try:
            self.prove(_with(self.asked, self.kind, ()))
        except UnavailableError:
            raise
        except Exception:  # noqa: BLE001  # then they are not to blame
            return False
        return True


def fault(error: BaseException) -> str:
    """A fault in words for people: what was wrong and where, or our own message."""
    if isinstance(error, KatsuraError):
        return error.message
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code if trace is not None else None
    where = f" at {code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}" if trace and code else ""
    return f"the operator fails on it{where}, {type(error).__name__}: {error}; please report this"


def _refusal(error: Exception) -> Refusal:
    return Why.INVALID_CONFIGURATION if isinstance(error, KatsuraError) else Why.PLANNER_FAILED, fault(error)


def _items(asked: Situation, kind: str) -> Sequence[Any]:
    holder: Any = asked.bundle if kind in _OF_BUNDLE else asked
    found: Sequence[Any] = getattr(holder, {**_OF_BUNDLE, **_OBSERVED}[kind])
    return found


def _with(asked: Situation, kind: str, items: Sequence[Any]) -> Situation:
    chosen: dict[str, Any] = {{**_OF_BUNDLE, **_OBSERVED}[kind]: tuple(items)}
    return replace(asked, **chosen) if kind in _OBSERVED else replace(asked, bundle=replace(asked.bundle, **chosen))


def _name(item: Any) -> str:
    return str(item["metadata"]["name"] if isinstance(item, dict) else item.metadata.name)


def _mark(kind: str, item: Any) -> str:
    if not isinstance(item, dict):
        return digest(kind, repr(item), length=16)
    metadata, status = item["metadata"], item.get("status") or {}  # without what changes by itself
    said = (metadata.get("uid"), metadata.get("labels"), item.get("spec"), status.get("allocatable"))
    return digest(kind, metadata["name"], said, length=16)
