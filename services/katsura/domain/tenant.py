"""An owner of data and the secret that keeps its names apart from everybody else's."""

from __future__ import annotations

from dataclasses import dataclass, field

from katsura.domain.ids import TenantId

SALT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Tenant:
    """An owner of data, and the secret that salts the names of what it owns (32 bytes; never printed)."""

    tenant_id: TenantId
    salt: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.salt) != SALT_BYTES:
            raise ValueError(f"a tenant's salt has {SALT_BYTES} bytes, not {len(self.salt)}")
