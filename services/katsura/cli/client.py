"""The gateway as the command line sees it: its public HTTP API, nothing else.

`chat`, `tree` and `demo` use it exactly as any program could; what it answers becomes the small types below.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx

from katsura.cli.core.outline import TreeBranch, TreeNode
from katsura.cli.data import running
from katsura.domain.errors import (
    AlreadyExistsError,
    ConflictError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    KatsuraError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)

_BY_STATUS: Mapping[int, type[KatsuraError]] = {
    400: InvalidArgumentError,
    401: UnauthenticatedError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    412: FailedPreconditionError,
    413: InvalidArgumentError,
    429: ResourceExhaustedError,
    501: UnimplementedError,
    503: UnavailableError,
    504: DeadlineExceededError,
}
_TIMEOUT = httpx.Timeout(630.0, connect=5.0)
"""A little longer than the gateway's own deadline: its error says more than ours."""


Message = tuple[str, str]
"""Role and content."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a session's tree; `node_id` 0 where the branch is empty."""

    session: str
    branch: str
    node_id: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """Where an answer was kept, why it ended and what it took, in tokens."""

    position: Position
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def heard(self, chunk: Mapping[str, Any], on_text: Callable[[str], object]) -> Answer:
        """This answer after one more chunk of its stream."""
        answer = self
        for choice in chunk["choices"]:
            if choice["delta"].get("content"):
                on_text(str(choice["delta"]["content"]))
            if choice.get("finish_reason"):
                answer = replace(answer, finish_reason=str(choice["finish_reason"]))
            if kept := choice.get("katsura"):
                at = Position(str(kept["session_id"]), str(kept["branch"]), int(kept["node_id"]))
                answer = replace(answer, position=at)
        if usage := chunk.get("usage"):
            cached = int(usage["prompt_tokens_details"]["cached_tokens"])
            counts = int(usage["prompt_tokens"]), cached, int(usage["completion_tokens"])
            answer = Answer(answer.position, answer.finish_reason, *counts)
        return answer


@dataclass(frozen=True, slots=True)
class Revised:
    """The branch to go on with, and effects of the one left behind that still stand in the world."""

    branch: TreeBranch
    standing: list[str]


@dataclass(frozen=True, slots=True)
class SessionTree:
    """A session as it stands. `raw` is what the API said."""

    session: str
    default_branch: str
    branches: tuple[TreeBranch, ...]
    nodes: tuple[TreeNode, ...]
    raw: Mapping[str, Any]

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> SessionTree:
        """From the body of `GET /v1/sessions/{id}/tree`."""
        return cls(
            str(said["id"]),
            str(said["default_branch"]),
            tuple(_branch(branch) for branch in said["branches"]),
            tuple(_node(node) for node in said["nodes"]),
            said,
        )

    def head_of(self, branch: str) -> int:
        """Last step of a branch, 0 while it is empty; NotFoundError for a branch that is not there."""
        for found in self.branches:
            if found.name == branch:
                return found.head
        raise NotFoundError(
            f"session {self.session} has no branch {branch!r}; it has {', '.join(b.name for b in self.branches)}"
        )


