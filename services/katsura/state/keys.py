"""Every key that Katsura writes: built and documented here and nowhere else.

A name that came from outside is encoded by `quoted`, so no tenant, tree or branch can forge another's key. Keys that
one function touches together share a hash tag `{...}`, so the function is atomic in a cluster too.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Final
from urllib.parse import quote

STORE_INCARNATION: Final = "katsura:store:incarnation"
"""STRING, 16 hex digits, owner `state.connect`, no TTL. One life of the store's data: drawn once, survives restarts."""

BARRIER: Final = "katsura:store:barrier"
"""STRING, empty: written so that WAITAOF has something to wait for."""


@lru_cache(maxsize=4096)
def quoted(name: str) -> str:
    """`name` with everything but letters, digits and `_.-~` percent-encoded: safe between separators and braces."""
    return quote(name, safe="")


# Hints: everything below can be rebuilt by the processes that wrote it (state.hints). One hash tag, since functions and
# blocking reads cross these keys; only programs spread.


def lease_records(role: str) -> bytes:
    """HASH instance id -> `<put_ms>\\n<JSON lease>`, owner: each process its own field. With `lease_expiry`."""
    return f"katsura:{{hints}}:lease:{role}".encode()


def lease_lives(role: str) -> bytes:
    """HASH instance id -> `<incarnation> <start_ms>`: which life holds the lease."""
    return f"katsura:{{hints}}:lease-life:{role}".encode()


def lease_expiry(role: str) -> bytes:
    """ZSET instance id by the millisecond at which its lease ends; whoever lists removes what has ended."""
    return f"katsura:{{hints}}:lease-expiry:{role}".encode()


FLEET: Final = b"katsura:{hints}:fleet"
"""STREAM of about 1024 notices, owner: lease and table functions. `k` lease|table, `a` role|deployment, `b` id."""


def kv_events(shard_id: str) -> bytes:
    """STREAM of KV_STREAM_BATCHES, owner: the shard, TTL 10 min. `i` incarnation, `s` sequence, `e` events (binary,
    domain.kv_events); an entry without `e` says that a snapshot taken after batch `s` exists."""
    return f"katsura:{{hints}}:kv:{quoted(shard_id)}".encode()


def kv_snapshot(shard_id: str) -> bytes:
    """HASH `i` incarnation, `s` sequence, `h` page hashes side by side, `w` 1 where a newer one is wanted; owner: the
    shard, TTL 10 min."""
    return f"katsura:{{hints}}:kv-snapshot:{quoted(shard_id)}".encode()


DECISIONS: Final = b"katsura:{hints}:decisions"
"""STREAM of about DECISION_NOTES, owner: routers. `d` decision with `s` shard, `i` incarnation, `p` tokens to prefill;
or `f` the decision that ended."""

COORDINATOR: Final = b"katsura:{hints}:coordinator"
"""STRING `<token> <incarnation> <router id>`, TTL COORDINATOR_TTL_MS. Functions that write tables compare it."""

COORDINATOR_TOKENS: Final = b"katsura:{hints}:coordinator-tokens"
"""STRING counter of leases taken: the fencing token."""


def expert_tables(deployment: str, revision_id: str) -> bytes:
    """STREAM of one entry `t` JSON ExpertTables, owner: the coordinator; its entry id is the version to wait past."""
    return f"katsura:{{hints}}:experts:{quoted(deployment)}:{quoted(revision_id)}".encode()


EXPERT_TABLE_NAMES: Final = b"katsura:{hints}:experts"
"""SET of `<deployment> <revision>` with tables."""


def endpoints(deployment: str) -> bytes:
    """STREAM of one entry `t` JSON EndpointTable, owner: the coordinator."""
    return f"katsura:{{hints}}:endpoints:{quoted(deployment)}".encode()


ENDPOINT_NAMES: Final = b"katsura:{hints}:endpoints"
"""SET of deployments with endpoint tables."""


def program_affinity(tenant_salt: bytes, program_id: str) -> bytes:
    """STRING JSON Affinity, owner: routers, TTL AFFINITY_TTL_MS. The name is a hash keyed by the tenant's salt."""
    return b"katsura:program:" + blake2b(program_id.encode(), key=tenant_salt, digest_size=16).hexdigest().encode()


