"""Connection to a Valkey or Redis server: waiting for it, its errors, its life, its functions, its durability.

Nothing here retries a command by itself: a write whose answer was lost may have happened, so only callers that carry
an idempotency key may repeat it. A connection that died while idle is noticed and replaced before it is used.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib import resources
from types import TracebackType
from typing import Any, ClassVar, Final, Self
from urllib.parse import urlsplit

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from katsura.domain import durability
from katsura.domain.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    KatsuraError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from katsura.domain.trees import Durability
from katsura.state import keys
from katsura.state.lane import Lane, Part

SCHEMES: Final = ("redis", "rediss", "valkey", "valkeys", "unix")
_RETRY_AFTER_S: Final = 0.5
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 1.0
_REPORT_EVERY_S: Final = 5.0
_ANSWER_S: Final = 5.0

Arg = Part


@dataclass(frozen=True, slots=True)
class Library:
    """Lua functions under a name that carries the digest of their source.

    Processes of two versions use one store side by side during a rollout: each calls the library it was built with.
    """

    name: str
    code: str

    @classmethod
    def read(cls, stem: str) -> Library:
        """The library made of `functions/<stem>*.lua` in alphabetical order.

        The sources register their functions with `register(name, callback, flags)`; `call` finds them by `name`.
        """
        folder = resources.files("katsura.state") / "functions"
        parts = sorted((f.name, f.read_text("utf-8")) for f in folder.iterdir() if f.name.startswith(stem))
        source = "\n".join(text for _, text in parts)
        name = f"katsura_{stem}_{blake2b(source.encode(), digest_size=6).hexdigest()}"
        prelude = (
            f"#!lua name={name}\n"
            "local function register(name, callback, flags)\n"
            f"  redis.register_function{{function_name = '{name}_' .. name, callback = callback, flags = flags}}\n"
            "end\n"
        )
        return cls(name, prelude + source)


class Store:
    """One server, as every store of this room sees it. Made by `open`, ended by `close`."""

    def __init__(self, url: str, client: Redis, replicas: int) -> None:
        self.url = url
        self.client = client
        """For reads and for writes that are safe to lose; wrap each use in `translated()`."""
        self.incarnation = ""
        """One life of the store's data: drawn when the data begins, the same after a restart."""
        self.durability = Durability.CACHE
        """What the server's own settings promise."""
        self.settings: Mapping[str, str] = {}
        """`domain.durability.SETTINGS` of the server, as far as it lets us see them."""
        self._asked = Durability.UNSPECIFIED
        self._replicas = replicas
        self._lane = Lane(client.connection_pool, _ANSWER_S)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        libraries: Sequence[Library] = (),
        wait_s: float = 30.0,
        report: Callable[[str], None] | None = None,
        replicas: int = 0,
        max_connections: int = 64,
    ) -> Self:
        """Connect, waiting up to `wait_s` seconds for a server that is down or still loading its data.

        Args:
            url: `redis[s]://[user:password@]host:port/db`, `valkey[s]://...` or `unix:///path`. With TLS it may name
                files, which are read at each connection: `?ssl_ca_certs=...&ssl_certfile=...&ssl_keyfile=...`, and
                `ssl_check_hostname=false` where the authority alone says who a server is.
            libraries: loaded now, and again whenever the server has forgotten them.
            report: told what we wait for, at once and then every few seconds.
            replicas: replicas that must confirm a write made by `call` before it is answered.

        Raises:
            InvalidArgumentError: the URL is not one. FailedPreconditionError: the server refuses us.
            UnavailableError: STORE_UNAVAILABLE, nobody answered in time.
        """
        store = cls(url, _client(url, max_connections), replicas)
        try:
            await store._wait_until_up(wait_s, report)
            for library in libraries:
                await store.load(library)
            await store.refresh()
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Close every connection."""
        await self._lane.close()
        await self.client.aclose()

    async def blocking_client(self) -> Redis:
        """A client of its own for one blocking read; the caller closes it."""
        return _client(self.url, max_connections=1, socket_timeout_s=None)

    async def refresh(self) -> None:
        """Read the incarnation (drawing one if the data is new) and the server's durability again."""
        with translated(self.url):
            await self.client.set(keys.STORE_INCARNATION, secrets.token_hex(8), nx=True)
            found = await self.client.get(keys.STORE_INCARNATION)
        self.incarnation = _text(found)
        self.settings = await self._seen()
        self.durability = durability.promise(self.settings, self._replicas)

    @property
    def promised(self) -> Durability:
        """What whoever uses the store may rely on: what was required of it, if anything was; else `durability`."""
        return min(self._asked or self.durability, self.durability)

    def require(self, asked: Durability) -> None:
        """Refuse a server whose settings, as `refresh` saw them last, promise less than is asked; promise no more.

        Raises:
            FailedPreconditionError: DURABILITY_UNAVAILABLE, with each setting that has to change.
        """
        self._asked = asked
        missing = durability.shortfall(asked, self.settings, self._replicas)
        if missing:
            raise FailedPreconditionError(
                f"the store is to be {asked.name.lower()}, the server at {shown(self.url)} is "
                f"{self.durability.name.lower()}: {'; '.join(missing)}; or ask for less (spec.durability)",
                reason=Reason.DURABILITY_UNAVAILABLE,
                field="spec.durability",
            )

    async def load(self, library: Library) -> None:
        """Load a library; one that is there already is left alone."""
        try:
            with translated(self.url):
                await self.client.function_load(library.code)
        except InternalError as error:
            if "already exists" not in error.message:
                raise

    async def command(self, *parts: Part) -> Any:
        """One command that does not block and that no replica must confirm, over the connection that all share: a
        tenth of the CPU that it costs by `client`."""
        with translated(self.url):
            return await self._lane.command(parts)

    async def call(
        self, library: Library, function: str, names: Sequence[bytes], args: Sequence[Arg], *, read_only: bool = False
    ) -> Any:
        """Call one function of a library, atomically, over the keys `names`.

        A write waits for the replicas asked for; if too few confirm it in time the answer is UNAVAILABLE although the
        write stands, so the caller repeats it with its idempotency key.
        """
        command = ("FCALL_RO" if read_only else "FCALL", f"{library.name}_{function}", len(names), *names, *args)
        try:
            return await self._execute(command, confirm=not read_only)
        except InternalError as error:
            if "Function not found" not in error.message:
                raise
        await self.load(library)
        await self.refresh()
        return await self._execute(command, confirm=not read_only)

    async def _execute(self, command: Sequence[Arg], *, confirm: bool) -> Any:
        with translated(self.url):
            if not (confirm and self._replicas):
                return await self._lane.command(command)
            pipeline = self.client.pipeline(transaction=False)
            pipeline.execute_command(*command)
            pipeline.execute_command("WAIT", self._replicas, 1000)
            answer, confirmed = await pipeline.execute()
        if confirmed < self._replicas:
            raise UnavailableError(
                f"only {confirmed} of {self._replicas} replicas confirmed the write in 1 s; repeat it with the same "
                "request_id",
                reason=Reason.STORE_UNAVAILABLE,
                retry_after_s=_RETRY_AFTER_S,
            )
        return answer

    async def _wait_until_up(self, wait_s: float, report: Callable[[str], None] | None) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        pause, reported = _FIRST_WAIT_S, float("-inf")
        while True:
            try:
                with translated(self.url):
                    await self._lane.command(("PING",))
                return
            except UnavailableError as error:
                now = loop.time()
                if now - start + pause > wait_s:
                    raise
                if report is not None and now - reported >= _REPORT_EVERY_S:
                    report(f"waiting for the store: {error.message}")
                    reported = now
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_WAIT_S)

    async def _seen(self) -> Mapping[str, str]:
        refused = (InternalError, FailedPreconditionError)
        try:
            with translated(self.url):
                found = await self.client.config_get(*durability.SETTINGS)
        except refused:  # renamed or forbidden, as by providers: whether keys are evicted is told elsewhere too
            try:
                with translated(self.url):
                    said = await self.client.info("memory")
            except refused:
                return {}
            names = {"maxmemory": "maxmemory", "maxmemory-policy": "maxmemory_policy"}
            found = {name: said[key] for name, key in names.items() if key in said}
        return {_text(name): _text(value) for name, value in found.items()}


