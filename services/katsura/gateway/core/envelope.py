"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}` and a status."""

from __future__ import annotations

from katsura.domain.errors import KatsuraError, Reason

STATUS_BY_CODE = {
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "FAILED_PRECONDITION": 412,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "DATA_LOSS": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_STATUS_BY_REASON = {Reason.BODY_TOO_LARGE: 413}
_CODE_BY_REASON = {
    Reason.INVALID_FIELD: "invalid_value",
    Reason.UNSUPPORTED_FIELD: "unsupported_parameter",
    Reason.BODY_TOO_LARGE: "request_too_large",
    Reason.CONTEXT_TOO_LONG: "context_length_exceeded",
    Reason.BUDGET_TOO_SMALL: "context_length_exceeded",
    Reason.MISSING_CREDENTIAL: "invalid_api_key",
    Reason.INVALID_CREDENTIAL: "invalid_api_key",
    Reason.TREE_NOT_FOUND: "session_not_found",
    Reason.EVICTED_ROLLOUT: "evicted-rollout",
    Reason.UNSPECIFIED: None,
}
_PUBLIC_BY_REASON = {
    Reason.STORE_UNAVAILABLE: "the store does not answer right now; try again in a moment",
    Reason.PEER_UNAVAILABLE: "a service behind the gateway does not answer right now; try again in a moment",
}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def status_of(error: KatsuraError) -> int:
    """HTTP status of an error."""
    return _STATUS_BY_REASON.get(error.reason, STATUS_BY_CODE[error.code])


def envelope(error: KatsuraError) -> dict[str, object]:
    """The body of an error: what OpenAI has a code for keeps its code, the rest is our reason in lower case."""
    code = _CODE_BY_REASON.get(error.reason, error.reason.value.lower())
    return plain_envelope(status_of(error), public_message(error), code, error.field)


def public_message(error: KatsuraError) -> str:
    """What a client is told: addresses of our own processes and stores are for the log."""
    return _PUBLIC_BY_REASON.get(error.reason, error.message)


def plain_envelope(status: int, message: str, code: str | None, param: str | None = None) -> dict[str, object]:
    """The body of an error that no `KatsuraError` stands for (404 and 405 of the HTTP layer)."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