# Tenants and API keys: owner `state.tenants`, durable store, no TTL.

TENANTS: Final = "katsura:tenants"
"""SET of tenant ids that have a record."""

API_KEY_DIGESTS: Final = "katsura:api-keys"
"""HASH key id -> digest of the key: finds a key by the id that people see. Written after the key's own record."""


def tenant(tenant_id: str) -> str:
    """HASH of one tenant: `salt` (32 bytes, written once), `create_ms`, and where it has quotas of its own,
    `quota_trees`, `quota_nodes`, `quota_bytes`, `quota_requests_per_minute` (0: no limit)."""
    return f"katsura:tenant:{quoted(tenant_id)}"


def api_key(digest: str) -> str:
    """HASH of one API key, by the SHA-256 of the key (hexadecimal): `id tenant name hint create_ms [revoke_ms]`."""
    return f"katsura:api-key:{digest}"


# Responses: owner `state.responses`, durable store, no TTL; goes with its tree.


def responses(tenant_id: str, tree_id: str) -> str:
    """HASH response token -> JSON: the stored responses of one tree, but for their text, which is in the tree."""
    return f"katsura:responses:{{{quoted(tenant_id)}:{quoted(tree_id)}}}"


# Memory trees: durable, written only by the functions of functions/memory_*.lua. One hash tag per tree, so that a
# mutation is atomic. A TTL is set on all of a tree's keys, at each commit, where its policy asks for one.


def tree(tenant: str, tree_id: str, part: str) -> bytes:
    """A key of one tree. Parts, where `id` is a node's number in decimal:

    - `meta` HASH: goal, pins, policy, labels (JSON); revision, next (last node id), branch_count, default, created,
      updated (ms), ttl_ms, raw_limit, rollup, incarnation, create (replay record), replayed, claims, bytes;
      retention (JSON), collected, garbage_at, collector (memory_9_zcollect.lua); foreign (memory_d_foreign.lua);
      `importing` alone (a token, for 10 minutes) while an import fills the keys.
    - `branches` HASH name -> JSON of heads, and of the newest lease.
    - `versions` HASH `<chain parent>:<base>:<last>` -> summaries made of it.
    - `nodes` HASH id -> `<ms> <revision> <birth branch>\\n<salt 16 bytes><JSON>`; changed by Redact only.
    - `links` HASH id -> `parent len jump depth tokens cum a b hash` (memory_1_tree.lua); never changed.
    - `blobs` HASH id -> opaque bytes and attachments, sized; never changed.
    - `extras` HASH, bytes put beside nodes: id -> `<count> <bytes>`, `<id>:<k>` -> `<key size> <key><payload>`,
      `<id>=<key>` -> k, where a key is `<index>:<task>`.
    - `rollups` HASH summary id -> the roll-up that ends with it, the newest one made, or else one that covers it;
      `covers` ZSET, all scores 0, of every `<summary>:<roll-up over it>` (16 digits each).
    - `slot_heads` HASH branch -> last slot node of its path. - `slot_maps` HASH slot node -> JSON key -> last node that
      wrote it (negative where that unset it); never changed.
    - `work` HASH name -> JSON WorkItem; `compress_due`, `validate_due` ZSETs name by the millisecond from which it may
      be claimed: none that was given up.
    - `cold` STRING JSON `object`, `digest`, `meta`: instead of everything else, where the tree is in an object.
    - `usage` HASH `<agent>\n<what>` -> count: what steps are charged to their agents (domain/usage.py).
    - `waits` HASH step that has an effect, waits or resolves -> JSON [step that waits after it...], from the first one
      that waits on (meta `first_wait`).
    - `gone` HASH names of branches that were collected: not used again.
    - `references` HASH step -> JSON [[to, kind, declared, tree]...]; `dependents` ZSET, all scores 0, of `<to>:<from>`
      (16 digits each); `crossed` ZSET of nodes that a step on another path refers to, by id.
    - `stale` HASH node -> JSON [[seen from, cause, reason, tree of the cause where it is another]...]; `stale_ids` ZSET
      of them by id; `stale_queue` LIST of what is still to be marked (memory_1_tree_references.lua).
    - `looked` HASH `<tree>\\n<to>:<from>` -> JSON marks of a node of another tree as they were last seen.
    - `steps` HASH `<branch> <client step id>` -> `<id> <body digest>`. - `kids` HASH `<parent>:<body digest>` -> id.
    - `verdicts` HASH summary id -> `<status> <version>\\n<JSON>`: the half of a summary that changes.
    - `replays` HASH request id -> digest and answer; `order` LIST of request ids, oldest first: at least
      Limits.replays, at most a sixteenth more.
    - `events` STREAM of about Limits.events, entry id `<revision>-<ms>`: `k` kind, `b` branch, `n` node ids; kept for
      a minute after the tree is deleted.
    - `tokenizers` SET of digests; `tokens:<digest>` HASH id -> u32 token ids, the first ones attached.
    """
    return f"katsura:{{{quoted(tenant)}/{quoted(tree_id)}}}:{part}".encode()


