"""Which members of an expert pool can stand in for each other: those whose canary outputs are the same bits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from katsura_operator.core.objects import POOL, ROLE, Object, is_ending, is_true, labels_of, namespace_of


@dataclass(frozen=True, slots=True)
class Member:
    """A ready pod of an expert pool (`namespace/name`) that can be asked."""

    uid: str
    host: str
    pool: str


def members_of(pods: Iterable[Object]) -> tuple[Member, ...]:
    """Ready members among `pods`, by uid."""
    made = []
    for pod in pods:
        labels, host = labels_of(pod), (pod.get("status") or {}).get("podIP")
        if labels.get(ROLE) == "experts" and POOL in labels and host and is_true(pod, "Ready") and not is_ending(pod):
            made.append(Member(str(pod["metadata"]["uid"]), str(host), f"{namespace_of(pod)}/{labels[POOL]}"))
    return tuple(sorted(made, key=lambda m: m.uid))


def odd_ones(members: Iterable[Member], prints: Mapping[str, str]) -> tuple[str, ...]:
    """Uids of members that compute other bits than most of their pool. `prints`: fingerprints known so far, by uid."""
    pools: dict[str, Counter[str]] = defaultdict(Counter)
    known = [(m, prints[m.uid]) for m in members if m.uid in prints]
    for member, print_ in known:
        pools[member.pool][print_] += 1
    most = {pool: max(sorted(counts), key=lambda p: counts[p]) for pool, counts in pools.items()}
    return tuple(member.uid for member, print_ in known if print_ != most[member.pool])
