"""What becomes of a MemoryStore's data when the store is deleted (`spec.deletionPolicy`).

A store that says Delete carries a finalizer from before its first pod. When it is deleted its memory pods end first,
then a Job with the store's own credentials deletes what it kept (`katsura.memory.purge`), then the finalizer goes and
the store with it. Retain, said at any time, lets it go as it is.

The Job has no owner: foreground deletion of the store would end it before its work. `purging` deletes what is left.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from katsura.manifests.conditions import ConditionType, EventReason, Why
from katsura.manifests.stores import DeletionPolicy, server_of
from katsura_operator.core.objects import (
    JOB,
    MEMORY_STORE,
    POD,
    POOL,
    ROLE,
    STORE,
    WORKLOAD,
    Object,
    condition_of,
    digest,
    is_ending,
    is_true,
    labels_of,
    make,
    name_of,
    namespace_of,
)
from katsura_operator.core.placing import Reading
from katsura_operator.core.pods import purge_template
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Snapshot
from katsura_operator.core.status import Said, event
from katsura_operator.core.trouble import failure_of, trouble_of

FINALIZER: Final = "katsura.dev/purge"
PURGE: Final = "purge"
"""Role of the Job's pods."""
_KEPT_S: Final = 3600
_MESSAGE_MAX: Final = 700
_TRIES: Final = 1_000_000
"""The Job never gives up by itself: a store that comes back is purged, and a person may say Retain."""


@dataclass(slots=True)
class Purging:
    """What stores that are or may be deleted need.

    Attributes:
        hold: stores that get the finalizer. release: stores that lose it. keep: Jobs. delete: Jobs that are done with.
        said: conditions of stores that are being deleted.
    """

    hold: list[Object] = field(default_factory=list)
    release: list[Object] = field(default_factory=list)
    keep: list[dict[str, Any]] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)
    said: list[tuple[Object, list[Said]]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)


def purging(seen: Snapshot, reading: Reading, settings: Settings) -> Purging:
    """What to do for all stores."""
    made = Purging()
    wanted: set[tuple[str, str]] = set()
    for obj in seen.of(MEMORY_STORE):
        held = FINALIZER in (obj["metadata"].get("finalizers") or ())
        deletes = obj["spec"].get("deletionPolicy") == DeletionPolicy.DELETE
        if held and not deletes:
            made.release.append(obj)
        elif is_ending(obj):
            if held:
                wanted.add(_end(obj, seen, settings, made))
        elif deletes and not held and ("MemoryStore", namespace_of(obj), name_of(obj)) not in reading.refused:
            made.hold.append(obj)
    jobs = [job for job in seen.of(JOB) if labels_of(job).get(ROLE) == PURGE]
    made.delete = [job for job in jobs if (namespace_of(job), name_of(job)) not in wanted and not is_ending(job)]
    return made


def _end(obj: Object, seen: Snapshot, settings: Settings, made: Purging) -> tuple[str, str]:
    """One step of a store that is being deleted; namespace and name of its Job."""
    namespace, name = namespace_of(obj), name_of(obj)
    job = _job(obj, seen, settings)
    there = seen.get(JOB, namespace, name_of(job))
    serving = {POOL: f"{name}-memory"}
    pods = seen.labelled(POD, namespace, **serving)
    if there is not None and is_true(there, "Complete"):
        note = "its trees, blocks and tasks are deleted; tenants and their API keys stay"
        made.events.append(event(obj, EventReason.PURGED, note, seen.now, mark=name_of(job)))
        made.release.append(obj)
    elif pods or seen.labelled(WORKLOAD, namespace, **serving):
        waits = f"{len(pods)} memory pods end first: {', '.join(map(name_of, pods[:3]))}" if pods else ""
        _tell(obj, Why.PURGING, waits or "memory pods end first", made)
    else:
        made.keep.append(job)
        working = seen.labelled(POD, namespace, **{POOL: labels_of(job)[POOL]})
        blocked = failure_of(working) or trouble_of(working, coming=False)
        why = Why.PURGE_BLOCKED if blocked else Why.PURGING
        _tell(obj, why, blocked or "its trees are being deleted", made)
        if blocked and condition_of(obj, ConditionType.READY).get("reason") != Why.PURGE_BLOCKED.value:
            mark = str(condition_of(obj, ConditionType.READY))
            made.events.append(event(obj, EventReason.PURGE_BLOCKED, blocked, seen.now, mark=mark))
    return namespace, name_of(job)


def _tell(obj: Object, why: Why, message: str, made: Purging) -> None:
    patch = json.dumps({"spec": {"deletionPolicy": DeletionPolicy.RETAIN.value}}, separators=(",", ":"))
    way_out = f"kubectl patch kms {name_of(obj)} -n {namespace_of(obj)} --type merge -p '{patch}'"
    message = f"{message[:_MESSAGE_MAX]}; to keep the trees instead: {way_out}"
    made.said.append((obj, [Said(ConditionType.READY, False, why, message)]))


def _job(obj: Object, seen: Snapshot, settings: Settings) -> dict[str, Any]:
    """The Job that deletes the data. What it is told decides its name, since a Job cannot be told anything else."""
    name = name_of(obj)
    pool = f"{name}-{PURGE}"
    labels = {POOL: pool, ROLE: PURGE, STORE: name}
    theirs = [o for o in seen.of(MEMORY_STORE) if o is not obj and not is_ending(o)]
    spared = sorted({server_of(url) for o in theirs if (url := url_of(o))})
    beside = any(namespace_of(o) == namespace_of(obj) and not url_of(o) for o in theirs)
    archive = (obj["spec"].get("archive") or {}).get("pvc", "")
    template = purge_template(settings, labels, url_of(obj), archive, spared, spares_secret=beside)
    spec = {
        "backoffLimit": _TRIES,
        "ttlSecondsAfterFinished": _KEPT_S,
        "template": template,
    }
    head = make(
        JOB,
        namespace_of(obj),
        f"{pool}-{digest(obj['metadata']['uid'], spec, length=6)}",
        labels=labels,
        owner_of=None,
    )
    return {**head, "spec": spec}


def url_of(obj: Object) -> str:
    """URL of a store's own server; empty where it lives on the one that the Secret names."""
    return str((obj["spec"].get("redis") or {}).get("url", ""))
