"""What the settings of a Redis or Valkey server promise of an acknowledged write, and what to change for more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from katsura.domain.trees import Durability

SETTINGS: Final = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory", "maxmemory-policy")
"""Settings of a server that decide what it promises."""
_FSYNC: Final = {"always": Durability.STRICT, "everysec": Durability.RELAXED}


def promise(settings: Mapping[str, str], replicas: int) -> Durability:
    """What a write survives under `settings` (`SETTINGS`, as far as they were seen) if `replicas` confirm it."""
    if _evicts(settings):
        return Durability.CACHE
    if replicas:
        return Durability.STRICT
    if settings.get("appendonly") != "yes" or settings.get("no-appendfsync-on-rewrite") == "yes":
        return Durability.CACHE
    return _FSYNC.get(settings.get("appendfsync", ""), Durability.CACHE)


def shortfall(asked: Durability, settings: Mapping[str, str], replicas: int) -> tuple[str, ...]:
    """Why `settings` promise less than `asked`, setting by setting, each with what it should be; empty: they do not."""
    if promise(settings, replicas) >= asked:
        return ()
    found = [f"maxmemory-policy is {settings.get('maxmemory-policy')}, set noeviction"] if _evicts(settings) else []
    if replicas:
        return tuple(found)
    if "appendonly" not in settings:
        what = "appendonly and appendfsync cannot be seen, allow CONFIG GET or let replicas confirm (redis.replicas)"
        return (*found, what)
    if settings["appendonly"] != "yes":
        found.append(f"appendonly is {settings['appendonly']}, set yes")
    if settings.get("no-appendfsync-on-rewrite") == "yes":
        found.append("no-appendfsync-on-rewrite is yes, set no")
    fsync = settings.get("appendfsync", "")
    if _FSYNC.get(fsync, Durability.CACHE) < asked:
        found.append(f"appendfsync is {fsync}, set {'always' if asked is Durability.STRICT else 'everysec'}")
    return tuple(found)


def _evicts(settings: Mapping[str, str]) -> bool:
    return settings.get("maxmemory", "0") != "0" and settings.get("maxmemory-policy") != "noeviction"
