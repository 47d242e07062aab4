"""Stored responses: which node of which tree a response id means, and what was said about it besides its text.

Only the gateway calls it. The text lives in the tree alone; a record here is what `GET /v1/responses/{id}` needs
besides (model, usage, parameters), and the door to continue from. All records of a tree are one hash, so that the last
one to go can take the tree with it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Protocol

from katsura.domain.ids import BranchName, NodeId, TenantId, TreeId
from katsura.state import keys
from katsura.state.connect import Store, translated


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response.

    Attributes:
        branch: branch that its answer was grown on.
        node_id: the answer's step.
        body_json: the response object of the API as JSON, its output text left out.
    """

    branch: BranchName
    node_id: NodeId
    body_json: str


class ResponseStore(Protocol):
    """Responses by (tenant, tree, token). Raises UnavailableError when the store cannot be reached."""

    async def put(self, tenant_id: TenantId, tree_id: TreeId, token: str, response: StoredResponse) -> None:
        """Keep a response; `token` is unique within the tree."""
        ...

    async def get(self, tenant_id: TenantId, tree_id: TreeId, token: str) -> StoredResponse | None:
        """A response, None where it is unknown or deleted."""
        ...

    async def delete(self, tenant_id: TenantId, tree_id: TreeId, token: str) -> int | None:
        """Forget a response: how many the tree has left, None where there was no such response."""
        ...

    async def drop_tree(self, tenant_id: TenantId, tree_id: TreeId) -> None:
        """Forget every response of a tree."""
        ...


class TwinResponseStore:
    """The store in one process's memory."""

    def __init__(self) -> None:
        self._trees: defaultdict[tuple[TenantId, TreeId], dict[str, StoredResponse]] = defaultdict(dict)

    async def put(self, tenant_id: TenantId, tree_id: TreeId, token: str, response: StoredResponse) -> None:
        """See `ResponseStore`."""
        self._trees[tenant_id, tree_id][token] = response

    async def get(self, tenant_id: TenantId, tree_id: TreeId, token: str) -> StoredResponse | None:
        """See `ResponseStore`."""
        return self._trees[tenant_id, tree_id].get(token)

    async def delete(self, tenant_id: TenantId, tree_id: TreeId, token: str) -> int | None:
        """See `ResponseStore`."""
        found = self._trees[tenant_id, tree_id]
        return None if found.pop(token, None) is None else len(found)

    async def drop_tree(self, tenant_id: TenantId, tree_id: TreeId) -> None:
        """See `ResponseStore`."""
        self._trees.pop((tenant_id, tree_id), None)


class RedisResponseStore:
    """The store in Valkey or Redis."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, tenant_id: TenantId, tree_id: TreeId, token: str, response: StoredResponse) -> None:
        """See `ResponseStore`."""
        with translated(self._store.url):
            await self._store.client.hset(keys.responses(tenant_id, tree_id), token, json.dumps(asdict(response)))

    async def get(self, tenant_id: TenantId, tree_id: TreeId, token: str) -> StoredResponse | None:
        """See `ResponseStore`."""
        with translated(self._store.url):
            found = await self._store.client.hget(keys.responses(tenant_id, tree_id), token)
        return None if found is None else StoredResponse(**json.loads(found))

    async def delete(self, tenant_id: TenantId, tree_id: TreeId, token: str) -> int | None:
        """See `ResponseStore`."""
        name = keys.responses(tenant_id, tree_id)
        with translated(self._store.url):
            async with self._store.client.pipeline(transaction=True) as both:
                both.hdel(name, token)
                both.hlen(name)
                removed, left = await both.execute()
        return int(left) if removed else None

    async def drop_tree(self, tenant_id: TenantId, tree_id: TreeId) -> None:
        """See `ResponseStore`."""
        with translated(self._store.url):
            await self._store.client.delete(keys.responses(tenant_id, tree_id))
