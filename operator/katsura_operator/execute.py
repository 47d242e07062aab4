"""Carries out a `Desired`, in its order (`core.decision` left in it only what differs).

One refusal never stops the rest: a conflict means that somebody wrote since we looked (the next pass looks again),
other refusals are told. Only what says that nothing can be written now (no answer, too many requests, no leadership)
ends the pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, Protocol

from katsura.domain.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    KatsuraError,
    NotFoundError,
    PermissionDeniedError,
)
from katsura.telemetry import log
from katsura_operator.core.desire import Desired
from katsura_operator.core.objects import (
    DELETION_COST,
    DRAINING,
    MANAGED_BY,
    MANAGER,
    ROLE,
    SEEDER,
    Object,
    key_of,
    kind_of,
    labels_of,
    name_of,
    namespace_of,
)
from katsura_operator.core.purging import FINALIZER
from katsura_operator.core.snapshot import Snapshot
from katsura_operator.kube import Kube

_LOG = log.get(__name__)
_FIRST_TO_GO = "-1000"


class Drainer(Protocol):
    """Tells a pod of ours to finish its work (`drain.GrpcDrainer`)."""

    async def drain(self, role: str, address: str) -> None:
        """Ask the process at `host:port`; returns at once."""
        ...


@dataclass(slots=True)
class Outcome:
    """What a pass did. `writes`: that changed something. `conflicts`: look again soon. `refused`: (what, why)."""

    writes: int = 0
    conflicts: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)


class Executor:
    """Carries out what `core` decided, through `kube`."""

    def __init__(self, kube: Kube, drainer: Drainer, grpc_port: int) -> None:
        self._kube, self._drainer, self._port = kube, drainer, grpc_port
        self._done = Outcome()
        self._vain = 0

    async def run(self, desired: Desired, seen: Snapshot) -> Outcome:
        """Write all of it.

        Raises:
            UnavailableError, ResourceExhaustedError: nothing can be written now; the next pass goes on.
        """
        self._done = Outcome()
        self._vain = 0
        start = self._kube.writes
        for obj in desired.hold:
            await self._try(obj, self._kube.set_finalizers(obj, (*_finalizers(obj), FINALIZER)))
        if desired.plan is not None:
            await self._store_plan(desired.plan)
        unseeded = set()
        for body in desired.seeds:
            if not await self._try(body, self._kube.apply(body, manager=SEEDER)):
                unseeded.add(key_of(body))
        for body in desired.keep:
            if key_of(body) not in unseeded:  # made without its seed, its count would look like somebody's wish
                await self._keep(body, seen)
        for pod in desired.mark:
            marks = {DRAINING: seen.now, DELETION_COST: _FIRST_TO_GO}
            await self._try(pod, self._kube.annotate(pod, marks))
        await asyncio.gather(*(self._drain(pod) for pod in desired.drain))
        for obj in (*desired.remove, *desired.delete):
            await self._try(obj, self._kube.delete(obj))
        for body in desired.events:
            await self._try(body, self._kube.create(body))
        for obj in desired.release:
            left = [name for name in _finalizers(obj) if name != FINALIZER]
            await self._try(obj, self._kube.set_finalizers(obj, left))
        for obj, body in desired.statuses:
            await self._try(obj, self._apply(body, obj, subresource="status"))
        self._done.writes = self._kube.writes - start - self._vain
        return self._done

    async def _store_plan(self, plan: Any) -> None:
        """A plan is made whole: the object first, then its content, which is a status."""
        head = {key: plan[key] for key in ("apiVersion", "kind", "metadata", "spec")}
        metadata = {**plan["metadata"], "labels": {MANAGED_BY: MANAGER}}
        await self._try(plan, self._kube.apply({**head, "metadata": metadata}))
        body = {key: plan[key] for key in ("apiVersion", "kind", "metadata", "status")}
        await self._try(plan, self._kube.apply(_without_nulls(body), subresource="status"))

    async def _keep(self, wanted: Any, seen: Snapshot) -> None:
        found = seen.get(kind_of(wanted), namespace_of(wanted), name_of(wanted))
        if found is not None and controller_of(found) not in ("", controller_of(wanted)):
            # Of an owner that was deleted and made anew: the garbage collector has not come by yet.
            self._done.conflicts += 1
            await self._try(found, self._kube.delete(found))
            return
        if found is not None:
            uid = {"uid": found["metadata"]["uid"]}
            wanted = {**wanted, "metadata": {**wanted["metadata"], **uid}}
            await self._try(wanted, self._apply(wanted, found))
            return

        async def make() -> None:
            kind = kind_of(wanted)
            there = await self._kube.get(kind, namespace_of(wanted), name_of(wanted))
            if there is not None and labels_of(there).get(MANAGED_BY) != MANAGER:
                raise AlreadyExistsError(f"{key_of(wanted)} exists and is not ours; rename it or our resource")
            await self._kube.apply(wanted)

        await self._try(wanted, make())

    async def _apply(self, body: Any, found: Object, subresource: str = "") -> None:
        """Apply to what was found. Fields that others have said stay: where nothing else is to change, nothing does,
        and no pass shall follow for it."""
        made = await self._kube.apply(body, subresource=subresource)
        versions = [(obj.get("metadata") or {}).get("resourceVersion") for obj in (made, found)]
        self._vain += versions[0] is not None and versions[0] == versions[1]

    async def _drain(self, pod: Object) -> None:
        address = (pod.get("status") or {}).get("podIP")
        if not address:
            return
        try:
            await self._drainer.drain(labels_of(pod).get(ROLE, ""), f"{address}:{self._port}")
        except KatsuraError as error:  # it drains by SIGTERM too
            _LOG.warning("a pod could not be told to drain", pod=name_of(pod), why=error.message)

    async def _try(self, obj: Object, write: Awaitable[object]) -> bool:
        """Whether it was written; what kept it is noted."""
        what = "/".join(key_of(obj))
        try:
            await write
            return True
        except ConflictError as error:
            self._done.conflicts += 1
            _LOG.info("somebody wrote in between; looking again", what=what, why=error.message)
        except AlreadyExistsError as error:
            if obj["kind"] != "Event":  # an event that was told before a crash
                self._refuse(what, error)
        except NotFoundError as error:
            self._done.conflicts += 1
            _LOG.info("gone meanwhile; looking again", what=what, why=error.message)
        except (PermissionDeniedError, InvalidArgumentError) as error:
            self._refuse(what, error)
        return False

    def _refuse(self, what: str, error: KatsuraError) -> None:
        self._done.refused.append((what, error.message))
        _LOG.error("the API server refuses", what=what, why=error.message)


def controller_of(obj: Object) -> str:
    """uid of the owner that controls it; empty for none."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((str(o["uid"]) for o in owners if o.get("controller")), "")


def _finalizers(obj: Object) -> tuple[str, ...]:
    return tuple(obj["metadata"].get("finalizers") or ())


def _without_nulls(value: Any) -> Any:
    """Absent fields instead of nulls: server-side apply takes a null for a wish to remove."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
