"""One pass: read everything afresh, decide, write what differs.

There is no cache to be stale: lists are consistent reads, and what changes between reading and writing is caught by
uid and resourceVersion. What takes long is decided elsewhere (`solver`), since the lease must be renewed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Protocol

from katsura.domain.errors import KatsuraError, NotFoundError, PermissionDeniedError
from katsura.telemetry import log
from katsura_operator.authority import Authority
from katsura_operator.core.decision import excuse
from katsura_operator.core.desire import Desired
from katsura_operator.core.objects import (
    CHILDREN,
    MANAGED_BY,
    MANAGER,
    NODE,
    OURS,
    PLAN,
    POD,
    PROFILE,
    SLICE,
    Kind,
    Object,
)
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Sample, Snapshot
from katsura_operator.execute import Executor, Outcome
from katsura_operator.kube import Kube
from katsura_operator.solver import SolverFailedError

_LOG = log.get(__name__)


class Mind(Protocol):
    """Decides (`solver.Solver`)."""

    async def decide(self, seen: Snapshot, trouble: str = "") -> Desired:
        """What is to be written; with `trouble` nothing is solved. Raises SolverFailedError."""
        ...


def utc_now() -> str:
    """The clock of conditions."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Reconciler:
    """Makes passes over one scope. `namespaces`: which are served; empty for all."""

    def __init__(
        self,
        kube: Kube,
        executor: Executor,
        authority: Authority,
        mind: Mind,
        settings: Settings,
        namespaces: tuple[str, ...],
        now: Callable[[], str] = utc_now,
        sampled: Callable[[Iterable[Object]], tuple[Sample, ...]] = lambda pods: (),
        odd: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        """`sampled`: told which pods there are, what shards among them showed (`survey.Survey.note`). `odd`: which
        members among them compute other bits than most of their pool (`survey.Survey.odd`)."""
        self._kube, self._executor, self._authority, self._mind = kube, executor, authority, mind
        self._settings, self._namespaces, self._now, self._sampled = settings, namespaces, now, sampled
        self._odd = odd
        self._unreadable: set[str] = set()
        self.passes = 0

    async def run(self) -> Outcome:
        """One pass.

        Raises:
            UnavailableError, ResourceExhaustedError: the API server; nothing is lost, the next pass goes on.
            SolverFailedError: told in conditions; the next pass asks again.
        """
        seen = await self.observe()
        served = {o["metadata"]["namespace"] for kind in OURS[:2] for o in seen.of(kind)}
        await self._authority.keep(sorted(served), seen.now)
        try:
            desired = await self._mind.decide(seen)
        except SolverFailedError as error:
            await self._executor.run(await self._in_trouble(seen, error.message), seen)
            raise
        outcome = await self._executor.run(desired, seen)
        self.passes += 1
        return outcome

    async def _in_trouble(self, seen: Snapshot, why: str) -> Desired:
        """What can be decided without a plan; where that fails too, nothing but why."""
        try:
            return await self._mind.decide(seen, why)
        except SolverFailedError as error:
            _LOG.error("nothing can be decided", why=error.message)
            return excuse(seen, error.message)

    async def observe(self) -> Snapshot:
        """Everything of our concern."""
        now = self._now()
        objects: dict[str, tuple[Any, ...]] = {}
        for kind in OURS:
            only = (self._settings.namespace,) if kind is PLAN else self._namespaces
            objects[kind.name] = await self._all(kind, only)
        ours = f"{MANAGED_BY}={MANAGER}"
        for kind in CHILDREN:
            objects[kind.name] = await self._all(kind, self._namespaces, ours)
        objects[PROFILE.name] = await self._optional(PROFILE)
        if self._settings.nodes_observed:
            objects[NODE.name] = await self._optional(NODE)
            objects[SLICE.name] = await self._optional(SLICE)
            objects[POD.name] = await self._all(POD, ())
        else:
            objects[POD.name] = await self._all(POD, self._namespaces, "katsura.dev/pool")
        return Snapshot(objects, now, self._sampled(objects[POD.name]), self._odd())

    async def may_read(self, kind: Kind) -> bool:
        """Whether a kind of the whole cluster is there and ours to read; True where nobody answers."""
        try:
            await self._kube.list_all(kind)
        except (PermissionDeniedError, NotFoundError):
            return False
        except KatsuraError as error:
            _LOG.warning("cannot tell what may be read; goes on", kind=kind.name, why=error.message)
        return True

    async def _all(self, kind: Kind, namespaces: tuple[str, ...], labels: str = "") -> tuple[Any, ...]:
        if not namespaces:
            return tuple(await self._kube.list_all(kind, labels=labels))
        lists = [await self._kube.list_all(kind, namespace, labels=labels) for namespace in namespaces]
        return tuple(obj for found in lists for obj in found)

    async def _optional(self, kind: Kind) -> tuple[Any, ...]:
        """Objects that the operator may not be allowed to see, or that the cluster may not know."""
        try:
            return tuple(await self._kube.list_all(kind))
        except (PermissionDeniedError, NotFoundError) as error:
            if kind.name not in self._unreadable:
                self._unreadable.add(kind.name)
                _LOG.warning("goes on without them", kind=kind.name, why=error.message)
            return ()
