"""Triggers: kopf watches, and anything that means something to us asks for a pass.

kopf brings the reconnects, the bookmarks and the silence timeout of watches; it decides nothing and writes nothing:
only `on.event` handlers, which leave no mark on any object. A missed event costs the time to the next resync, no more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final, cast

import kopf

from katsura.telemetry import log
from katsura_operator.core.objects import (
    AGENT,
    JOB,
    MEMORY_STORE,
    MODEL_DEPLOYMENT,
    NODE,
    POD,
    POOL,
    PROFILE,
    ROLE_POOL,
    SLICE,
    WORKLOAD,
)
from katsura_operator.core.signature import signature

_LOG = log.get(__name__)
_TOLD_S: Final = 30.0
_KINDS: Final = (MODEL_DEPLOYMENT, MEMORY_STORE, AGENT, ROLE_POOL, WORKLOAD, POD, JOB)
_NODE_KINDS: Final = (NODE, SLICE)


class Watch:
    """Watches of one scope. `changed` is called for whatever matters."""

    def __init__(
        self,
        namespaces: tuple[str, ...],
        changed: Callable[[], None],
        identity: str,
        *,
        nodes: bool,
        profiles: bool = True,
    ) -> None:
        """`namespaces`: which; empty for all. `nodes`, `profiles`: whether they are read: a watch that is forbidden
        would end them all."""
        self._namespaces, self._changed, self._identity = namespaces, changed, identity
        self._kinds = (*_KINDS, *((PROFILE,) if profiles else ()), *(_NODE_KINDS if nodes else ()))
        self._seen: dict[tuple[str, str], str] = {}

    async def run(self) -> None:
        """Watch until cancelled or until kopf ends."""
        quieten()
        registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.watching.client_timeout = 300
        settings.networking.request_timeout = 30
        kopf.on.login(registry=registry)(_login)
        for kind in self._kinds:
            group, _, version = kind.api_version.rpartition("/")
            labels = {POOL: kopf.PRESENT} if kind in (WORKLOAD, POD, JOB) else None
            see = kopf.on.event(group, version, kind.plural, registry=registry, id=kind.plural, labels=labels)
            see(self._handle)
        await kopf.operator(
            registry=registry,
            settings=settings,
            namespaces=self._namespaces,
            clusterwide=not self._namespaces,
            standalone=True,
            identity=cast(Any, self._identity),
            stop_flag=asyncio.Event(),
        )

    async def _handle(self, event: Any, **_: Any) -> None:
        """One event: a pass is asked for unless the object reads as it did."""
        self.note(str(event["type"]), event["object"])

    def note(self, kind_of_event: str, obj: Any) -> None:
        """Ask for a pass where `obj` reads differently than before."""
        key = (str(obj.get("kind")), str(obj["metadata"].get("uid")))
        if kind_of_event == "DELETED":
            self._seen.pop(key, None)
        else:
            now = signature(obj)
            if self._seen.get(key) == now:
                return
            self._seen[key] = now
        self._changed()


class Quiet(logging.Handler):
    """What kopf has to say, for people: nothing of its routine, and of a lost API server, which it tells once per watch
    and attempt, one line in half a minute. Passes and the lease tell the same trouble with its consequences."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._clock, self._told_s, self._held = clock, -_TOLD_S, 0

    def emit(self, record: logging.LogRecord) -> None:
        """Tell it, or count it."""
        if self._clock() - self._told_s < _TOLD_S:
            self._held += 1
            return
        why = record.getMessage().partition("\n")[0][:200]
        _LOG.warning("watches are interrupted; passes go on by time", why=why, more=self._held)
        self._told_s, self._held = self._clock(), 0


def quieten() -> None:
    """Give kopf's loggers the one handler that is for people."""
    logger = logging.getLogger("kopf")
    logger.handlers[:], logger.propagate = [Quiet()], False


def _login(**kwargs: Any) -> Any:
    if os.environ.get("KUBECONFIG"):
        return kopf.login_with_kubeconfig(**kwargs)
    return kopf.login_with_service_account(**kwargs)
