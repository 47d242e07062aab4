"""Which member serves which groups of a layer, and when one is suspected: decided from the table and who is usable.

Default dispatch is the static primary table. An alternate serves a group only while its primary cannot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from katsura.domain.cost import FrameCost
from katsura.domain.tables import ExpertTable

SUSPECT_S = 0.2
SUSPECT_FACTOR = 8.0
"""A member is suspected after max(200 ms, 8 x the predicted time): architecture.md section 4."""


@dataclass(frozen=True, slots=True)
class Sending:
    """Groups (ascending) by the rank of the member that gets them, and groups that nobody usable holds."""

    by_rank: Mapping[int, tuple[int, ...]]
    orphans: tuple[int, ...]


class Holders:
    """The holders of every (layer, group) of a table, primary first; looked up once per table, used every layer."""

    def __init__(self, table: ExpertTable, fingerprint: str) -> None:
        """Members of another `fingerprint` compute other bits and do not count."""
        self._holders: list[list[tuple[int, ...]]] = [
            [_holders(table, layer, group, fingerprint) for group in range(table.layout.group_count)]
            for layer in range(table.layer_count)
        ]

    def send(self, layer: int, groups: Iterable[int], usable: Collection[int]) -> Sending:
        """Give each group (ascending) to its first holder whose rank is in `usable`."""
        by_rank: dict[int, tuple[int, ...]] = {}
        orphans: list[int] = []
        for group in groups:
            rank = next((rank for rank in self._holders[layer][group] if rank in usable), None)
            if rank is None:
                orphans.append(group)
            else:
                by_rank[rank] = (*by_rank.get(rank, ()), group)
        return Sending(by_rank, tuple(orphans))

    def is_primary(self, layer: int, group: int, rank: int) -> bool:
        """Whether `rank` serves the group by default."""
        holders = self._holders[layer][group]
        return bool(holders) and holders[0] == rank

    def orphans(self, usable: Collection[int]) -> list[tuple[int, int]]:
        """Every (layer, group) that nobody usable holds."""
        return [
            (layer, group)
            for layer, groups in enumerate(self._holders)
            for group, holders in enumerate(groups)
            if not any(rank in usable for rank in holders)
        ]


def _holders(table: ExpertTable, layer: int, group: int, fingerprint: str) -> tuple[int, ...]:
    primary = table.primary(layer, group)
    holders = ([] if primary is None else [primary]) + list(table.alternates(layer, group))
    return tuple(dict.fromkeys(a.rank for a in holders if a.fingerprint == fingerprint))


def suspicion_s(cost: FrameCost, units: int, token_units: int, queue_s: float, strikes: int, most_s: float) -> float:
    """Seconds after which a member that has not answered is suspected.

    Args:
        cost: as the member measured it.
        units: that the frame activates; token_units: (token, unit) pairs of it.
        queue_s: how long its last frame waited for others.
        strikes: suspicions in a row; each doubles the patience, so that a member that is slow but alive is not given
            up for ever.
        most_s: longest patience.
    """
    predicted_s = cost.predict_s(units, token_units) + queue_s
    return min(most_s, max(SUSPECT_S, SUSPECT_FACTOR * predicted_s) * 2.0**strikes)
