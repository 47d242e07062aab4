from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree

from katsura.placement.picture import _undominated, draw
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


def test_the_frontier_is_what_none_beats_in_both_and_the_limit_is_marked(small: Problem, effort: Effort) -> None:
    assert _undominated([(3, 5), (1, 9), (2, 9), (4, 5), (5, 1), (3, 4)]) == [(1, 9), (3, 4), (5, 1)]
    loose = changed(small, "itl:chat=900")
    assert "900 ms allowed" not in draw(plan(loose, effort, explain=False), loose)  # it lies beyond what is drawn
    tight = changed(small, "itl:chat=50")
    drawn = draw(plan(tight, effort, explain=False), tight)
    assert "50 ms allowed" in drawn
    paths = [p.get("d", "") for p in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}path")]
    assert any(path.count(" H") >= 2 for path in paths)


def test_the_picture_of_what_does_not_fit_says_so(small: Problem, effort: Effort) -> None:
    assert "served in part" not in draw(plan(small, effort), small)
    crowded = changed(small, "demand:big=x99")
    assert "gap 0.00%; served in part: big<" in draw(plan(crowded, effort, explain=False), crowded)
