"""Names of KV pages: a hash chain over token ids, salted by model and tenant.

The gateway computes the chain of a prompt, the router looks its longest known prefix up, the shard publishes the
hashes of the pages that it commits. All three must agree, so the function lives here. BLAKE2b is keyed by the
namespace: equal tokens of two tenants, models, dtypes or page sizes never share a page.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

from katsura.domain.shape import DType, Numerics

PAGE_HASH_BYTES = 16


def page_namespace(
    weights_digest: bytes, dtype: DType, numerics: Numerics, page_tokens: int, tenant_salt: bytes
) -> bytes:
    """The 32-byte key under which page hashes of one (revision, tenant) are made."""
    h = blake2b(digest_size=32, person=b"katsura-pages")
    for part in (weights_digest, dtype.value.encode(), numerics.value.encode(), tenant_salt):
        h.update(struct.pack("<I", len(part)) + part)
    h.update(struct.pack("<I", page_tokens))
    return h.digest()


def page_hashes(namespace: bytes, token_ids: Sequence[int], page_tokens: int, parent: bytes = b"") -> list[bytes]:
    """Hashes of the *full* pages of `token_ids`, each covering all tokens before it too.

    Args:
        namespace: from `page_namespace`.
        token_ids: tokens that follow the page named `parent` (the start of the prompt where it is empty).
        page_tokens: slots of a page.
        parent: hash of the page before, or empty.
    """
    hashes: list[bytes] = []
    for start in range(0, len(token_ids) - page_tokens + 1, page_tokens):
        page = token_ids[start : start + page_tokens]
        body = struct.pack(f"<{page_tokens}I", *page)
        parent = blake2b(parent + body, key=namespace, digest_size=PAGE_HASH_BYTES).digest()
        hashes.append(parent)
    return hashes
