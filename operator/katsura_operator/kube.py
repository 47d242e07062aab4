"""The only door to the API server: reads, and writes that are fenced.

Every write asks the fence first (`leader`: may this process still write?) and names what it believes: an apply to an
object that exists carries its uid, so that it never brings a deleted object back; a delete carries uid and
resourceVersion, so that nothing is deleted on a stale belief. Answers become errors of `katsura.domain.errors`:

    401, 403 PermissionDenied    404 NotFound    409 Conflict (AlreadyExists on create)    410 Conflict (list again)
    422, 400 InvalidArgument     429 ResourceExhausted with the server's delay             5xx, no answer Unavailable
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
from kubernetes_asyncio import client, config

from katsura.domain.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    KatsuraError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from katsura_operator.core.objects import MANAGER, Kind, Object, kind_of, name_of, namespace_of

_PAGE: Final = 100
"""Objects of one answer: to read it keeps the lease waiting for ten milliseconds at most."""
_TIMEOUT_S: Final = 30.0
_LIST_ATTEMPTS: Final = 5
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"


class Kube:
    """The API server, seen by one process.

    Args:
        api: client that is configured and open.
        fence: called before every write; raises where this process must not write any more.
    """

    def __init__(self, api: client.ApiClient, fence: Callable[[], None] = lambda: None) -> None:
        self._api = api
        self.fence = fence
        self.reads = self.writes = 0

    async def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        """One object, or None."""
        try:
            return await self._ask("GET", kind.path(namespace, name))
        except NotFoundError:
            return None

    async def list_all(self, kind: Kind, namespace: str | None = None, *, labels: str = "") -> list[dict[str, Any]]:
        """All objects of a kind, of one namespace or of all; each says its kind."""
        for attempt in range(_LIST_ATTEMPTS):
            try:
                return await self._pages(kind, namespace, labels)
            except ConflictError:  # 410: the pages changed under the list for too long
                if attempt + 1 == _LIST_ATTEMPTS:
                    raise
        raise AssertionError("the loop returns or raises")

    async def apply(self, obj: Object, *, manager: str = MANAGER, subresource: str = "") -> dict[str, Any]:
        """Server-side apply; what others own besides stays theirs."""
        path = kind_of(obj).path(namespace_of(obj), name_of(obj), subresource)
        return await self._write("PATCH", path, obj, APPLY, {"fieldManager": manager, "force": "true"})

    async def create(self, obj: Object, *, manager: str = MANAGER) -> dict[str, Any]:
        """Make an object. Raises AlreadyExistsError."""
        path = kind_of(obj).path(namespace_of(obj))
        try:
            return await self._write("POST", path, obj, "application/json", {"fieldManager": manager})
        except ConflictError as error:
            raise AlreadyExistsError(error.message) from error

    async def replace(self, obj: Object) -> dict[str, Any]:
        """Replace an object whose resourceVersion is still the one that `obj` carries. Raises ConflictError."""
        return await self._write("PUT", kind_of(obj).path(namespace_of(obj), name_of(obj)), obj, "application/json", {})

    async def annotate(self, obj: Object, annotations: Mapping[str, str | None]) -> dict[str, Any]:
        """Set annotations of an object that has not changed since it was read."""
        known = {key: obj["metadata"][key] for key in ("uid", "resourceVersion")}
        body = {"metadata": {**known, "annotations": dict(annotations)}}
        path = kind_of(obj).path(namespace_of(obj), name_of(obj))
        return await self._write("PATCH", path, body, MERGE, {"fieldManager": MANAGER})

    async def set_finalizers(self, obj: Object, names: Sequence[str]) -> dict[str, Any]:
        """Set who must agree to the end of an object that has not changed since it was read."""
        known = {key: obj["metadata"][key] for key in ("uid", "resourceVersion")}
        body = {"metadata": {**known, "finalizers": list(names)}}
        path = kind_of(obj).path(namespace_of(obj), name_of(obj))
        return await self._write("PATCH", path, body, MERGE, {"fieldManager": MANAGER})

    async def delete(self, obj: Object) -> None:
        """Delete exactly what was read; that it is gone already is as good."""
        known = {key: obj["metadata"][key] for key in ("uid", "resourceVersion")}
        body = {"preconditions": known, "propagationPolicy": "Background"}
        try:
            path = kind_of(obj).path(namespace_of(obj), name_of(obj))
            await self._write("DELETE", path, body, "application/json", {})
        except NotFoundError:
            return

    async def _pages(self, kind: Kind, namespace: str | None, labels: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            query = {"limit": str(_PAGE), "labelSelector": labels, "continue": token}
            answer = await self._ask("GET", kind.path(namespace), {k: v for k, v in query.items() if v})
            for item in answer.get("items") or ():
                item["metadata"].pop("managedFields", None)
                found.append({"apiVersion": kind.api_version, "kind": kind.name, **item})
            token = (answer.get("metadata") or {}).get("continue", "")
            if not token:
                return found

    async def _write(self, method: str, path: str, body: Any, content: str, query: Mapping[str, str]) -> dict[str, Any]:
        self.fence()
        self.writes += 1
        return await self._ask(method, path, query, body, content)

    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content: str = "application/json",
    ) -> dict[str, Any]:
        self.reads += method == "GET"
        try:
            answer = await self._api.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params={"Content-Type": content, "Accept": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=_TIMEOUT_S,
            )
            async with answer:
                data = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(f"the API server does not answer: {type(error).__name__}: {error}") from error
        if answer.status >= 300:
            raise error_of(answer.status, data, answer.headers.get("Retry-After", ""))
        made: dict[str, Any] = json.loads(data)
        return made


def error_of(status: int, data: bytes, retry_after: str = "") -> KatsuraError:
    """What a refusal of the API server means to us; the message is the server's."""
    try:
        said = str(json.loads(data).get("message", ""))
    except (ValueError, AttributeError):
        said = data[:200].decode(errors="replace")
    said = said or f"the API server answered {status}"
    delay = float(retry_after) if retry_after.isdigit() else None
    match status:
        case 401 | 403:
            return PermissionDeniedError(said)
        case 404:
            return NotFoundError(said)
        case 409 | 410:
            return ConflictError(said)
        case 429:
            return ResourceExhaustedError(said, retry_after_s=delay or 1.0)
        case 400 | 405 | 413 | 415 | 422:
            return InvalidArgumentError(said)
        case _:
            return UnavailableError(said, retry_after_s=delay)


@asynccontextmanager
async def connect(kubeconfig: str = "") -> AsyncIterator[Kube]:
    """The API server of `kubeconfig`, or of the pod's own service account.

    Raises:
        InvalidArgumentError: neither says where it is.
    """
    made = client.Configuration()
    try:
        if kubeconfig:
            await config.load_kube_config(config_file=kubeconfig, client_configuration=made)
        else:
            config.load_incluster_config(client_configuration=made)  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        raise InvalidArgumentError(
            f"no API server: {error}. In a pod, give it a service account; elsewhere set KUBECONFIG", field="KUBECONFIG"
        ) from error
    async with client.ApiClient(made) as api:
        yield Kube(api)
