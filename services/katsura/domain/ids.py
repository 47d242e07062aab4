"""Names for the things that have names (`NewType`: free at run time, checked by mypy)."""

from __future__ import annotations

import re
from typing import NewType

from katsura.domain.errors import InvalidArgumentError

TenantId = NewType("TenantId", str)
"""Owner of data. Comes from the credential, never from a request body."""
TreeId = NewType("TreeId", str)
"""An agent's memory tree; clients may choose it. Unique within a tenant."""
BranchName = NewType("BranchName", str)
"""A named line of execution in a tree."""
NodeId = NewType("NodeId", int)
"""A step or a summary: an integer, unique within its tree, short enough for an agent to type."""
ProgramId = NewType("ProgramId", str)
"""One agent session as the engine sees it."""
SequenceId = NewType("SequenceId", str)
"""Tokens being generated on one attention shard."""
DeploymentName = NewType("DeploymentName", str)
"""A served model."""
InstanceId = NewType("InstanceId", str)
"""One running process of a role (in a cluster: the pod's UID)."""
Epoch = NewType("Epoch", int)
"""Version of a routing or placement table; every data-plane frame carries it."""
Incarnation = NewType("Incarnation", int)
"""One life of a process: 63 random bits drawn at start. Never an epoch."""

DEFAULT_TENANT = TenantId("default")
"""The tenant of local mode without a key (loopback only)."""
DEFAULT_BRANCH = BranchName("main")
"""The branch a tree is created with."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,126}[A-Za-z0-9])?\Z")


def checked_name(value: str, field: str) -> str:
    """Return `value` if it may name a tree, branch, tenant or deployment, else say what is wrong with `field`."""
    if not _NAME.match(value):
        raise InvalidArgumentError(
            f"{field}: {value!r} is not a name; use 1 to 128 of A-Z a-z 0-9 . _ : - and begin and end with a letter "
            "or a digit",
            field=field,
        )
    return value
