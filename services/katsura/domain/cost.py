"""What a frame costs an expert member: measured by the member, believed by the shard."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FrameCost:
    """`unit_s` seconds per activated unit (its weights are read once), `token_s` per (token, unit)."""

    unit_s: float
    token_s: float

    def predict_s(self, units: int, token_units: int) -> float:
        """Seconds for a frame that activates `units` units for `token_units` (token, unit) pairs in all."""
        return self.unit_s * units + self.token_s * token_units
