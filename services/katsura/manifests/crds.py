"""The custom resource definitions, generated from `kinds` and `owned`: types, bounds, defaults, CEL rules, columns.

`katsura crds` prints them, `katsura crds --out charts/katsura/crds` is what the chart ships; a meta test holds the two
together. Defaults stand in the schema, so `kubectl get -o yaml` shows what is in effect and no webhook is needed.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from enum import Enum, StrEnum
from typing import Annotated, Any, Final, Union, get_args, get_origin

import yaml

from katsura.domain.units import MIB
from katsura.manifests.conditions import Condition
from katsura.manifests.kinds import (
    GROUP,
    VERSION,
    AcceleratorProfileSpec,
    AgentSpec,
    ModelDeploymentSpec,
)
from katsura.manifests.owned import (
    AcceleratorProfileStatus,
    AgentStatus,
    MemoryStoreStatus,
    ModelDeploymentStatus,
    RolePoolSpec,
    RolePoolStatus,
    RoleStatus,
)
from katsura.manifests.reader import hints_of
from katsura.manifests.rules import Invariant, Rule, camel
from katsura.manifests.stores import MemoryStoreSpec
from katsura.placement.document import schema as plan_schema

_LIST_MAX: Final = 256
_TEXT_MAX: Final = 1024
_NAME_MAX: Final = 40
_PLAN_LIST_MAX: Final = 10_000
_MAP_KEYS: Final[Mapping[type, str]] = {Condition: "type", RoleStatus: "name"}
"""Types whose lists are maps: two writers may each own an entry."""
_READY = '.status.conditions[?(@.type=="Ready")]'


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`; `wide` ones need `-o wide`."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Definition:
    """One kind for the API server. `rules` are (CEL rule on spec, message) beside the spec's own invariants."""

    kind: str
    short: str
    about: str
    spec: type | Mapping[str, Any]
    status: type | Mapping[str, Any]
    columns: tuple[Column, ...]
    namespaced: bool = True
    scaled: bool = False
    name_max: int = _NAME_MAX
    rules: tuple[tuple[str, str], ...] = ()

    @property
    def plural(self) -> str:
        """Name in URLs."""
        return f"{self.kind.lower()}s"


_AGE = Column("Age", ".metadata.creationTimestamp", "date")
_SUMMARY = (Column("Ready", f"{_READY}.status"), Column("Reason", f"{_READY}.reason"))


def definitions() -> tuple[Definition, ...]:
    """Every kind of the group."""
    return (*_written_by_people(), *_written_by_the_operator())


def _written_by_people() -> tuple[Definition, ...]:
    return (
        Definition(
            "ModelDeployment",
            "kmd",
            "A served model: where its weights come from, how it is cut, how many processes serve it.",
            ModelDeploymentSpec,
            ModelDeploymentStatus,
            (
                *_SUMMARY,
                Column("Model", ".spec.model.source"),
                Column("Cost/h", ".status.plan.hourlyUsd", "number"),
                Column("Topology", ".spec.topology", wide=True),
                Column("Plan", ".status.plan.name", wide=True),
                Column("Measured/Predicted", ".status.measured[0].ratio", "number", wide=True),
                Column("Message", f"{_READY}.message", wide=True),
                _AGE,
            ),
        ),
        Definition(
            "AcceleratorProfile",
            "kap",
            "A kind of accelerator or CPU node: what it can, what it costs, where it is.",
            AcceleratorProfileSpec,
            AcceleratorProfileStatus,
            (
                Column("Nodes", ".status.nodes", "integer"),
                Column("Total", ".status.total", "integer"),
                Column("Cost/h", ".spec.cost.perHour", "number"),
                Column("Estimate", ".status.calibration.errorClass"),
                Column("Device", ".spec.device", wide=True),
                Column("Measured", ".status.calibration.date", wide=True),
                Column("Error90", ".status.calibration.error90", "number", wide=True),
                _AGE,
            ),
            namespaced=False,
        ),
        Definition(
            "MemoryStore",
            "kms",
            "Where agents' trees are kept, and what an acknowledged write promises.",
            MemoryStoreSpec,
            MemoryStoreStatus,
            (
                *_SUMMARY,
                Column("Durability", ".spec.durability"),
                Column("Endpoint", ".status.endpoint", wide=True),
                _AGE,
            ),
        ),
        Definition(
            "Agent",
            "kag",
            "Policy for one kind of agent: its model, its memory, its budgets.",
            AgentSpec,
            AgentStatus,
            (*_SUMMARY, Column("Model", ".spec.modelRef.name"), Column("Memory", ".spec.memoryRef.name"), _AGE),
        ),
    )


