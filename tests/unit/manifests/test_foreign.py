from __future__ import annotations

from typing import Any

import pytest

from katsura.manifests.document import parse
from katsura.manifests.foreign import Foreign, plain
from katsura.manifests.rules import Problem

TEXT = """\
kind: Pod
metadata: {name: p}
spec:
  containers:
    - name: a
    - 7
  nodeName: [x]
"""


def seen(text: str = TEXT) -> Foreign:
    problems: list[Problem] = []
    (tree,) = parse("f.yaml", text, problems)
    assert not problems
    return Foreign("f.yaml", plain(tree), problems, tree)


def test_what_is_missing_is_empty_and_no_problem() -> None:
    pod = seen()
    assert pod.mapping("status", "allocatable") == {}
    assert pod.count("spec", "initContainers") == 0
    assert pod.mapping("spec", "containers", 9) == {}
    assert pod.problems == []


def test_what_has_the_wrong_shape_is_said_once_with_its_line() -> None:
    pod = seen()
    for _ in range(2):
        assert pod.mapping("spec", "containers", 1) == {}
        assert pod.mapping("spec", "nodeName") == {}
        assert pod.count("metadata") == 0
    assert [str(p) for p in pod.problems] == [
        "f.yaml:6: Pod p: spec.containers[1]: expected fields, got 7",
        "f.yaml:7: Pod p: spec.nodeName: expected fields, got a list",
        "f.yaml:2: Pod p: metadata: expected a list, got fields",
    ]


@pytest.mark.parametrize("data", [None, 3, "x", [], {"metadata": 4}])
def test_anything_at_all_can_be_looked_at(data: Any) -> None:
    thing = Foreign("f.json", data, [])
    thing.mapping("metadata", "labels")
    thing.count("spec", "taints")
    thing.wrong(("spec", "x"), "is wrong")
    assert thing.problems[-1].line == 1
