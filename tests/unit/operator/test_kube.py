from __future__ import annotations

import pytest

from katsura.domain.errors import (
    ConflictError,
    InvalidArgumentError,
    KatsuraError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from katsura_operator.kube import error_of


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidArgumentError),
        (401, PermissionDeniedError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (409, ConflictError),
        (410, ConflictError),
        (422, InvalidArgumentError),
        (429, ResourceExhaustedError),
        (500, UnavailableError),
        (503, UnavailableError),
        (504, UnavailableError),
    ],
)
def test_every_refusal_has_its_meaning(status: int, kind: type[KatsuraError]) -> None:
    error = error_of(status, b'{"message": "because"}')
    assert type(error) is kind
    assert error.message == "because"


def test_the_servers_delay_is_kept() -> None:
    assert error_of(429, b"{}", "7").retry_after_s == 7.0
    assert error_of(429, b"{}").retry_after_s == 1.0


def test_an_answer_that_is_no_json_is_told_as_it_is() -> None:
    assert error_of(502, b"<html>bad gateway").message == "<html>bad gateway"