def _written_by_the_operator() -> tuple[Definition, ...]:
    plan = plan_schema()["properties"]
    return (
        Definition(
            "RolePool",
            "kpool",
            "The pods of one role; made by the operator, scaled by people and autoscalers.",
            RolePoolSpec,
            RolePoolStatus,
            (
                *_SUMMARY,
                Column("Role", ".spec.role"),
                Column("Asked", ".spec.replicas", "integer"),
                Column("Granted", ".status.granted", "integer"),
                Column("Running", ".status.readyReplicas", "integer"),
                Column("Message", ".status.message", wide=True),
                _AGE,
            ),
            scaled=True,
            name_max=63,
            rules=(
                ("self.role == oldSelf.role", "role cannot change; the operator makes another pool"),
                (
                    "has(self.deploymentRef) == has(oldSelf.deploymentRef) && (!has(self.deploymentRef)"
                    " || self.deploymentRef.name == oldSelf.deploymentRef.name)",
                    "deploymentRef cannot change; the operator makes another pool",
                ),
            ),
        ),
        Definition(
            "PlacementPlan",
            "kplan",
            "One solved placement: assignments, what else was possible and why not, what limits it.",
            plan["spec"],
            plan["status"],
            (
                Column("Feasible", ".status.feasible", "boolean"),
                Column("Cost/h", ".status.hourlyUsd", "number"),
                Column("Gap", ".status.gap", "number"),
                Column("Search", ".status.search", wide=True),
                _AGE,
            ),
            name_max=63,
            rules=(("self == oldSelf", "a plan is a record of one solve and never changes; make another one"),),
        ),
    )


def crd(entry: Definition) -> dict[str, Any]:
    """The CustomResourceDefinition of `entry`."""
    columns = [
        {"name": c.name, "type": c.type, "jsonPath": c.path, **({"priority": 1} if c.wide else {})}
        for c in entry.columns
    ]
    subresources: dict[str, Any] = {"status": {}}
    if entry.scaled:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{entry.plural}.{GROUP}", "labels": {"app.kubernetes.io/part-of": "katsura"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if entry.namespaced else "Cluster",
            "names": {
                "kind": entry.kind,
                "listKind": f"{entry.kind}List",
                "plural": entry.plural,
                "singular": entry.kind.lower(),
                "shortNames": [entry.short],
                "categories": ["katsura"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": subresources,
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": _root(entry)},
                }
            ],
        },
    }


def files() -> dict[str, str]:
    """File name to YAML text of every definition; each begins a document, since Helm 3 only joins what it shows."""
    head = (
        "---\n# Generated by `katsura crds --out charts/katsura/crds` from services/katsura/manifests; do not edit.\n"
    )
    return {
        f"{entry.plural}.yaml": head + yaml.safe_dump(crd(entry), sort_keys=False, width=120) for entry in definitions()
    }


def _root(entry: Definition) -> dict[str, Any]:
    spec = _own(entry.spec)
    invariants: Sequence[Invariant] = getattr(entry.spec, "INVARIANTS", ())
    rules = [{"rule": i.cel, "message": f"{i.field}: {i.message}", "fieldPath": _existing(i)} for i in invariants]
    rules += [{"rule": rule, "message": message} for rule, message in entry.rules]
    if rules:
        spec["x-kubernetes-validations"] = [{k: v for k, v in rule.items() if v} for rule in rules]
    status = _own(entry.status)
    status.pop("required", None)
    too_long = f"metadata.name: at most {entry.name_max} characters, so that the names of its pods fit too"
    return {
        "type": "object",
        "description": entry.about,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}"},
            "kind": {"type": "string", "description": entry.kind},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
        "x-kubernetes-validations": [{"rule": f"size(self.metadata.name) <= {entry.name_max}", "message": too_long}],
    }


def _existing(invariant: Invariant) -> str:
    """The path that a message points at; only paths of one step, since a missing parent would refuse the schema."""
    return f".{invariant.field}" if "." not in invariant.field else ""


def _own(source: type | Mapping[str, Any]) -> dict[str, Any]:
    return _structural(source) if isinstance(source, Mapping) else _object(source)


