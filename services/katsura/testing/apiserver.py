"""An API server in memory, for tests of the operator that need thousands of passes: twin of `testing.kube`.

It keeps what the operator relies on: uids, resourceVersions and generations, server-side apply that takes back what its
manager no longer says, preconditions, finalizers, and children that end with the last of their owners. Schemas and
rights are the real server's business. `fault` may answer in its place; `events` is what watches would have brought, and
the operator's lists are `lag` of them old.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from katsura.domain.errors import KatsuraError
from katsura_operator.core.objects import ALL, BY_NAME, Kind
from katsura_operator.kube import APPLY, Kube, error_of

Fault = Callable[[str, str, Mapping[str, str]], int]
"""(method, path, query) -> status to answer instead of doing it, or 0."""
Answer = tuple[int, dict[str, Any]]
_PATH: Final = re.compile(r"(/api/v1|/apis/[^/]+/[^/]+)(?:/namespaces/([^/]+))?/([a-z]+)(?:/([^/]+))?(?:/(status))?")
_OURS: Final = ("uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")
"""Fields of metadata that only the server writes."""
_NOW: Final = "2026-11-21T12:00:00Z"
_START: Final = datetime(2026, 11, 21, 9, tzinfo=UTC)


class ApiServer:
    """Objects by kind, namespace and name, with the answers of a real server."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.fault: Fault = lambda method, path, query: 0
        self.writes = self.lag = 0
        self._kinds: Mapping[tuple[str, str], Kind] = {(k.path().rpartition("/")[0], k.plural): k for k in ALL}
        self._applied: dict[tuple[tuple[str, str, str], str, str], Any] = {}
        self._versions = itertools.count(1)

    def begin_as(self, other: ApiServer) -> None:
        """Hold what `other` holds, as if it had been here all the time."""
        self.objects, self._applied = copy.deepcopy((other.objects, other._applied))
        self._versions = itertools.count(1 + next(copy.copy(other._versions)))

    def call(self, method: str, path: str, body: Any = None, *, kind: str = "application/json") -> Any:
        """One request of a person (no fault meets it). Raises KatsuraError."""
        path, _, asked = path.partition("?")
        query = dict(part.split("=", 1) for part in asked.split("&") if part)
        status, made = self._answer(method, path, query, body, kind)
        if status >= 300:
            raise error_of(status, json.dumps(made).encode())
        return made

    def apply(self, path: str, body: Any, manager: str = "test") -> Any:
        """Server-side apply of a person."""
        return self.call("PATCH", f"{path}?fieldManager={manager}&force=true", body, kind=APPLY)

    def ask(self, method: str, path: str, query: Mapping[str, str], body: Any, content: str) -> Answer:
        """One request of the operator: status and answer."""
        status = self.fault(method, path, query)
        if status:
            return status, {"message": f"so it goes: {status}"}
        self.writes += method != "GET"
        return self._answer(method, path, query, body, content, self.lag)

    def _answer(
        self, method: str, path: str, query: Mapping[str, str], body: Any, content: str, lag: int = 0
    ) -> Answer:
        found = _PATH.fullmatch(path)
        kind = None if found is None else self._kinds.get((found[1], found[3]))
        if found is None or kind is None:
            return 404, {"message": f"no {path}"}
        namespace, name, subresource = found[2] or "", found[4] or "", found[5] or ""
        if method == "GET" and not name:
            return 200, self._list(kind, namespace, query.get("labelSelector", ""), lag)
        body = copy.deepcopy(body)
        key = (kind.plural, namespace, name or (body or {}).get("metadata", {}).get("name", ""))
        seen = self.objects.get(key)
        match method:
            case "GET":
                return (404, {"message": f"no {path}"}) if seen is None else (200, copy.deepcopy(seen))
            case "POST":
                return (409, {"message": f"{key[2]} exists"}) if seen else self._store(key, kind, body, None)
            case "DELETE":
                return self._delete(key, seen, (body or {}).get("preconditions") or {})
            case "PUT":
                return _refusal(seen, body) or self._store(key, kind, body, seen)
        if content != APPLY:
            return _refusal(seen, body) or self._store(key, kind, _merged(seen, body), seen)
        if seen is None and (subresource or "uid" in body["metadata"]):
            return 409 if not subresource else 404, {"message": f"{key[2]}: uid given, and no such object"}
        trouble = _refusal(seen, body) if seen else None
        return trouble or self._apply(key, kind, seen, body, query.get("fieldManager", ""), subresource)

    def _apply(
        self, key: tuple[str, str, str], kind: Kind, seen: Any, body: Any, manager: str, subresource: str
    ) -> Answer:
        said = {
            k: v for k, v in body.items() if (k == "status") == bool(subresource) and k not in ("apiVersion", "kind")
        }
        if "metadata" in said:
            said["metadata"] = {k: v for k, v in said["metadata"].items() if k not in _OURS}
        before = self._applied.get((key, manager, subresource), {})
        others = [v for (k, m, s), v in self._applied.items() if k == key and s == subresource and m != manager]
        self._applied[key, manager, subresource] = said
        kept = _without(copy.deepcopy(seen) if seen else {}, before, said, others)
        return self._store(key, kind, _merged(kept, said), seen)

    def _list(self, kind: Kind, namespace: str, selector: str, lag: int) -> dict[str, Any]:
        wanted = [part.partition("=") for part in selector.split(",") if part]
        items = []
        for (plural, of, _), obj in sorted((self._past(lag) if lag else self.objects).items()):
            labels = obj["metadata"].get("labels") or {}
            fits = all(key in labels and (not sign or labels[key] == value) for key, sign, value in wanted)
            if plural == kind.plural and namespace in ("", of) and fits:
                items.append(copy.deepcopy(obj))
        return {"items": items, "metadata": {}}

    def _past(self, lag: int) -> dict[tuple[str, str, str], dict[str, Any]]:
        """The objects `lag` events ago."""
        found: dict[tuple[str, str, str], dict[str, Any]] = {}
        for what, obj in self.events[:-lag]:
            kind, metadata = BY_NAME[obj["apiVersion"], obj["kind"]], obj["metadata"]
            key = (kind.plural, metadata.get("namespace", ""), metadata["name"])
            found.pop(key, None)
            if what != "DELETED":
                found[key] = obj
        return found

    def _store(self, key: tuple[str, str, str], kind: Kind, body: Any, seen: Any) -> Answer:
        made = copy.deepcopy(body)
        made["apiVersion"], made["kind"] = kind.api_version, kind.name
        metadata = made["metadata"] = {**made["metadata"], "name": key[2], **({"namespace": key[1]} if key[1] else {})}
        if seen is None:
            number = next(self._versions)
            born = (_START + timedelta(seconds=number)).strftime("%Y-%m-%dT%H:%M:%SZ")
            metadata |= {"uid": f"uid-{number}", "generation": 1, "creationTimestamp": born}
        else:
            metadata |= {field: seen["metadata"][field] for field in _OURS if field in seen["metadata"]}
            if _same(seen, made):
                return 200, copy.deepcopy(seen)
            metadata["generation"] += seen.get("spec") != made.get("spec")
        metadata["resourceVersion"] = str(next(self._versions))
        self.objects[key] = made
        self.events.append(("ADDED" if seen is None else "MODIFIED", copy.deepcopy(made)))
        owners = {o["uid"] for o in metadata.get("ownerReferences") or ()}
        orphan = owners and not owners & {obj["metadata"]["uid"] for obj in self.objects.values()}
        if orphan or ("deletionTimestamp" in metadata and not metadata.get("finalizers")):
            self._remove(key)
        return 201 if seen is None else 200, copy.deepcopy(made)

    def _delete(self, key: tuple[str, str, str], seen: Any, known: Mapping[str, str]) -> Answer:
        if seen is None:
            return 404, {"message": f"no {key[2]}"}
        if any(seen["metadata"].get(field) != value for field, value in known.items()):
            return 409, {"message": f"{key[2]}: precondition failed"}
        if seen["metadata"].get("finalizers"):
            seen["metadata"]["deletionTimestamp"] = _NOW
            seen["metadata"]["resourceVersion"] = str(next(self._versions))
            self.events.append(("MODIFIED", copy.deepcopy(seen)))
        else:
            self._remove(key)
        return 200, {}

    def _remove(self, key: tuple[str, str, str]) -> None:
        gone = self.objects.pop(key)
        self._applied = {k: v for k, v in self._applied.items() if k[0] != key}
        self.events.append(("DELETED", gone))
        alive = {obj["metadata"]["uid"] for obj in self.objects.values()}
        for child, obj in list(self.objects.items()):
            owners = [o["uid"] for o in obj["metadata"].get("ownerReferences") or ()]
            if gone["metadata"]["uid"] in owners and not alive & set(owners) and child in self.objects:
                self._remove(child)


