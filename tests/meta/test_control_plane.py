"""What is generated for the cluster, and what is said about it, follow the code."""

from __future__ import annotations

from pathlib import Path

from katsura.manifests.conditions import MEANING, ConditionType, EventReason
from katsura.manifests.crds import files

ROOT = Path(__file__).resolve().parents[2]


def test_the_charts_definitions_are_what_the_kinds_say() -> None:
    folder = ROOT / "charts" / "katsura" / "crds"
    assert {path.name: path.read_text() for path in folder.glob("*.yaml")} == files(), "run `katsura crds --out`"


def test_every_reason_is_documented_with_its_meaning() -> None:
    page = (ROOT / "docs" / "control-plane.md").read_text()
    missing = [why.value for why, meaning in MEANING.items() if f"| `{why.value}` | {meaning} |" not in page]
    missing += [word.value for word in (*ConditionType, *EventReason) if f"`{word.value}`" not in page]
    assert missing == []