def tree_index(tenant: str) -> bytes:
    """ZSET, all scores 0, of `<created ms, 13 digits>:<tree id>`. A hint: completed and cleaned by reads. No TTL."""
    return f"katsura:trees:{quoted(tenant)}".encode()


def tree_notices(tenant: str) -> bytes:
    """STREAM of about NOTICES_MAX trees that were made, imported or labelled: `t` tree id, `r` revision of that commit.
    A hint for whoever watches by label, TTL 10 min."""
    return f"katsura:tree-notices:{quoted(tenant)}".encode()


def usage(tenant: str) -> bytes:
    """HASH `trees`, `nodes`, `bytes`: sums over a tenant's trees. A hint: recounted from the trees. No TTL."""
    return f"katsura:usage:{quoted(tenant)}".encode()


def requests(tenant: str, minute: int) -> bytes:
    """STRING counter of a tenant's requests in one minute since the epoch, TTL 3 min. A hint."""
    return f"katsura:requests:{quoted(tenant)}:{minute}".encode()


def work_index(tenant: str) -> bytes:
    """ZSET tree id by the millisecond from which it may have tasks to claim. A hint: repaired by claims. No TTL."""
    return f"katsura:work:{quoted(tenant)}".encode()


def blocks(tenant: str, scope: str, owner: str, part: str) -> bytes:
    """A key of the blocks of one owner: durable, written only by functions/blocks.lua, no TTL. Parts:

    - `values` HASH name -> `<version> <created ms> <updated ms> <expires ms, 0 never> <deleted>\\n<payload>`.
    - `names` ZSET, all scores 0, of names that hold a value. - `expiry` ZSET name by the millisecond it expires.
    - `history` HASH `<version> <name>` -> as in `values`: the last HISTORY_MAX of each name.
    - `replays` HASH request id -> digest and answer; `order` LIST of request ids, oldest first.
    - `bytes` STRING counter: what the versions in `history` take.
    """
    return f"katsura:blocks:{{{quoted(tenant)}/{scope}/{quoted(owner)}}}:{part}".encode()


_OF_STORE: Final = (
    b"trees:",
    b"tree-notices:",
    b"usage:",
    b"requests:",
    b"work:",
    b"blocks:",
    b"block-owners:",
    b"responses:",
)


def is_of_store(key: bytes) -> bool:
    """Whether a key belongs to the trees and blocks of a memory store (`state.purge` deletes it with the store); what
    else there is, routers, tenants and their API keys go on with."""
    name = key.removeprefix(b"katsura:")
    if name == key:
        return False
    tag = name[1:].partition(b"}")[0] if name.startswith(b"{") else b""
    return b"/" in tag or name.startswith(_OF_STORE)


def block_owners(tenant: str) -> bytes:
    """SET of `<scope>:<owner>` with blocks, for counting them anew. A hint: completed by puts. No TTL."""
    return f"katsura:block-owners:{quoted(tenant)}".encode()
