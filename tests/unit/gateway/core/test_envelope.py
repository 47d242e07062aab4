from __future__ import annotations

import pytest

from katsura.domain import errors as e
from katsura.gateway.core.envelope import STATUS_BY_CODE, envelope, plain_envelope, status_of


def inside(error: e.KatsuraError) -> dict[str, object]:
    found = envelope(error)["error"]
    assert isinstance(found, dict)
    return found


def invalid(reason: e.Reason) -> e.InvalidArgumentError:
    return e.InvalidArgumentError("x", reason=reason)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (e.InvalidArgumentError("x", field="max_tokens"), 400, "invalid_request_error", "invalid_value"),
        (invalid(e.Reason.UNSUPPORTED_FIELD), 400, "invalid_request_error", "unsupported_parameter"),
        (invalid(e.Reason.BODY_TOO_LARGE), 413, "invalid_request_error", "request_too_large"),
        (e.OutOfRangeError("x"), 400, "invalid_request_error", "context_length_exceeded"),
        (e.UnauthenticatedError("x"), 401, "authentication_error", "invalid_api_key"),
        (e.NotFoundError("x", reason=e.Reason.MODEL_NOT_FOUND), 404, "invalid_request_error", "model_not_found"),
        (e.NotFoundError("x", reason=e.Reason.TREE_NOT_FOUND), 404, "invalid_request_error", "session_not_found"),
        (e.ConflictError("x"), 409, "invalid_request_error", "head_moved"),
        (e.ResourceExhaustedError("x"), 429, "rate_limit_error", "queue_full"),
        (e.UnavailableError("x", reason=e.Reason.NO_SHARD), 503, "server_error", "no_shard"),
        (e.UnavailableError("x", reason=e.Reason.EVICTED_ROLLOUT), 503, "server_error", "evicted-rollout"),
        (e.DeadlineExceededError("x"), 504, "server_error", "deadline"),
        (e.InternalError("x"), 500, "server_error", "bug"),
    ],
)  # fmt: skip
def test_every_kind_of_error_has_its_status_type_and_code(
    error: e.KatsuraError, status: int, kind: str, code: str
) -> None:
    assert (status_of(error), inside(error)["type"], inside(error)["code"]) == (status, kind, code)


def test_the_field_is_the_param_and_the_message_the_message() -> None:
    found = inside(e.InvalidArgumentError("n: expected 1", field="n"))
    assert (found["param"], found["message"]) == ("n", "n: expected 1")


def test_every_error_of_the_tree_has_a_status() -> None:
    assert STATUS_BY_CODE.keys() == e.BY_CODE.keys()


def test_what_the_http_layer_says_has_the_same_form() -> None:
    error = {"message": "no", "type": "invalid_request_error", "param": None, "code": "route_not_found"}
    assert plain_envelope(404, "no", "route_not_found") == {"error": error}


def test_addresses_of_our_own_processes_stay_inside() -> None:
    error = e.UnavailableError("the store at unix:///run/s does not answer", reason=e.Reason.STORE_UNAVAILABLE)
    assert "/run" not in str(envelope(error))
    assert "/run" not in str(envelope(e.UnavailableError("failed to connect to 10.0.0.7:7001")))
