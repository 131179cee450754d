"""PASS, FAIL and UNDECIDED from intervals and limits."""

from __future__ import annotations

import math

import pytest

from dpsim.analysis.equivalence import judge, relative_difference
from dpsim.analysis.statistics import Estimate


@pytest.mark.parametrize(
    ("value", "interval", "verdict"),
    [
        (0.0, (-0.5, 0.5), "PASS"),
        (0.9, (0.8, 1.0), "PASS"),
        (2.0, (1.1, 3.0), "FAIL"),
        (-2.0, (-3.0, -1.1), "FAIL"),
        (0.5, (-0.5, 1.5), "UNDECIDED"),
        (1.5, (0.5, 2.5), "UNDECIDED"),
        (0.0, (-5.0, 5.0), "UNDECIDED"),
        (0.0, (-math.inf, math.inf), "UNDECIDED"),
    ],
)
def test_verdicts(value: float, interval: tuple[float, float], verdict: str) -> None:
    judged = judge(value, interval, (-1.0, 1.0), 0.95)
    assert judged.verdict == verdict
    assert (judged.more == 1.0) == (verdict != "UNDECIDED")


def test_how_much_more_would_decide() -> None:
    """Half the interval's width is twice the room, so it takes four times the data."""
    judged = judge(0.5, (-0.5, 1.5), (-1.0, 1.0), 0.95)
    assert judged.more == pytest.approx(4.0)
    assert "4 times the data" in judged.explanation
    assert "too near" in judge(1.01, (0.0, 2.0), (-1.0, 1.0), 0.95).explanation


def test_what_cannot_be_trusted_does_not_pass_but_may_fail() -> None:
    assert judge(0.0, (-0.3, 0.3), (-1.0, 1.0), 0.95, reliable=False).verdict == "UNDECIDED"
    assert judge(0.0, (-0.1, 0.3), (-math.inf, 1.0), 0.95, reliable=False).verdict == "UNDECIDED"
    assert judge(0.0, (-0.1, 0.1), (-1.0, 1.0), 0.95, reliable=False).verdict == "PASS"  # far within
    assert judge(3.0, (2.9, 3.1), (-1.0, 1.0), 0.95, reliable=False).verdict == "FAIL"


def test_relative_difference() -> None:
    a, b = Estimate(1.02, 0.02, 50, 0.5, 10), Estimate(1.0, 0.02, 50, 0.5, 10)
    value, error, (low, high) = relative_difference(a, b, 0.95)
    assert value == pytest.approx(0.0198, rel=1e-2)
    assert error == pytest.approx(0.028, rel=0.02)
    assert high - value == pytest.approx(2.1 * error, rel=0.01)  # t of about 20 degrees of freedom
    assert low == pytest.approx(2 * value - high)
