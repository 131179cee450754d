"""PASS, FAIL or UNDECIDED: what an interval says of a limit.

A difference that is "not significant" proves nothing: with few data nothing is significant. So what has to be shown is
likeness: the whole confidence interval lies within the limits (PASS). The whole interval outside shows the contrary
(FAIL). In between the statistics do not suffice, and it takes more of them, not a verdict (UNDECIDED).

Source: equivalence testing by interval inclusion, W. J. Westlake, Biometrics 32, 741 (1976).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpsim.analysis.report import Verdict
from dpsim.analysis.statistics import Estimate, student_t

_DOUBT = 5.0  # errors from a few correlation times have been too small by up to four times (docs/acceptance.md)
_SOON = 0.1  # where value and limit are nearer than this part of the interval, no amount of data is worth naming


@dataclass(frozen=True)
class Judgement:
    """The verdict and why, in a sentence; `more`: how many times the data would decide, 1 where they do."""

    verdict: Verdict
    explanation: str
    more: float = 1.0


def judge(
    value: float, interval: tuple[float, float], limits: tuple[float, float], confidence: float, reliable: bool = True
) -> Judgement:
    """Whether a quantity lies within limits.

    Args:
        value: best estimate; interval: its confidence interval; limits: what is acceptable, both inclusive.
        reliable: whether the interval can be trusted; if not, one that is five times as wide must be within the limits.
    """
    low, high = interval
    text = f"{100 * confidence:g} % interval {_number(low)} ... {_number(high)}"
    if not (math.isfinite(low) and math.isfinite(high)):
        return Judgement("UNDECIDED", "There are too few data for an error bar.", math.inf)
    if low > limits[1] or high < limits[0]:
        return Judgement("FAIL", f"The whole {text} is beyond the threshold.")
    if limits[0] <= low and high <= limits[1]:
        if reliable:
            return Judgement("PASS", f"The whole {text} is within the threshold.")
        if limits[0] <= value - _DOUBT * (value - low) and value + _DOUBT * (high - value) <= limits[1]:
            why = f"The data are few, or correlated, but {_DOUBT:g} times the {text} is within the threshold."
            return Judgement("PASS", why)
        why = f"The {text} is within the threshold, but the data are too few, or too correlated, to trust it"
        return Judgement("UNDECIDED", why + ": simulate longer.", 2.0)
    near = limits[1] if abs(value - limits[1]) < abs(value - limits[0]) or not math.isfinite(limits[0]) else limits[0]
    half = abs((high if near == limits[1] else low) - value) if limits[0] <= value <= limits[1] else 0.5 * (high - low)
    room = abs(near - value)
    more = (half / room) ** 2 if room > _SOON * half else math.inf
    advice = (
        f"about {max(1.2, more):.2g} times the data would decide" if math.isfinite(more) else "the value is too near it"
    )
    return Judgement("UNDECIDED", f"The {text} contains the threshold: {advice}.", more)


def relative_difference(a: Estimate, b: Estimate, confidence: float) -> tuple[float, float, tuple[float, float]]:
    """ln(a/b) of two independent positive estimates: value, standard error, interval.

    error^2 = (error_a/a)^2 + (error_b/b)^2; Student's t with Welch's degrees of freedom. For small differences it is
    (a - b)/b; exp() of it is the ratio.
    """
    parts = [(x.error / x.value) ** 2 for x in (a, b)]
    variance = sum(parts)
    terms = [v**2 / x.degrees_of_freedom for v, x in zip(parts, (a, b), strict=True)]
    freedom = max(1, int(variance**2 / sum(terms))) if sum(terms) > 0.0 else 1_000_000
    value, error = math.log(a.value / b.value), math.sqrt(variance)
    half = student_t(confidence, freedom) * error
    return value, error, (value - half, value + half)


def _number(value: float) -> str:
    return f"{value:.3g}"
