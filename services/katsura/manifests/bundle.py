"""Whole files in, one `Bundle` out: the door of this room.

Checks what no single field can: the kind of each document, invariants of a spec, names that are taken, references that
lead nowhere. `cli.core.layout` turns a bundle into processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from katsura.domain.errors import InvalidArgumentError
from katsura.manifests.document import Entries, Leaf, Node, Place, parse
from katsura.manifests.kinds import (
    API_VERSION,
    GROUP,
    KINDS,
    AcceleratorProfile,
    Agent,
    AgentFlow,
    MemoryStore,
    ModelDeployment,
    Resource,
)
from katsura.manifests.reader import Reader, suggestion
from katsura.manifests.rules import ManifestError, Problem
from katsura.placement.agents import AgentGraph, Call, Edge

_SERVER_FIELDS = frozenset(
    (
        *("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "ownerReferences"),
        *("finalizers", "deletionTimestamp", "deletionGracePeriodSeconds", "generateName", "selfLink"),
    )
)
"""Metadata that an API server writes: read past, so that what `kubectl get -o yaml` prints can be used as it is."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Every resource of some files, in their order. Names are unique per kind and namespace."""

    deployments: tuple[ModelDeployment, ...]
    memory_stores: tuple[MemoryStore, ...]
    agents: tuple[Agent, ...]
    profiles: tuple[AcceleratorProfile, ...] = ()


@dataclass(frozen=True, slots=True)
class _Read:
    resource: Resource
    root: Entries

    def at(self, path: str) -> Place:
        """Where `path` stands, or the deepest of its parents that is written."""
        node: Node = self.root
        for key in path.split("."):
            if not isinstance(node, Entries) or key not in node.nodes:
                break
            node = node.nodes[key]
        return node.place


def read_manifests(files: Iterable[tuple[str, str]]) -> Bundle:
    """Read `(file name, YAML text)` pairs.

    Raises:
        ManifestError: with every problem of every file.
    """
    problems: list[Problem] = []
    return read_documents((node for file, text in files for node in parse(file, text, problems)), problems)


def read_documents(documents: Iterable[Node], problems: list[Problem], *, whole: bool = True) -> Bundle:
    """Read parsed documents; `problems` holds what was wrong before and grows.

    Where they are not the `whole` of what there is, references may lead out of them.

    Raises:
        ManifestError: with every problem of `problems`.
    """
    read = [resource for node in documents if (resource := _resource(node, problems)) is not None]
    _check_names(read, problems)
    if not problems:
        _check_agents(read, problems, whole)
    if problems:
        raise ManifestError(problems)
    of_kind = [entry.resource for entry in read]
    return Bundle(
        tuple(r for r in of_kind if isinstance(r, ModelDeployment)),
        tuple(r for r in of_kind if isinstance(r, MemoryStore)),
        tuple(r for r in of_kind if isinstance(r, Agent)),
        tuple(r for r in of_kind if isinstance(r, AcceleratorProfile)),
    )


def _resource(node: Node, problems: list[Problem]) -> _Read | None:
    kind = _kind(node, problems)
    if kind is None or not isinstance(node, Entries):
        return None
    reader = Reader(problems)
    before = len(problems)
    metadata = node.nodes.get("metadata")
    if isinstance(metadata, Entries):
        nodes = {key: value for key, value in metadata.nodes.items() if key not in _SERVER_FIELDS}
        node = Entries(node.place, {**node.nodes, "metadata": Entries(metadata.place, nodes, metadata.keys)}, node.keys)
    resource = reader.read(kind, node, "", ignore=("apiVersion", "kind", "status"))
    if resource is None or len(problems) > before:
        return None
    result = _Read(resource, node)
    for invariant in resource.spec.INVARIANTS:
        if not invariant.holds(resource.spec):
            path = f"spec.{invariant.field}"
            problems.append(result.at(path).problem(path, invariant.message))
    return result


