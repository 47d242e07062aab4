"""The error tree on the wire: canonical gRPC statuses with `google.rpc` details, both ways."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from katsura.domain.errors import BY_CODE, ERROR_DOMAIN, InternalError, KatsuraError, Reason

_SILENT = {"DEADLINE_EXCEEDED": "the deadline passed before the answer was whole; allow more time, or ask for less"}
"""What to say where gRPC itself ended a call: its own words are about streams, not about what was asked."""

CODES: dict[str, grpc.StatusCode] = {code.name: code for code in grpc.StatusCode}


def to_status(error: KatsuraError) -> status_pb2.Status:
    """The status that carries `error`: ErrorInfo always, BadRequest where it names a field, RetryInfo where timed."""
    details: list[any_pb2.Any] = []

    def add(detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        details.append(packed)

    add(error_details_pb2.ErrorInfo(reason=error.reason.value, domain=ERROR_DOMAIN, metadata=error.metadata))
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        add(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        add(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=CODES[error.code].value[0], message=error.message, details=details)


async def abort(context: grpc.aio.ServicerContext, error: KatsuraError) -> None:  # type: ignore[type-arg]
    """End a call with `error`; never returns normally."""
    status = to_status(error)
    await context.abort(
        CODES[error.code],
        error.message,
        trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),),
    )


def from_rpc_error(error: grpc.aio.AioRpcError | grpc.Call) -> KatsuraError:
    """The error of our tree that a failed call stands for; a foreign status keeps its code and message."""
    kind = BY_CODE.get(error.code().name, InternalError)
    made = kind(error.details() or error.code().name)
    status = rpc_status.from_call(error)
    if status is None:
        made.message = _SILENT.get(made.code, made.message)
        return made
    for packed in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if packed.Unpack(info) and info.domain == ERROR_DOMAIN:
            made.reason = Reason(info.reason) if info.reason in Reason.__members__ else Reason.UNSPECIFIED
            made.metadata = dict(info.metadata)
        elif packed.Unpack(bad) and bad.field_violations:
            made.field = bad.field_violations[0].field
        elif packed.Unpack(retry):
            made.retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return made
