"""Verdicts that know the error: PASS and FAIL only where the whole confidence interval agrees."""

from __future__ import annotations

import math

from dpsim.analysis.curves import CurveComparison, distance_without_noise
from dpsim.analysis.equivalence import judge
from dpsim.analysis.rdf_shells import Value
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
    """A curve against its reference, by its distance from it without noise (curves.py)."""
    text = (
        f"Differs from the reference by {comparison.rms_in_errors:.2g} error bars rms, most at "
        f"{comparison.largest_x:.4g}. Errors of the reference: {comparison.reference_error}."
    )
    measured, noise, n_blocks = comparison.difference, comparison.noise, comparison.n_blocks
    return judge_distance(name, label, measured, noise, n_blocks, accepted, reliable, text)


def judge_distance(
    name: str, label: str, measured: Value, noise: float, n_blocks: int, accepted: float, reliable: bool, text: str
) -> Result:
    """sum |y - y_ref| / sum |y_ref|, judged by the distance without noise.

    Args: noise: what error bars alone give; reliable: whether these can be trusted (dpsim/analysis/equivalence.py).
    """
    distance, low, high = distance_without_noise(measured, noise, n_blocks)
    found = judge(distance, (low, high), (-math.inf, accepted), 0.95, reliable)
    text += (
        f" Error bars alone give {format_value(noise, digits=2)}; without them the difference is "
        f"{format_value(distance, digits=2)}. {found.explanation}"
    )
    return Result(name, label, measured.value, measured.error, "", accepted, found.verdict, text)
