"""Whole files."""

from __future__ import annotations

import pytest

from katsura.manifests.bundle import Bundle, read_manifests
from katsura.manifests.rules import ManifestError

HEAD = "apiVersion: katsura.dev/v1alpha1\n"


def model(name: str = "m", aliases: str = "[]") -> str:
    return (
        f"{HEAD}kind: ModelDeployment\nmetadata: {{name: {name}}}\n"
        f"spec:\n  model:\n    source: pypi://x\n    aliases: {aliases}\n"
    )


def store(name: str = "s") -> str:
    return f"{HEAD}kind: MemoryStore\nmetadata: {{name: {name}}}\nspec: {{}}\n"


def agent(model_ref: str = "m", memory_ref: str = "s") -> str:
    return (
        f"{HEAD}kind: Agent\nmetadata: {{name: a}}\nspec:\n  modelRef: {{name: {model_ref}}}\n"
        f"  memoryRef: {{name: {memory_ref}}}\n"
    )


def problems(*texts: str) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read_manifests([(f"{i}.yaml", text) for i, text in enumerate(texts)])
    return [str(problem) for problem in caught.value.problems]


def test_files_and_documents_form_one_bundle() -> None:
    bundle = read_manifests([("a", model() + "---\n" + store()), ("b", agent())])
    assert [r.metadata.name for r in (*bundle.deployments, *bundle.memory_stores, *bundle.agents)] == ["m", "s", "a"]
    assert bundle.deployments[0].model_names == ("m",)


def test_no_documents_are_an_empty_bundle() -> None:
    assert read_manifests([("a", "# nothing\n")]) == Bundle((), (), ())


def test_what_kubectl_prints_can_be_used_as_it_is() -> None:
    text = store().replace("{name: s}", "{name: s, uid: '1', resourceVersion: '5', creationTimestamp: null}")
    assert read_manifests([("a", text + "status: {observedGeneration: 1}\n")]).memory_stores[0].metadata.name == "s"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- 1", "0.yaml:1: a document must be a resource with apiVersion, kind, metadata and spec"),
        ("kind: Agent", "0.yaml:1: apiVersion: expected katsura.dev/v1alpha1, got None"),
        ("apiVersion: v1\nkind: Pod", "0.yaml:1: apiVersion: expected katsura.dev/v1alpha1, got 'v1'"),
        (HEAD + "kind: Agnet", "0.yaml:2: kind: no kind 'Agnet' in group katsura.dev; did you mean \"Agent\"?"),
        (
            HEAD,
            "0.yaml:1: kind: no kind '' in group katsura.dev; known here: AcceleratorProfile, Agent, MemoryStore, "
            "ModelDeployment",
        ),
        (
            store().replace("spec: {}", "sepc: {}"),
            '0.yaml:4: sepc: no such field; did you mean "spec"?',
        ),
    ],
)
def test_a_document_that_is_no_resource_is_refused(text: str, problem: str) -> None:
    assert problems(text)[-1] == problem or problem in problems(text)


def test_a_name_is_given_once_per_kind() -> None:
    assert problems(store(), store()) == ["1.yaml:3: metadata.name: MemoryStore 's' exists already (0.yaml:3)"]
    read_manifests([("a", store("x") + "---\n" + model("x"))])


def test_a_model_name_leads_to_one_deployment() -> None:
    assert problems(model("m", "[chat]"), model("n", "[chat]")) == [
        "1.yaml:7: spec.model.aliases: model name 'chat' is taken (0.yaml:7); choose another"
    ]
    assert problems(model("m"), model("n", "[m]"))[0].endswith("'m' is taken (0.yaml:3); choose another")


def test_a_reference_must_lead_somewhere() -> None:
    assert problems(model("main"), store(), agent("mian")) == [
        "2.yaml:5: spec.modelRef.name: no ModelDeployment 'mian' in these files; did you mean \"main\"?"
    ]


def test_problems_of_all_files_are_listed_together() -> None:
    assert [p.partition(": ")[0] for p in problems("a: [", store().replace("{}", "{x: 1}"), "kind: 1")] == [
        "0.yaml:1",
        "1.yaml:4",
        "2.yaml:1",
    ]


def test_what_an_api_server_writes_into_metadata_is_read_past() -> None:
    written = "uid: u, generateName: a-, deletionTimestamp: now, deletionGracePeriodSeconds: 0, selfLink: /a"
    text = store().replace("{name: s}", f"{{name: s, {written}}}")
    assert read_manifests([("f.yaml", text)]).memory_stores[0].metadata.name == "s"