class translated:  # noqa: N801  a context manager, used as a verb; a generator would cost each command three times as much
    """Turn the client library's exceptions into ours."""

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None and (ours := _translation(self._url, error)) is not None:
            raise ours from error


def _translation(url: str, error: BaseException) -> KatsuraError | None:
    match error:
        case redis_errors.AuthenticationError() | redis_errors.NoPermissionError():
            why = f"the store at {shown(url)} refuses our credential: {error}"
            return FailedPreconditionError(why, reason=Reason.INVALID_CREDENTIAL)
        case redis_errors.BusyLoadingError():
            return _down(url, "it is still loading its data")
        case redis_errors.ReadOnlyError():
            return _down(url, "it is a replica, which takes no writes")
        case redis_errors.ConnectionError() | redis_errors.TimeoutError() | OSError():
            return _down(url, str(error) or type(error).__name__)
        case RuntimeError() if "handler is closed" in str(error):
            return _down(url, "it closed the connection")  # uvloop's word for writing to a closed transport
        case redis_errors.ResponseError():
            return _refusal(url, error)
    return None


def _refusal(url: str, error: redis_errors.ResponseError) -> KatsuraError:
    text = str(error)
    if isinstance(error, redis_errors.OutOfMemoryError) or text.startswith("OOM"):
        why = f"the store at {shown(url)} is full: raise its maxmemory or drop trees"
        return ResourceExhaustedError(why, retry_after_s=_RETRY_AFTER_S)
    if text.startswith(("MISCONF", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN", "BUSY")):
        return _down(url, text)
    return InternalError(f"the store at {shown(url)} answered: {text}")


def shown(url: str) -> str:
    """`url` without its password, for messages."""
    parts = urlsplit(url)
    return url if parts.password is None else url.replace(f":{parts.password}@", ":***@", 1)


def _down(url: str, why: str) -> UnavailableError:
    return UnavailableError(
        f"the store at {shown(url)} does not answer ({why}); start it, or set KATSURA_STORE_URL to one that runs",
        reason=Reason.STORE_UNAVAILABLE,
        retry_after_s=_RETRY_AFTER_S,
    )


def _client(url: str, max_connections: int, socket_timeout_s: float | None = _ANSWER_S) -> Redis:
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise InvalidArgumentError(
            f"{shown(url)!r} is not a store URL; it begins with {'://, '.join(SCHEMES)}://", field="store_url"
        )
    said: dict[str, Any] = dict(parse_url(url.replace("valkey", "redis", 1) if scheme.startswith("valkey") else url))
    if said.get("connection_class") is SSLConnection:
        said["connection_class"] = _RenewedTls
    settings: dict[str, Any] = {
        "max_connections": max_connections,
        "timeout": 5,
        "protocol": 2,
        "socket_timeout": socket_timeout_s,
        "socket_connect_timeout": 2.0,
        "retry": Retry(NoBackoff(), 0),
    }
    return Redis.from_pool(BlockingConnectionPool(**settings | said))


class _RenewedTls(SSLConnection):
    """Reads its certificates again when the files have changed: whoever renews them restarts nobody.

    All connections share a context: making one reads every authority that the machine knows.
    """

    _made: ClassVar[dict[tuple[object, ...], tuple[tuple[tuple[int, int], ...], ssl.SSLContext]]] = {}

    def _connection_arguments(self) -> Mapping[str, Any]:
        said = self.ssl_context
        paths = [path for path in (said.ca_certs, said.certfile, said.keyfile) if path]
        stats = tuple((found.st_mtime_ns, found.st_ino) for found in map(os.stat, paths))
        key = (*paths, said.cert_reqs, said.check_hostname, said.min_version, said.ciphers)
        before, said.context = self._made.get(key, ((), None))
        if before != stats or said.context is None:
            said.context = None
            self._made[key] = (stats, said.get())
        return super()._connection_arguments()


def _text(value: bytes | str | int | None) -> str:
    return value.decode() if isinstance(value, bytes) else "" if value is None else str(value)
