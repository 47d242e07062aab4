"""When a summary may be trusted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.domain.ids import NodeId
from katsura.domain.trees import ROOT, Check, Step, SummaryBody, SummaryStatus, Verdict
from katsura.memory.core.validate import EXTERNAL, FIDELITY, OUTCOME, Evidence, fidelity, judge, outcome
from katsura.testing.trees import step_nodes, summary_of

COVER = step_nodes("Invoice INV-7 is 1,200.50 USD, due 2026-11-21.", Step("paid", role="assistant"))
GOOD = SummaryBody("Paid INV-7: 1200.50 USD on 21 Nov 2026.")


def check_of(body: SummaryBody, previous: SummaryBody | None = None) -> Check:
    return fidelity(Evidence(summary_of(COVER, body), COVER, previous))


def test_a_true_summary_passes() -> None:
    assert check_of(GOOD).verdict is Verdict.PASS


@pytest.mark.parametrize(
    "body",
    [
        replace(GOOD, text="Paid INV-8."),
        replace(GOOD, facts=("1,200.51 USD",)),
        replace(GOOD, decisions=("pay on 2026-11-22",)),
        replace(GOOD, open_obligations=("file receipt R-9",)),
        replace(GOOD, artifacts=("/tmp/other/file.txt",)),
    ],
)
def test_a_planted_wrong_id_amount_or_date_fails_wherever_it_stands(body: SummaryBody) -> None:
    assert check_of(body).verdict is Verdict.FAIL


def test_a_cover_that_is_not_the_one_summarised_fails() -> None:
    summary = replace(summary_of(COVER, GOOD), cover_digest=bytes(32))
    check = fidelity(Evidence(summary, COVER, None))
    assert check.findings == ("the cover is not the one that was summarised",)


def test_an_open_obligation_is_carried_or_closed() -> None:
    previous = SummaryBody("before", open_obligations=("send R-1",))
    assert check_of(GOOD, previous).verdict is Verdict.FAIL
    assert check_of(replace(GOOD, open_obligations=("send R-1",)), previous).verdict is Verdict.PASS
    assert check_of(replace(GOOD, decisions=("closed: send R-1",)), previous).verdict is Verdict.PASS


def test_a_summary_longer_than_its_cover_fails() -> None:
    assert "longer" in check_of(replace(GOOD, text="blah " * 200)).findings[0]


def test_an_empty_summary_fails() -> None:
    assert check_of(SummaryBody("  ")).findings == ("it says nothing",)


@pytest.mark.parametrize(
    ("attributes", "verdict"),
    [
        ({}, Verdict.UNKNOWN),
        ({"criterion.tests": "pass"}, Verdict.PASS),
        ({"criterion.tests": "fail"}, Verdict.FAIL),
        ({"criterion.tests": "maybe"}, Verdict.UNKNOWN),
        ({"criterion.a": "pass", "criterion.b": "fail"}, Verdict.FAIL),
    ],
)
def test_the_outcome_follows_from_stated_criteria_only(attributes: dict[str, str], verdict: Verdict) -> None:
    cover = step_nodes(Step("ran the tests", attributes=attributes))
    assert outcome(Evidence(summary_of(cover, GOOD), cover, None)).verdict is verdict


def test_the_newest_value_of_a_criterion_counts() -> None:
    cover = step_nodes(
        Step("a", attributes={"criterion.tests": "fail"}), Step("b", attributes={"criterion.tests": "pass"})
    )
    assert outcome(Evidence(summary_of(cover, GOOD), cover, None)).verdict is Verdict.PASS


PASSED, FAILED = Check(FIDELITY, Verdict.PASS), Check(FIDELITY, Verdict.FAIL, ("wrong id",))


def test_a_failed_fidelity_is_failed_and_suggests_the_boundary_before() -> None:
    judgement = judge([FAILED], [FIDELITY], NodeId(4))
    assert (judgement.status, judgement.suggested_restore, judgement.note) == (SummaryStatus.FAILED, 4, "wrong id")


def test_no_boundary_and_the_root_are_told_apart() -> None:
    assert judge([FAILED], [FIDELITY], ROOT).suggested_restore == ROOT
    assert judge([FAILED], [FIDELITY]).suggested_restore is None
    assert judge([PASSED], [FIDELITY], ROOT).suggested_restore is None, "what passed suggests nothing"


def test_a_failed_outcome_is_told_but_the_summary_stands() -> None:
    judgement = judge([PASSED, Check(OUTCOME, Verdict.FAIL, ("x",))], [FIDELITY, OUTCOME], NodeId(4))
    assert (judgement.status, judgement.outcome, judgement.suggested_restore) == (SummaryStatus.VALID, Verdict.FAIL, 4)


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        ([], SummaryStatus.PENDING),
        ([PASSED], SummaryStatus.PENDING),
        ([PASSED, Check("judge", Verdict.UNKNOWN)], SummaryStatus.PENDING),
        ([PASSED, Check("judge", Verdict.PASS)], SummaryStatus.VALID),
        ([PASSED, Check("judge", Verdict.FAIL)], SummaryStatus.FAILED),
    ],
)
def test_a_summary_is_pending_until_every_required_validator_has_spoken(
    checks: list[Check], status: SummaryStatus
) -> None:
    assert judge(checks, [FIDELITY, EXTERNAL]).status is status
