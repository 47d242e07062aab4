"""What a resource says of itself."""

from __future__ import annotations

from katsura.testing.operators import World


async def test_what_has_no_effect_in_a_cluster_is_said() -> None:
    world = World.in_memory()
    world.apply("MemoryStore", "default", {"hints": {"bytes": "64Mi"}})
    await world.settle()
    accepted = world.condition("MemoryStore", "default", "Accepted")
    assert accepted["status"] == "True"
    assert "hints-url" in accepted["message"]
