"""Conditions and their reasons: the whole vocabulary in which status speaks. Scripts may rely on every word.

The operator writes them, `kubectl wait --for=condition=Ready` and people read them; docs/control-plane.md is checked
against this list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

from katsura.manifests.rules import Rule


class ConditionType(StrEnum):
    """What a condition is about. Ready sums the others up."""

    ACCEPTED = "Accepted"
    """The resource is consistent and what it names exists."""
    PLANNED = "Planned"
    """A plan gives it nodes."""
    PROGRESSING = "Progressing"
    """Pods are being made, replaced or ended."""
    READY = "Ready"
    """It serves, by pods of the current generation."""
    DEGRADED = "Degraded"
    """It serves, with less than was asked for."""
    DISCOVERED = "Discovered"
    """Of an AcceleratorProfile: nodes have it."""
    CALIBRATED = "Calibrated"
    """Of an AcceleratorProfile: its coefficients were measured, not estimated."""


class Why(StrEnum):
    """Reason of a condition."""

    VALID = "Valid"
    REFERENCE_NOT_FOUND = "ReferenceNotFound"
    NAME_TAKEN = "NameTaken"
    INVALID_CONFIGURATION = "InvalidConfiguration"
    PLANNED = "PlanInForce"
    PLAN_INFEASIBLE = "PlanInfeasible"
    PLANNER_FAILED = "PlannerFailed"
    INSUFFICIENT_CAPACITY = "InsufficientCapacity"
    AWAITING_APPROVAL = "AwaitingApproval"
    NOT_PLANNED = "NotPlanned"
    ALL_ROLES_READY = "AllRolesReady"
    IDLE = "Idle"
    PODS_NOT_READY = "PodsNotReady"
    ROLLOUT_IN_PROGRESS = "RolloutInProgress"
    DRAINING = "Draining"
    SCALING = "Scaling"
    STABLE = "Stable"
    FEWER_THAN_ASKED = "FewerThanAsked"
    NODES_FOUND = "NodesFound"
    NO_NODES = "NoNodes"
    MEASURED = "Measured"
    ESTIMATED = "Estimated"
    DURABILITY_UNMET = "DurabilityUnmet"
    PURGING = "Purging"
    PURGE_BLOCKED = "PurgeBlocked"
    DEPENDENCIES_READY = "DependenciesReady"
    DEPENDENCIES_NOT_READY = "DependenciesNotReady"


MEANING: Final[Mapping[Why, str]] = {
    Why.VALID: "the resource is consistent and everything that it names exists",
    Why.REFERENCE_NOT_FOUND: "it names a resource that its namespace does not have",
    Why.NAME_TAKEN: "an older deployment answers to the same model name; the message says which",
    Why.INVALID_CONFIGURATION: "its fields contradict each other; the message says which and what to change",
    Why.PLANNED: "the plan that status.plan names gives every role its nodes",
    Why.PLAN_INFEASIBLE: "no plan can be made; the message says why (no node at all, sizes of the model not known)",
    Why.PLANNER_FAILED: "the planner failed, ended or took too long; what runs stays as it is; the message says why",
    Why.INSUFFICIENT_CAPACITY: "nodes cannot carry the demand, or not two revisions; message and plan say what helps",
    Why.AWAITING_APPROVAL: "advisory: set spec.approvedPlan to the plan that the message names",
    Why.NOT_PLANNED: "no plan was made for it yet",
    Why.ALL_ROLES_READY: "every role has ready pods of the current generation",
    Why.IDLE: "zero replicas were asked for, and none run",
    Why.PODS_NOT_READY: "pods exist that are not ready; the message repeats what the first of them says",
    Why.ROLLOUT_IN_PROGRESS: "pods of a new revision are taking over",
    Why.DRAINING: "pods finish their work before they end",
    Why.SCALING: "pods are being added or removed",
    Why.STABLE: "nothing is changing",
    Why.FEWER_THAN_ASKED: "fewer pods are ready than the plan has",
    Why.NODES_FOUND: "nodes with this accelerator were found",
    Why.NO_NODES: "no node has this accelerator",
    Why.MEASURED: "coefficients were measured on it",
    Why.ESTIMATED: "coefficients come from data sheets; `katsura calibrate` measures them",
    Why.DURABILITY_UNMET: "the server promises less than spec.durability; the message says which setting to change",
    Why.PURGING: "the store is being deleted with its trees; memory pods end first, then a Job deletes",
    Why.PURGE_BLOCKED: "its trees cannot be deleted now; the message says why, and how to let the store go without",
    Why.DEPENDENCIES_READY: "the model and the memory that it names are ready",
    Why.DEPENDENCIES_NOT_READY: "the model or the memory that it names is not ready; sessions degrade, none is stopped",
}
"""Each reason in one sentence for people."""


class EventReason(StrEnum):
    """Reason of an event: something happened, once."""

    PLAN_MADE = "PlanMade"
    PLAN_INFEASIBLE = "PlanInfeasible"
    BECAME_READY = "BecameReady"
    BECAME_UNREADY = "BecameUnready"
    REFUSED = "Refused"
    SCALED = "Scaled"
    DRAINED = "Drained"
    DEGRADED = "Degraded"
    RECOVERED = "Recovered"
    PURGED = "Purged"
    PURGE_BLOCKED = "PurgeBlocked"


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition, as Kubernetes writes them."""

    type: Annotated[str, Rule("what it is about", 1, 63)]
    status: Annotated[str, Rule("True, False or Unknown", 4, 7, "True|False|Unknown", "True, False or Unknown")]
    reason: Annotated[str, Rule("one of the documented reasons", 1, 63)]
    message: Annotated[str, Rule("for people", 0, 2048)] = ""
    observed_generation: Annotated[int | None, Rule("generation that it speaks of", 0, 1 << 53)] = None
    last_transition_time: Annotated[str | None, Rule("when status changed last", 1, 40)] = None
