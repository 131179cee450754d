"""Verdicts that know the error: PASS and FAIL only where the whole confidence interval agrees."""

from __future__ import annotations

import math

from dpsim.analysis.curves import CurveComparison
from dpsim.analysis.report import Result, Verdict
from dpsim.analysis.statistics import format_value

Interval = tuple[float, float]


def verdict_of(interval: Interval, accepted: Interval) -> Verdict:
    """PASS where the interval lies within the accepted one, FAIL where it lies outside, else UNDECIDED."""
    (low, high), (least, most) = interval, accepted
    if least <= low and high <= most:
        return "PASS"
    return "FAIL" if high < least or low > most else "UNDECIDED"


def longer_text(value: float, interval: Interval, accepted: Interval) -> str:
    """How much longer a run would decide: errors shrink as 1/sqrt(time)."""
    half = 0.5 * (interval[1] - interval[0])
    distance = min(abs(value - limit) for limit in accepted)
    if not (math.isfinite(half) and distance > 0.0) or (half / distance) ** 2 > 100.0:
        return "The error does not allow to tell. Run much longer."
    return f"The error does not allow to tell: about {max(1.2, (half / distance) ** 2):.1f} times the run would."


def judge_curve(name: str, label: str, comparison: CurveComparison, accepted: float, reliable: bool) -> Result:
    """A curve against its reference: like `protocols/rdf.py::judge_rdf`, by size.

    PASS: the difference, less what error bars alone give, is accepted. Differences within error bars never fail;
    UNDECIDED where these hide more than is accepted, or the run is too short to know them.
    """
    within = comparison.rms_in_errors <= 2.0 * comparison.rms_expected
    excess = max(0.0, comparison.difference.value - comparison.noise)
    verdict: Verdict = "PASS" if excess <= accepted else "UNDECIDED" if within else "FAIL"
    if verdict == "PASS" and (comparison.noise > 2.0 * accepted or not reliable):
        verdict = "UNDECIDED"
    text = (
        f"Differs from the reference by {comparison.rms_in_errors:.2g} error bars rms, most at "
        f"{comparison.largest_x:.4g}. Error bars alone give {format_value(comparison.noise, digits=2)}. "
        f"Errors of the reference: {comparison.reference_error}."
    )
    if verdict == "UNDECIDED":
        text += " The errors are too large, or not known well enough, to tell. Run longer."
    value, error = comparison.difference
    return Result(name, label, value, error, "", accepted, verdict, text)
