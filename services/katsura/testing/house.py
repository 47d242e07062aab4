"""A whole Katsura of real processes for tests: store, memory, routers, engines, gateway, over one tiny model.

Every process can be killed and started again; all of them end with the block.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from katsura.domain.units import MIB
from katsura.testing.process import ServedProcess
from katsura.testing.store import EmbeddedStore

MODEL = "tiny"


class House:
    """Processes in dependency order; `async with House(...)` starts them all and waits until they are ready.

    Args:
        folder: short path for sockets and logs.
        model_path: folder of a model with tokenizer and template.
        engine_count: unified engines that serve the model; router_count likewise.
        settings: KATSURA_ variables by role (`gateway`, `memory`, `router`, `engine`), over the defaults.
    """

    def __init__(
        self,
        folder: Path,
        model_path: Path,
        *,
        engine_count: int = 1,
        router_count: int = 1,
        settings: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.folder = folder
        self.store = EmbeddedStore()
        self.token = secrets.token_hex(16)
        self.processes: dict[str, ServedProcess] = {}
        self._model_path = model_path
        self._engines = [f"engine-{index}" for index in range(engine_count)]
        self._routers = [f"router-{index}" for index in range(router_count)]
        self._settings = settings or {}
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        """Base URL of the gateway."""
        return f"http://{self.processes['gateway'].address}"

    async def start(self, name: str) -> ServedProcess:
        """Start a process, or start it again after it was killed."""
        role = name.rstrip("-0123456789")
        environment = {
            "KATSURA_INSTANCE_ID": name,
            "KATSURA_INTERNAL_TOKEN": self.token,
            "KATSURA_STORE_URL": self.store.url,
            **self._of_role(name, role),
            **self._settings.get(role, {}),
        }
        known = self.processes.get(name)
        if known is None:
            known = ServedProcess(f"katsura.{role}", environment, self.folder / f"{name}.log")
            self._stack.push_async_exit(known)
            self.processes[name] = known
        return await known.start()

    def _of_role(self, name: str, role: str) -> dict[str, str]:
        listen = {"KATSURA_LISTEN": f"unix:{self.folder}/{name}"}
        if role == "engine":
            return listen | {
                "KATSURA_DEPLOYMENT": MODEL,
                "KATSURA_MODEL_ALIASES": "tiny-alias",
                "KATSURA_MODEL_PATH": str(self._model_path),
                "KATSURA_KV_BYTES": str(8 * MIB),
                "KATSURA_PAGE_TOKENS": "16",
                "KATSURA_STEP_TOKENS": "64",
            }
        if role == "gateway":
            return {
                "KATSURA_HTTP_LISTEN": "127.0.0.1:0",
                "KATSURA_ALLOW_KEYLESS": "true",
                "KATSURA_MEMORY_ADDRESS": f"unix:{self.folder}/memory",
                "KATSURA_ROUTER_ADDRESSES": ",".join(f"unix:{self.folder}/{router}" for router in self._routers),
            }
        return listen

    async def __aenter__(self) -> Self:
        try:
            self._stack.enter_context(self.store)
            for name in ("memory", *self._routers, *self._engines, "gateway"):
                await self.start(name)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.aclose()
