"""Asks ready shards what their decode steps were, and ready members what bits they compute: beside the passes and
without the API server.

What a shard's counts gained between two looks is one sample. A few shards are asked at a time, in turn, so that many
pods cost no more than few; nothing is kept but the last look at each and the last samples of each deployment.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

from katsura.domain.errors import KatsuraError
from katsura.rpc.channel import open_channel
from katsura.rpc.renewal import TlsFiles
from katsura.sdk.attention import AttentionClient
from katsura.sdk.connection import Connection
from katsura.sdk.experts import ExpertClient
from katsura.telemetry import log
from katsura_operator.core.copies import Member, members_of, odd_ones
from katsura_operator.core.objects import Object
from katsura_operator.core.pace import Count, Shard, sample_of, shards_of
from katsura_operator.core.snapshot import Sample

_LOG = log.get(__name__)
_AT_ONCE: Final = 8
_LOOKS_MAX: Final = 64
"""Shards that are asked in one round; the others are asked in the next ones."""
_KEPT: Final = 30
"""Samples of a deployment: half an hour of one shard."""
_TIMEOUT_S: Final = 5.0


class Asker(Protocol):
    """Asks shards and members (`GrpcAsker`)."""

    async def count(self, host: str) -> Count:
        """Decode steps of its present life. Raises KatsuraError, OSError."""
        ...

    async def fingerprint(self, host: str) -> str:
        """What a member's outputs are known by. Raises KatsuraError, OSError."""
        ...


class GrpcAsker:
    """By the mutual TLS that pods use among themselves."""

    def __init__(self, token: str, folder: Path, port: int) -> None:
        """`token`: of the installation. `folder`: where `Authority` puts our files. `port`: of pods."""
        self._token, self._folder, self._port = token, folder, port

    async def count(self, host: str) -> Count:
        """Decode steps of its present life. Raises KatsuraError, OSError."""
        async with self._to(host) as connection:
            shard = await AttentionClient(connection).get_shard()
        seen = shard.decoded
        return Count(shard.incarnation, seen.steps, seen.seconds, seen.sequences, seen.context_tokens)

    async def fingerprint(self, host: str) -> str:
        """What a member's outputs are known by. Raises KatsuraError, OSError."""
        async with self._to(host) as connection:
            return (await ExpertClient(connection).get_member()).fingerprint.hex()

    @asynccontextmanager
    async def _to(self, host: str) -> AsyncIterator[Connection]:
        tls = TlsFiles(*(self._folder / name for name in ("tls.crt", "tls.key", "ca.crt")))
        async with open_channel(f"{host}:{self._port}", tls) as channel:
            yield Connection(channel, self._token, timeout_s=_TIMEOUT_S)


class Survey:
    """Looks at shards and members every `every_s`, once `note` has told of them."""

    def __init__(self, asker: Asker, every_s: float) -> None:
        self._asker, self._every_s = asker, every_s
        self._members: tuple[Member, ...] = ()
        self._prints: dict[str, str] = {}
        self._shards: tuple[Shard, ...] = ()
        self._last: dict[str, Count] = {}
        self._samples: dict[str, deque[Sample]] = {}
        self._fresh: set[str] = set()
        self._turn = 0

    def note(self, pods: Iterable[Object]) -> tuple[Sample, ...]:
        """Samples of deployments of which something new was seen since the last call.

        Shards and members among `pods` are looked at from now on; what was seen of others is forgotten.
        """
        pods = tuple(pods)
        self._members = members_of(pods)
        self._prints = {m.uid: self._prints[m.uid] for m in self._members if m.uid in self._prints}
        self._shards = shards_of(pods)
        there, uids = {s.deployment for s in self._shards}, {s.uid for s in self._shards}
        self._last = {uid: count for uid, count in self._last.items() if uid in uids}
        self._samples = {name: found for name, found in self._samples.items() if name in there}
        fresh, self._fresh = sorted(self._fresh & self._samples.keys()), set()
        return tuple(sample for name in fresh for sample in self._samples[name])

    def odd(self) -> tuple[str, ...]:
        """Uids of members that compute other bits than most of their pool, of those that have been asked."""
        return odd_ones(self._members, self._prints)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.look()

    async def look(self) -> None:
        """One round."""
        shards = self._shards
        start = self._turn % len(shards) if shards else 0
        chosen = (*shards[start:], *shards[:start])[:_LOOKS_MAX]
        self._turn = start + len(chosen)
        free = asyncio.Semaphore(_AT_ONCE)

        async def one(looking: Coroutine[None, None, None]) -> None:
            async with free:
                await looking

        unknown = [m for m in self._members if m.uid not in self._prints][:_LOOKS_MAX]
        await asyncio.gather(*(one(self._look_at(s)) for s in chosen), *(one(self._ask(m)) for m in unknown))

    async def _ask(self, member: Member) -> None:
        try:
            self._prints[member.uid] = await self._asker.fingerprint(member.host)
        except (KatsuraError, OSError) as error:
            _LOG.debug("a member does not tell its fingerprint", host=member.host, why=str(error))

    async def _look_at(self, shard: Shard) -> None:
        try:
            count = await self._asker.count(shard.host)
        except (KatsuraError, OSError) as error:  # probes and conditions tell what is wrong with a pod
            _LOG.debug("a shard does not tell its steps", host=shard.host, why=str(error))
            return
        before, self._last[shard.uid] = self._last.get(shard.uid), count
        sample = None if before is None else sample_of(shard, before, count)
        if sample is not None:
            self._samples.setdefault(shard.deployment, deque(maxlen=_KEPT)).append(sample)
            self._fresh.add(shard.deployment)
