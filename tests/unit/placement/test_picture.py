from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree

from katsura.placement.picture import draw
from katsura.placement.planner import plan
from katsura.placement.problem import Effort, Problem
from katsura.placement.whatif import changed


def test_the_picture_shows_every_taken_accelerator_and_a_dot_per_pattern(small: Problem, effort: Effort) -> None:
    made = plan(small, effort)
    root = ElementTree.fromstring(draw(made, small))
    titles = [t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}title")]
    texts = [t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}text")]
    drawn = sum(t.endswith(("unified", "attention", "experts")) for t in titles)
    more = [int(found[1]) for t in texts if (found := re.search(r" and (\d+) like it$", t))]
    taken = Counter(p.node for i in made.instances for p in i.places for _ in range(p.accelerators))
    assert drawn <= sum(taken.values()) <= drawn + 8 * sum(more)
    assert sum(any(t.startswith(node) for node in taken) for t in texts) + sum(more) == len(taken)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) > 5


def test_the_picture_of_what_does_not_fit_says_so(small: Problem, effort: Effort) -> None:
    assert "served in part" not in draw(plan(small, effort), small)
    crowded = changed(small, "demand:big=x99")
    assert "gap 0.00%; served in part: big<" in draw(plan(crowded, effort, explain=False), crowded)