class TwinKube(Kube):
    """The operator's door to an `ApiServer`."""

    def __init__(self, server: ApiServer, fence: Callable[[], None] = lambda: None) -> None:
        super().__init__(None, fence)  # type: ignore[arg-type]  # every request ends in `_ask`
        self.server = server

    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content: str = "application/json",
    ) -> dict[str, Any]:
        self.reads += method == "GET"
        status, made = self.server.ask(method, path, query or {}, body, content)
        if status >= 300:
            error: KatsuraError = error_of(status, json.dumps(made).encode(), "0")
            raise error
        return made


def _refusal(seen: Any, body: Any) -> Answer | None:
    """404 for what is not there, 409 where `body` names another life or version of it."""
    if seen is None:
        return 404, {"message": "no such object"}
    said = body.get("metadata", {})
    stale = [k for k in ("uid", "resourceVersion") if k in said and said[k] != seen["metadata"][k]]
    return (409, {"message": f"{stale[0]} is another one"}) if stale else None


def _merged(seen: Any, said: Any) -> Any:
    """JSON merge patch; lists are replaced whole."""
    if not isinstance(seen, Mapping) or not isinstance(said, Mapping):
        return said
    made = {**seen, **{k: _merged(seen.get(k), v) for k, v in said.items()}}
    return {k: v for k, v in made.items() if v is not None}


def _without(obj: Any, before: Any, said: Any, others: list[Any]) -> Any:
    """`obj` without what this manager said before, does not say now, and nobody else says."""
    if not isinstance(obj, Mapping) or not isinstance(before, Mapping):
        return obj
    made = dict(obj)
    for field, old in before.items():
        theirs = [o[field] for o in others if isinstance(o, Mapping) and field in o]
        if field in said:
            made[field] = _without(made.get(field), old, said[field], theirs)
        elif not theirs:
            made.pop(field, None)
    return made


def _same(seen: Any, made: Any) -> bool:
    return bool({k: v for k, v in seen.items() if v} == {k: v for k, v in made.items() if v})
