"""The error tree on the wire: canonical gRPC statuses with `google.rpc` details, both ways."""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from katsura.domain.errors import BY_CODE, ERROR_DOMAIN, InternalError, KatsuraError, Reason, UnavailableError

_SILENT = {"DEADLINE_EXCEEDED": "the deadline passed before the answer was whole; allow more time, or ask for less"}
"""What to say where gRPC itself ended a call: its own words are about streams, not about what was asked."""

_CUT_SHORT: Final = "Internal error from Core"
"""What gRPC (python, asyncio) says to a client whose message crossed the end of its stream: why the peer ended it was
lost on the way (grpc/grpc issue 36066). Sent again, it may be heard."""
_MESSAGE_BYTES_MAX: Final = 800
_METADATA_BYTES_MAX: Final = 1000
"""Of each value. A status travels in the headers of an answer, of which clients take 8 KiB, and there its message is
written three times, once with three characters for each byte that is not ASCII."""

CODES: dict[str, grpc.StatusCode] = {code.name: code for code in grpc.StatusCode}


def to_status(error: KatsuraError) -> status_pb2.Status:
    """The status that carries `error`: ErrorInfo always, BadRequest where it names a field, RetryInfo where timed."""
    details: list[any_pb2.Any] = []

    def add(detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        details.append(packed)

    message = _short(error.message, _MESSAGE_BYTES_MAX)
    metadata = {name: _short(value, _METADATA_BYTES_MAX) for name, value in error.metadata.items()}
    add(error_details_pb2.ErrorInfo(reason=error.reason.value, domain=ERROR_DOMAIN, metadata=metadata))
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=message)
        add(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        add(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=CODES[error.code].value[0], message=message, details=details)


def _short(text: str, bytes_max: int) -> str:
    """`text` without its middle, where it is long: it may quote what a caller sent, and its end says what to do."""
    if len(text) * 4 <= bytes_max or len(data := text.encode(errors="replace")) <= bytes_max:
        return text
    half = bytes_max // 2 - 2
    return f"{data[:half].decode(errors='ignore')}...{data[-half:].decode(errors='ignore')}"


async def abort(context: grpc.aio.ServicerContext, error: KatsuraError) -> None:  # type: ignore[type-arg]
    """End a call with `error`; never returns normally."""
    status = to_status(error)
    await context.abort(
        CODES[error.code],
        status.message,
        trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),),
    )


def from_rpc_error(error: grpc.aio.AioRpcError | grpc.Call) -> KatsuraError:
    """The error of our tree that a failed call stands for; a foreign status keeps its code and message."""
    if error.details() == _CUT_SHORT:
        return UnavailableError("the peer ended the stream while it was being sent; send it again to hear why")
    kind = BY_CODE.get(error.code().name, InternalError)
    made = kind(error.details() or error.code().name)
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # gRPC ended the call by itself, with what our peer had said in its headers
        status = None
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
