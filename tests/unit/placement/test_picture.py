from __future__ import annotations

from xml.etree import ElementTree

from katsura.placement.picture import draw
from katsura.placement.planner import plan
from katsura.placement.problem import Effort, Problem


def test_the_picture_shows_every_taken_accelerator_and_a_dot_per_pattern(small: Problem, effort: Effort) -> None:
    made = plan(small, effort)
    root = ElementTree.fromstring(draw(made, small))
    titles = [t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}title")]
    taken = sum(p.accelerators for i in made.instances for p in i.places)
    assert sum(t.endswith(("unified", "attention", "experts")) for t in titles) == taken
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) > 5
