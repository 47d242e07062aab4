"""The one error tree, and the reasons that travel with it.

    KatsuraError
    |-- PermanentError                the same call will fail again
    |   |-- InvalidArgumentError      400 INVALID_ARGUMENT: a field is wrong; `field` names it
    |   |-- OutOfRangeError           400 OUT_OF_RANGE: valid in itself, too large for this model or tree
    |   |-- UnauthenticatedError      401 UNAUTHENTICATED
    |   |-- PermissionDeniedError     403 PERMISSION_DENIED
    |   |-- NotFoundError             404 NOT_FOUND: also what another tenant's id answers
    |   |-- AlreadyExistsError        409 ALREADY_EXISTS: an id or request_id is taken by something else
    |   |-- FailedPreconditionError   412 FAILED_PRECONDITION: the state must change before this can work
    |   |-- UnimplementedError        501 UNIMPLEMENTED
    |   `-- DataLossError             500 DATA_LOSS: stored bytes are not what was written
    |-- TemporaryError                the same call may work later (`retry_after_s`)
    |   |-- ConflictError             409 ABORTED: a compare-and-set lost; read again, then decide
    |   |-- ResourceExhaustedError    429 RESOURCE_EXHAUSTED
    |   |-- UnavailableError          503 UNAVAILABLE
    |   |-- DeadlineExceededError     504 DEADLINE_EXCEEDED
    |   `-- CancelledError            499 CANCELLED
    `-- InternalError                 500 INTERNAL: our bug

`rpc.status` maps this tree to gRPC statuses with `google.rpc.ErrorInfo` and back; the gateway maps it to OpenAI's
error envelope. Messages are for people: they say what is wrong and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar

ERROR_DOMAIN = "katsura.dev"


class Reason(StrEnum):
    """Stable machine-readable reasons (`ErrorInfo.reason`)."""

    UNSPECIFIED = "UNSPECIFIED"
    INVALID_FIELD = "INVALID_FIELD"
    UNSUPPORTED_FIELD = "UNSUPPORTED_FIELD"
    BODY_TOO_LARGE = "BODY_TOO_LARGE"
    CONTEXT_TOO_LONG = "CONTEXT_TOO_LONG"
    BUDGET_TOO_SMALL = "BUDGET_TOO_SMALL"
    MISSING_CREDENTIAL = "MISSING_CREDENTIAL"
    INVALID_CREDENTIAL = "INVALID_CREDENTIAL"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    TREE_NOT_FOUND = "TREE_NOT_FOUND"
    BRANCH_NOT_FOUND = "BRANCH_NOT_FOUND"
    NODE_NOT_FOUND = "NODE_NOT_FOUND"
    BLOCK_NOT_FOUND = "BLOCK_NOT_FOUND"
    SEQUENCE_NOT_FOUND = "SEQUENCE_NOT_FOUND"
    RESPONSE_NOT_FOUND = "RESPONSE_NOT_FOUND"
    API_KEY_NOT_FOUND = "API_KEY_NOT_FOUND"
    TREE_EXISTS = "TREE_EXISTS"
    TREE_HELD = "TREE_HELD"
    BRANCH_EXISTS = "BRANCH_EXISTS"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    HEAD_MOVED = "HEAD_MOVED"
    VERSION_MOVED = "VERSION_MOVED"
    MERGE_CONFLICT = "MERGE_CONFLICT"
    HEAD_REQUIRED = "HEAD_REQUIRED"
    BAD_BOUNDARY = "BAD_BOUNDARY"
    BAD_REFERENCE = "BAD_REFERENCE"
    NOT_WAITING = "NOT_WAITING"
    SUBGOAL_OPEN = "SUBGOAL_OPEN"
    BRANCH_NOT_WRITABLE = "BRANCH_NOT_WRITABLE"
    DURABILITY_UNAVAILABLE = "DURABILITY_UNAVAILABLE"
    WATCH_COMPACTED = "WATCH_COMPACTED"
    STALE_EPOCH = "STALE_EPOCH"
    LEASE_LOST = "LEASE_LOST"
    LEASE_HELD = "LEASE_HELD"
    QUEUE_FULL = "QUEUE_FULL"
    NO_WORK = "NO_WORK"
    COLD_UNAVAILABLE = "COLD_UNAVAILABLE"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    KV_EXHAUSTED = "KV_EXHAUSTED"
    DRAINING = "DRAINING"
    NO_SHARD = "NO_SHARD"
    EVICTED_ROLLOUT = "EVICTED_ROLLOUT"
    NO_EXPERT_COPY = "NO_EXPERT_COPY"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    PEER_UNAVAILABLE = "PEER_UNAVAILABLE"
    CHANNEL_RETIRED = "CHANNEL_RETIRED"
    BAD_FRAME = "BAD_FRAME"
    DEADLINE = "DEADLINE"
    CLIENT_GONE = "CLIENT_GONE"
    UNREAD_STREAM = "UNREAD_STREAM"
    WEIGHTS_CORRUPT = "WEIGHTS_CORRUPT"
    WEIGHTS_UNAVAILABLE = "WEIGHTS_UNAVAILABLE"
    DISK_FULL = "DISK_FULL"
    BUG = "BUG"


class KatsuraError(Exception):
    """Root of every error that may cross a room or a process.

    Args:
        message: what is wrong and what to do about it, for a person.
        reason: stable code for a program.
        field: path of the offending field (`messages[2].content`), where there is one.
        metadata: every dynamic part of the message, for a program.
        retry_after_s: when to try again, in seconds, where that is known.
    """

    code: ClassVar[str] = "INTERNAL"
    default_reason: ClassVar[Reason] = Reason.UNSPECIFIED

    def __init__(
        self,
        message: str,
        *,
        reason: Reason | None = None,
        field: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason if reason is not None else self.default_reason
        self.field = field
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after_s = retry_after_s


class PermanentError(KatsuraError):
    """The same call will fail again."""


class TemporaryError(KatsuraError):
    """The same call may work later."""


class InvalidArgumentError(PermanentError):
    """A field is wrong; `field` names it."""

    code = "INVALID_ARGUMENT"
    default_reason = Reason.INVALID_FIELD


class OutOfRangeError(PermanentError):
    """Valid in itself, but too large for this model or tree."""

    code = "OUT_OF_RANGE"
    default_reason = Reason.CONTEXT_TOO_LONG


class UnauthenticatedError(PermanentError):
    """No credential, or one that is not known."""

    code = "UNAUTHENTICATED"
    default_reason = Reason.MISSING_CREDENTIAL


class PermissionDeniedError(PermanentError):
    """The credential is known but may not do this."""

    code = "PERMISSION_DENIED"


class NotFoundError(PermanentError):
    """No such thing for this tenant."""

    code = "NOT_FOUND"


class AlreadyExistsError(PermanentError):
    """An id or request_id is taken by something else."""

    code = "ALREADY_EXISTS"


class FailedPreconditionError(PermanentError):
    """The state must change before this can work."""

    code = "FAILED_PRECONDITION"


class UnimplementedError(PermanentError):
    """This build does not do that."""

    code = "UNIMPLEMENTED"


class DataLossError(PermanentError):
    """Stored bytes are not what was written."""

    code = "DATA_LOSS"
    default_reason = Reason.WEIGHTS_CORRUPT


class ConflictError(TemporaryError):
    """A compare-and-set lost; read again, then decide."""

    code = "ABORTED"
    default_reason = Reason.HEAD_MOVED


class ResourceExhaustedError(TemporaryError):
    """A queue, a quota or a budget is full."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = Reason.QUEUE_FULL


class UnavailableError(TemporaryError):
    """Something we need is not there right now."""

    code = "UNAVAILABLE"
    default_reason = Reason.PEER_UNAVAILABLE


class DeadlineExceededError(TemporaryError):
    """The caller's deadline passed first."""

    code = "DEADLINE_EXCEEDED"
    default_reason = Reason.DEADLINE


class CancelledError(TemporaryError):
    """The caller went away."""

    code = "CANCELLED"
    default_reason = Reason.CLIENT_GONE


class InternalError(KatsuraError):
    """Our bug."""

    code = "INTERNAL"
    default_reason = Reason.BUG


def _leaves(root: type[KatsuraError]) -> list[type[KatsuraError]]:
    below = root.__subclasses__()
    return [root] if not below else [leaf for child in below for leaf in _leaves(child)]


BY_CODE: Mapping[str, type[KatsuraError]] = {leaf.code: leaf for leaf in _leaves(KatsuraError)}
"""Canonical status code name to the class that stands for it."""
