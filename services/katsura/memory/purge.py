"""Delete what a memory store keeps: `python -m katsura.memory.purge`, configured by KATSURA_ variables.

The operator runs it as a Job for a MemoryStore with `deletionPolicy: Delete`, when the store's memory processes have
ended. It may be killed anywhere and run again. Status 1 says that it could not, and the file named by
KATSURA_PURGE_MESSAGE_FILE why, for the condition of the MemoryStore.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from katsura.domain.errors import FailedPreconditionError, KatsuraError
from katsura.manifests.stores import server_of
from katsura.rpc.env import Env
from katsura.state.connect import Store
from katsura.state.objects import FolderObjects
from katsura.state.purge import purge
from katsura.telemetry import log
from katsura.telemetry.setup import configure

_LOG = log.get(__name__)
_MESSAGE_CHARS: Final = 2000


@dataclass(frozen=True, slots=True)
class PurgeConfig:
    """Configuration of one purge.

    Attributes:
        store_url: server and database that the trees are in.
        store_wait_s: how long to wait for it.
        cold_folder: where cold trees are; empty: nowhere.
        spared: databases (`manifests.stores.server_of`) that other stores keep their trees in.
        spared_url: one more, by its URL; empty: none.
    """

    store_url: str = field(repr=False)
    store_wait_s: float
    cold_folder: str
    spared: tuple[str, ...]
    spared_url: str = field(repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> PurgeConfig:
        """Read KATSURA_ variables.

        Raises:
            InvalidArgumentError: lists every variable that is missing, malformed or unknown.
        """
        env = Env(environ)
        made = cls(
            store_url=env.text("KATSURA_STORE_URL"),
            store_wait_s=env.real("KATSURA_STORE_WAIT_S", 30.0),
            cold_folder=env.text("KATSURA_MEMORY_COLD_FOLDER", ""),
            spared=env.names("KATSURA_PURGE_SPARED"),
            spared_url=env.text("KATSURA_PURGE_SPARED_URL", ""),
        )
        env.text("KATSURA_PURGE_MESSAGE_FILE", "")  # `main` reads it: it has to know before anything can fail
        env.finish()
        return made

    def check(self) -> None:
        """Raise FailedPreconditionError where another store keeps its trees in the same database."""
        ours = server_of(self.store_url)
        others = {*self.spared, *([server_of(self.spared_url)] if self.spared_url else [])}
        if ours in others:
            raise FailedPreconditionError(
                f"another MemoryStore keeps its trees in {ours} too, and nobody can tell them apart; delete that one "
                "as well, or let this one go with deletionPolicy: Retain"
            )


async def run(config: PurgeConfig) -> int:
    """Purge; how many keys there were. Raises KatsuraError: run it again."""
    config.check()
    store = await Store.open(config.store_url, wait_s=config.store_wait_s, report=_LOG.warning)
    objects = FolderObjects(Path(config.cold_folder)) if config.cold_folder else None
    try:
        return await purge(store, objects, told=_told)
    finally:
        await store.close()


def main() -> None:
    """Purge; a failure leaves its reason where the operator finds it, and status 1."""
    configure("purge", "purge", os.environ)
    message_file = os.environ.get("KATSURA_PURGE_MESSAGE_FILE", "")
    try:
        deleted = asyncio.run(run(PurgeConfig.from_env(os.environ)))
    except KatsuraError as error:
        _LOG.error(error.message)
        if message_file:
            Path(message_file).write_text(error.message[:_MESSAGE_CHARS], "utf-8")
        sys.exit(1)
    _LOG.info("nothing is left of the store", deleted_keys=deleted)


def _told(deleted: int) -> None:
    if deleted:
        _LOG.debug("deleting", keys=deleted)


if __name__ == "__main__":
    main()