def _structural(node: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema as a structural one: no unions of types, no closed objects (the API server prunes), bounded."""
    kind = node.get("type", "string")
    made: dict[str, Any] = {}
    if isinstance(kind, list):
        made["nullable"] = True
        kind = next(k for k in kind if k != "null")
    made["type"] = kind
    made.update({k: node[k] for k in ("description", "enum", "minimum", "maximum") if k in node})
    # A null is stored as an absent field.
    required = [k for k in node.get("required", ()) if not isinstance(node["properties"][k].get("type"), list)]
    if required:
        made["required"] = required
    if kind == "array":
        made["items"] = _structural(node["items"])
        made["maxItems"] = _PLAN_LIST_MAX
        made["x-kubernetes-list-type"] = "atomic"
    elif "properties" in node:
        made["properties"] = {key: _structural(value) for key, value in node["properties"].items()}
    elif kind == "object":
        extra = node.get("additionalProperties")
        made["additionalProperties"] = _structural(extra if isinstance(extra, Mapping) else {})
    return made


def _object(kind: type) -> dict[str, Any]:
    properties, required = {}, []
    for item in fields(kind):
        properties[camel(item.name)] = _property(kind, item)
        if item.default is MISSING and item.default_factory is MISSING:
            required.append(camel(item.name))
    made: dict[str, Any] = {"type": "object", "description": _first_sentence(kind), "properties": properties}
    if required:
        made["required"] = required
    return made


def _property(kind: type, item: Field[Any]) -> dict[str, Any]:
    made = _value(hints_of(kind)[item.name], Rule(""))
    default = item.default
    if default is MISSING and item.default_factory is not MISSING:
        default = item.default_factory()
    plain = _default(default)
    if plain is not None:
        made["default"] = _quantity(plain) if made.get("x-kubernetes-int-or-string") else plain
    return made


def _default(value: Any) -> Any:
    """What the schema says for an absent field; None for nothing. Objects take the defaults of their own fields."""
    if value is MISSING or value is None or value == ():
        return None
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {}
    return None if isinstance(value, Mapping) else value


def _quantity(value: int) -> int | str:
    return f"{value // MIB}Mi" if value % MIB == 0 else value


def _value(hint: Any, rule: Rule) -> dict[str, Any]:
    if get_origin(hint) is Annotated:
        inner, *extras = get_args(hint)
        own = next((extra for extra in extras if isinstance(extra, Rule)), rule)
        return _value(inner, replace(own, doc=rule.doc or own.doc))
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _value(next(arg for arg in get_args(hint) if arg is not type(None)), rule)
    described = {"description": rule.doc} if rule.doc else {}
    if origin is tuple:
        return described | _list(get_args(hint)[0], rule)
    if origin is not None and issubclass(origin, Mapping):
        text = {"type": "string", "maxLength": _TEXT_MAX}
        return {"type": "object", **described, "additionalProperties": text, "maxProperties": 64}
    if is_dataclass(hint) and isinstance(hint, type):
        return _object(hint) | described
    return described | _scalar(hint, rule)


def _list(item: Any, rule: Rule) -> dict[str, Any]:
    items = _value(item, Rule(""))
    made: dict[str, Any] = {"type": "array", "items": items, "maxItems": rule.maximum or _LIST_MAX}
    key = next((key for kind, key in _MAP_KEYS.items() if item is kind), None)
    if key is None and is_dataclass(item) and "name" in items.get("required", ()):
        key = "name"
    if key is not None:
        return made | {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
    is_set = not rule.repeats and items.get("type") != "object"
    return made | {"x-kubernetes-list-type": "set" if is_set else "atomic"}


def _scalar(hint: Any, rule: Rule) -> dict[str, Any]:
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return {
            "type": "string",
            "enum": [member.value for member in hint],
            **({} if rule.doc else {"description": _first_sentence(hint)}),
        }
    if hint is bool:
        return {"type": "boolean"}
    if hint is str:
        made: dict[str, Any] = {"type": "string", "maxLength": rule.maximum or _TEXT_MAX}
        if rule.minimum:
            made["minLength"] = rule.minimum
        if rule.pattern:
            made["pattern"] = f"^({rule.pattern})$"
        return made
    bounds = {k: v for k, v in (("minimum", rule.minimum), ("maximum", rule.maximum)) if v is not None}
    if rule.quantity:
        return _quantity_schema(rule)
    return {"type": "integer", "format": "int64", **bounds} if hint is int else {"type": "number", **bounds}


def _quantity_schema(rule: Rule) -> dict[str, Any]:
    """Bytes as a number or as `512Mi`; bounds are a CEL rule, since the type is open."""
    low = rule.minimum or 0
    return {
        "x-kubernetes-int-or-string": True,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$",
        "maxLength": 32,
        "x-kubernetes-validations": [
            {
                "rule": f"type(self) == int ? self >= {low} : quantity(self).compareTo(quantity('{low}')) >= 0",
                "message": f"at least {_quantity(low)}",
            }
        ],
    }


def _first_sentence(kind: type) -> str:
    return (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