class Gateway:
    """One gateway; a context manager."""

    def __init__(self, url: str, api_key: str = "", transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """Names of what is served, the first a good default."""
        return [str(model["id"]) for model in self._call("GET", "/v1/models")["data"]]

    def make_session(self, session: str = "", goal: str = "") -> str:
        """Make a session and return its name."""
        return str(self._call("POST", "/v1/sessions", _said(id=session, goal=goal))["id"])

    def sessions(self, limit: int = 20) -> list[dict[str, Any]]:
        """Sessions as the API shows them, newest first."""
        return list(self._call("GET", f"/v1/sessions?limit={limit}")["data"])

    def tree(self, session: str) -> SessionTree:
        """A session's branches and nodes."""
        return SessionTree.read(self._call("GET", f"/v1/sessions/{quote(session, safe='')}/tree"))

    def fork(self, session: str, branch: str, at_node: int, name: str = "") -> TreeBranch:
        """A new branch at a step of `branch`."""
        body = {"at_node": at_node, **_said(branch=branch, name=name)}
        return _branch(self._call("POST", f"/v1/sessions/{quote(session, safe='')}/fork", body))

    def revise(self, session: str, branch: str, head: int, keep: int, reason: str) -> Revised:
        """Leave `branch` (whose head we have seen) and go on after `keep` on a new branch, with a hint."""
        body = {"branch": branch, "expected_head": head, "restore_after": keep, "reason": reason}
        said = self._call("POST", f"/v1/sessions/{quote(session, safe='')}/revise", body)
        return Revised(_branch(said["branch"]), [str(effect["excerpt"]) for effect in said["standing_effects"]])

    def ask(
        self,
        model: str,
        messages: Sequence[Message],
        place: Position,
        on_text: Callable[[str], object],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Answer:
        """Append `messages` to a branch, stream the answer to `on_text` and say where it was kept.

        Raises:
            KatsuraError: what the gateway answered, also in the middle of a stream.
        """
        wish = {"max_tokens": max_tokens, "temperature": temperature}
        body = {
            "model": model,
            "messages": [{"role": role, "content": content} for role, content in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **{key: value for key, value in wish.items() if value is not None},
        }
        headers = {"x-session-id": place.session, "x-session-branch": place.branch}
        answer = Answer(place, "", 0, 0, 0)
        with self._reached(), self._http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            if response.status_code >= 400:
                response.read()
                raise _error(response)
            for event in _events(response.iter_lines()):
                if "error" in event:
                    raise UnavailableError(str(event["error"]["message"]))
                answer = answer.heard(event, on_text)
        return answer

    def _call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        with self._reached():
            answer = self._http.request(method, path, json=body)
        if answer.status_code >= 400:
            raise _error(answer)
        return answer.json()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise DeadlineExceededError(f"{self.url} took too long to answer") from error
        except httpx.HTTPError as error:
            raise UnavailableError(f"cannot reach {self.url} ({error}); is `katsura up` running there?") from error


def gateway_of(url: str, data: Path, api_key: str) -> Gateway:
    """The gateway at `url`; empty is the one that runs from `data`."""
    return Gateway(url or running(data).url, api_key)


def _said(**fields: str) -> dict[str, str]:
    return {key: value for key, value in fields.items() if value}


def _branch(said: Mapping[str, Any]) -> TreeBranch:
    return TreeBranch(
        str(said["name"]),
        int(said["head"]),
        int(said["fork_node"]),
        str(said["parent_branch"] or ""),
        state=str(said["state"]),
        label=str(said.get("label", "")),
    )


def _node(said: Mapping[str, Any]) -> TreeNode:
    match said["type"]:
        case "step":
            note = said["kind"] == "note"
            follows, label = said["parent_id"], "note" if note else said["role"] or said["kind"]
        case "summary":
            trust = "" if said.get("status", "valid") == "valid" else f", {said['status']}"
            follows, label = said["covers"][1], f"summary of #{said['covers'][0]} to #{said['covers'][1]}{trust}"
        case kind:
            follows, label = said["restored_after"], f"{kind} from {said['abandoned_branch']}"
    return TreeNode(int(said["id"]), int(follows), str(said["type"]), str(label), str(said["content"]))


def _events(lines: Iterator[str]) -> Iterator[Mapping[str, Any]]:
    """The JSON of server-sent events, up to `[DONE]`."""
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def _error(answer: httpx.Response) -> KatsuraError:
    kind = _BY_STATUS.get(answer.status_code, InternalError)
    try:
        said = answer.json()["error"]
        message, field, code = str(said["message"]), said.get("param"), said.get("code")
    except (ValueError, KeyError, TypeError):
        return kind(f"{answer.request.url} answered {answer.status_code}: {answer.text[:300]}")
    if answer.status_code == 409 and code in ("tree_exists", "branch_exists"):
        kind = AlreadyExistsError
    return kind(message, field=field)
