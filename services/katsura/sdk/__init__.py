"""The only client of Katsura's services: async, typed, and with a thin synchronous face for people.

    async with connect("127.0.0.1:7001", api_key=key) as connection:        # asyncio
        memory = MemoryClient(connection)
    with Katsura("127.0.0.1:7001", api_key=key) as katsura:                  # without asyncio
        tree = katsura.create_tree(goal="book a train")

Arguments are plain values, results are the messages of `katsura.api` (a second set of classes would only drift from
their comments and types); treat them as read-only. Errors are `katsura.domain.errors`. Every write carries a
`request_id`, made here when the caller names none, so every unary call may be repeated while its deadline allows; a
stream is never repeated here. Services talk to each other through this room too. It knows no HTTP and no store.
"""

from katsura.sdk.attention import AttentionClient, ShardPool
from katsura.sdk.blocks import BlockClient
from katsura.sdk.connection import Connection, connect
from katsura.sdk.experts import ExpertClient
from katsura.sdk.memory import MemoryClient
from katsura.sdk.router import RouterClient
from katsura.sdk.sync import Katsura, SyncTree
from katsura.sdk.usage import UsageClient
from katsura.sdk.work import WorkClient

__all__ = [
    "AttentionClient",
    "BlockClient",
    "Connection",
    "ExpertClient",
    "Katsura",
    "MemoryClient",
    "RouterClient",
    "ShardPool",
    "SyncTree",
    "UsageClient",
    "WorkClient",
    "connect",
]
