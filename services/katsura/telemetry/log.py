"""Logs for people or for machines, each line carrying trace, tenant, session and request ids."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import suppress
from contextvars import ContextVar, Token
from enum import StrEnum

from katsura.telemetry import names, trace

_IDS: ContextVar[dict[str, str] | None] = ContextVar("katsura_log_ids", default=None)


class LogFormat(StrEnum):
    """How a line looks."""

    HUMAN = "human"
    JSON = "json"


class ids:  # noqa: N801  a context manager, used as a verb; a generator would cost each call three times as much
    """Attach ids to every line logged in the block; empty ones keep what is attached already."""

    __slots__ = ("_given", "_token")

    def __init__(self, *, tenant: str = "", session: str = "", request: str = "") -> None:
        self._given = (tenant, session, request)

    def __enter__(self) -> None:
        self._token = _attach(*self._given)

    def __exit__(self, *_: object) -> None:
        with suppress(ValueError):  # a stream that its client left is closed in another context
            _IDS.reset(self._token)


def bind(*, tenant: str = "", session: str = "") -> None:
    """Attach ids that became known in the middle of an `ids` block: they end with it."""
    _attach(tenant, session, "")


def _attach(tenant: str, session: str, request: str) -> Token[dict[str, str] | None]:
    attached = {**(_IDS.get() or {})}
    for key, value in ((names.TENANT, tenant), (names.SESSION, session), (names.REQUEST, request)):
        if value:
            attached[key] = value
    return _IDS.set(attached)


class Log:
    """A logger whose calls take fields by keyword: `log.info("shard ready", epoch=3)`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, **fields: object) -> None:
        """For whoever debugs this process."""
        self._write(logging.DEBUG, message, fields)

    def info(self, message: str, **fields: object) -> None:
        """Something a person who runs this would like to know."""
        self._write(logging.INFO, message, fields)

    def warning(self, message: str, **fields: object) -> None:
        """Something is not as it should be; the process copes."""
        self._write(logging.WARNING, message, fields)

    def error(self, message: str, *, exc: BaseException | None = None, **fields: object) -> None:
        """Something failed for a caller or for us; `exc` adds its traceback."""
        self._write(logging.ERROR, message, fields, exc)

    def _write(self, level: int, message: str, fields: dict[str, object], exc: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, message, extra={"katsura_fields": fields}, exc_info=exc)


def get(name: str) -> Log:
    """The logger of a module (`log.get(__name__)`)."""
    return Log(name)


class _Formatter(logging.Formatter):
    def __init__(self, process: str, log_format: LogFormat) -> None:
        super().__init__()
        self._process = process
        self._json = log_format is LogFormat.JSON

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = dict(_IDS.get() or {})
        found = trace.trace_id()
        if found:
            fields["trace_id"] = found
        fields.update(getattr(record, "katsura_fields", {}))
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        trouble = self.formatException(record.exc_info) if record.exc_info and record.exc_info[1] else ""
        if self._json:
            line: dict[str, object] = {"time": stamp, "level": record.levelname.lower(), "process": self._process}
            line |= {"logger": record.name, "message": record.getMessage(), **fields}
            return json.dumps(line | ({"exception": trouble} if trouble else {}), default=str)
        tail = "".join(f" {key.removeprefix('katsura.')}={_one_line(str(value))}" for key, value in fields.items())
        line_text = f"{stamp} {record.levelname:<7} {self._process} {_one_line(record.getMessage())}{tail}"
        return f"{line_text}\n{trouble}" if trouble else line_text


def _one_line(text: str) -> str:
    """`text` with control characters escaped: what a client wrote must not look like a line of ours."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def configure(process: str, log_format: LogFormat, level: str) -> None:
    """Send all logs of this process to standard error in `log_format`, from `level` ("info") upwards."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(process, log_format))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("uvicorn.access", "asyncio", "httpx", "httpcore", "grpc"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