def _kind(node: Node, problems: list[Problem]) -> type[Resource] | None:
    if not isinstance(node, Entries):
        problems.append(
            node.place.problem("", "a document must be a resource with apiVersion, kind, metadata and spec")
        )
        return None
    version, kind = (node.nodes.get(key) for key in ("apiVersion", "kind"))
    if not isinstance(version, Leaf) or version.value != API_VERSION:
        place, got = (version.place, getattr(version, "value", None)) if version else (node.place, None)
        problems.append(place.problem("apiVersion", f"expected {API_VERSION}, got {got!r}"))
        return None
    if not isinstance(kind, Leaf) or kind.value not in KINDS:
        place, got = (kind.place, str(getattr(kind, "value", ""))) if kind else (node.place, "")
        problems.append(place.problem("kind", f"no kind {got!r} in group {GROUP}{suggestion(got, KINDS)}"))
        return None
    return KINDS[str(kind.value)]


def _check_names(read: list[_Read], problems: list[Problem]) -> None:
    taken: dict[tuple[str, str, str], Place] = {}
    models: dict[str, Place] = {}
    for entry in read:
        meta, place = entry.resource.metadata, entry.at("metadata.name")
        key = (type(entry.resource).__name__, meta.namespace, meta.name)
        if key in taken:
            first = taken[key]
            problems.append(
                place.problem("metadata.name", f"{key[0]} {meta.name!r} exists already ({first.file}:{first.line})")
            )
            continue
        taken[key] = place
        if isinstance(entry.resource, ModelDeployment):
            _check_model_names(entry, models, problems)


def _check_model_names(entry: _Read, models: dict[str, Place], problems: list[Problem]) -> None:
    assert isinstance(entry.resource, ModelDeployment)
    for name in entry.resource.model_names:
        field = "metadata.name" if name == entry.resource.metadata.name else "spec.model.aliases"
        place = entry.at(field)
        if name in models:
            first = models[name]
            problems.append(
                place.problem(field, f"model name {name!r} is taken ({first.file}:{first.line}); choose another")
            )
        models.setdefault(name, place)


def _check_flow(entry: _Read, flow: AgentFlow | None, problems: list[Problem]) -> None:
    if flow is None:
        return
    both = [c.name for c in flow.calls if c.model_ref is not None and c.tool_seconds is not None]
    try:
        if both:
            raise InvalidArgumentError(f"call {both[0]!r} is of a model or of a tool, not of both", field="calls")
        AgentGraph(
            tuple(Call(c.name, "", 0.0) for c in flow.calls),
            tuple(Edge(e.before, e.after, e.probability) for e in flow.edges),
        ).visits()
    except InvalidArgumentError as error:
        path = f"spec.flow.{error.field}"
        problems.append(entry.at(path).problem(path, str(error)))


def _check_agents(read: list[_Read], problems: list[Problem], whole: bool) -> None:
    names = {(type(e.resource), e.resource.metadata.namespace, e.resource.metadata.name) for e in read}
    for entry in read:
        if not isinstance(entry.resource, Agent):
            continue
        spec, namespace = entry.resource.spec, entry.resource.metadata.namespace
        references = [("modelRef", ModelDeployment, spec.model_ref), ("memoryRef", MemoryStore, spec.memory_ref)]
        calls = spec.flow.calls if spec.flow else ()
        references += [(f"flow.calls[{i}].modelRef", ModelDeployment, c.model_ref) for i, c in enumerate(calls)]
        _check_flow(entry, spec.flow, problems)
        for field, kind, reference in references if whole else ():
            if reference is None or (kind, namespace, reference.name) in names:
                continue
            known = [name for k, ns, name in names if k is kind and ns == namespace]
            path = f"spec.{field}.name"
            said = f"no {kind.__name__} {reference.name!r} in these files{suggestion(reference.name, known)}"
            problems.append(entry.at(path).problem(path, said))
