"""What the memory service refuses, in the words of the sessions API: its trees are sessions here, its nodes steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from katsura.domain.errors import KatsuraError, Reason

_FIELDS = {"tree_id": "session_id", "new_branch": "name", "page_token": "page"}


@contextmanager
def session_words(session_id: str = "", node_field: str | None = None) -> Iterator[None]:
    """Let errors of the block name the fields that the client sent.

    Args:
        session_id: the session that the request is about, as the client wrote it.
        node_field: the request's field that names a step.
    """
    try:
        yield
    except KatsuraError as error:
        node = error.metadata.get("node", "")
        match error.reason:
            case Reason.TREE_NOT_FOUND:
                error.message = f"there is no session {session_id!r}"
            case Reason.TREE_EXISTS:
                error.message = f"session {session_id!r} exists already; choose another id, or none"
                error.field = "id"
            case Reason.BRANCH_NOT_FOUND:
                error.message = f"session {session_id!r} has no such branch; GET /v1/sessions/{session_id} lists them"
            case Reason.BRANCH_EXISTS:
                error.message = "the session has a branch of that name already; choose another name, or none"
            case Reason.NODE_NOT_FOUND:
                error.message, error.field = f"session {session_id!r} has no step {node}", node_field
            case Reason.BAD_BOUNDARY:
                head = ", or is its head and leaves nothing to go back from" if node_field == "restore_after" else ""
                error.message, error.field = f"step {node} is not on this branch{head}", node_field
            case Reason.HEAD_MOVED:
                error.field = "expected_head"
            case _ if error.field == "page_token":
                error.message = "page: it is not one of ours; send next_page as it came"
        error.field = _FIELDS.get(error.field or "", error.field)
        raise
