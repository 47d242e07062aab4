from typing import Any

import grpc
import pytest

from katsura.domain import errors
from katsura.rpc import status


@pytest.mark.parametrize("kind", errors.BY_CODE.values(), ids=lambda kind: kind.__name__)
def test_every_error_class_has_a_canonical_status(kind: type[errors.KatsuraError]) -> None:
    made = status.to_status(kind("what happened"))
    assert made.code == status.CODES[kind.code].value[0]
    assert made.message == "what happened"
    assert len(made.details) == 1


def test_a_status_fits_the_headers_whatever_it_quotes() -> None:
    said = "ß\n" * 100_000
    error = errors.NotFoundError(f"tree {said!r} is not there; make it", field=said[:40], metadata={"tree": said})
    made = status.to_status(error)
    assert made.ByteSize() < 3000
    assert made.message.startswith("tree 'ß")
    assert made.message.endswith("is not there; make it")
    assert status.to_status(errors.NotFoundError("short")).message == "short"


class Failed(grpc.RpcError):
    """A call that gRPC ended by itself."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, bytes], ...] = ()) -> None:
        self._said = code, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._said[0]

    def details(self) -> str:
        return self._said[1]

    def trailing_metadata(self) -> Any:
        return self._said[2]


def test_a_status_that_grpc_put_in_place_of_ours_is_told_as_it_is() -> None:
    ours = status.to_status(errors.NotFoundError("gone")).SerializeToString()
    failed = Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large", (("grpc-status-details-bin", ours),))
    made = status.from_rpc_error(failed)  # type: ignore[arg-type]
    assert isinstance(made, errors.ResourceExhaustedError)
    assert made.message == "too large"


def test_a_stream_whose_end_was_lost_may_be_sent_again() -> None:
    made = status.from_rpc_error(Failed(grpc.StatusCode.INTERNAL, "Internal error from Core"))  # type: ignore[arg-type]
    assert made.reason is errors.Reason.PEER_UNAVAILABLE
