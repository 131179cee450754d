"""What a phase scan found, as results with verdicts. Their names (B a branch, Q a quantity, [.P] the pressure as in
`.300bar` where there are several):

    B.300K[.P].volume       A^3 of a unit cell; everything else of each temperature and pressure is in phases.csv
    B.300K[.P].space_group  its number at the smallest tolerance at which it is that of the next one too
    transition.B.space_group[.P][.n]   K or bar: where it changes
    transition.B.Q[.P][.n]  K or bar: the middle of the interval; the standard error is a quarter of its width; no value
                            where there is none; n counts further ones
    hysteresis.Q[.P][.n]    how much higher it lies on the rising branch
    reference.k.B           a quantity judged against `references[k]`;   reference.transition.k.B[.P]  likewise
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from dpsim.analysis.phases import PhasePoint
from dpsim.analysis.report import Result, Verdict
from dpsim.analysis.statistics import format_value
from dpsim.analysis.transitions import TransitionSearch, hysteresis
from dpsim.protocols.phase_scan import PhaseScan, ScanStage, TransitionReference, ValueReference

Searches = dict[tuple[str, str, str], TransitionSearch]
"""By branch, suffix of the pressure, and quantity."""

_UNITS = {"a": "A", "b": "A", "c": "A", "alpha": "deg", "beta": "deg", "gamma": "deg", "volume": "A^3"}
_RISING = ("heating", "compression")


@dataclass(frozen=True)
class ScanPoint:
    """One temperature and pressure of one branch, and what was found there."""

    at: ScanStage
    found: PhasePoint

    def x(self, scan: PhaseScan) -> float:
        return self.at.temperature_K if scan.along == "temperature" else self.at.pressure_bar


@dataclass(frozen=True)
class Series:
    """The points of one branch at one value of what is not scanned, in the order of x."""

    branch: str
    suffix: str
    points: Sequence[ScanPoint]


def judge_values(scan: PhaseScan, points: Sequence[ScanPoint]) -> list[Result]:
    """PASS where the whole 95 % interval is within the tolerance, FAIL where all of it is outside."""
    results = []
    for k, reference in enumerate(scan.references, start=1):
        for branch in [reference.branch] if reference.branch else scan.branches:
            at = [p for p in points if p.at.branch == branch and _is_at(scan, reference, p.at)]
            if at:
                results.append(_judge_value(f"reference.{k}.{branch}", reference, at[0]))
            else:
                text = "This temperature and pressure has not finished."
                label = f"{reference.quantity}, {branch}"
                results.append(Result(f"reference.{k}.{branch}", label, None, None, "", None, "UNDECIDED", text))
    return results


def _judge_value(name: str, reference: ValueReference, point: ScanPoint) -> Result:
    estimate = point.found.values[reference.quantity]
    low, high = estimate.interval()
    allowed = reference.tolerance * abs(reference.value)
    nearest = min(max(reference.value, low), high)  # the value of the interval that is nearest
    if max(abs(low - reference.value), abs(high - reference.value)) <= allowed:
        verdict: Verdict = "PASS"
    else:
        verdict = "FAIL" if abs(nearest - reference.value) > allowed else "UNDECIDED"
    if reference.quantity in point.found.late and verdict == "PASS":
        verdict = "UNDECIDED"
    off = (f"{100.0 * (estimate.value / reference.value - 1.0):+.2f} % from" if reference.value else "Against") + (
        f" the reference, {format_value(reference.value)}."
    )
    return Result(
        name, f"{reference.quantity} at {_where(point.at)}", estimate.value, estimate.error,
        _UNITS.get(reference.quantity, ""), f"{format_value(reference.value)} ± {format_value(allowed)}", verdict, off,
    )  # fmt: skip


def judge_transitions(scan: PhaseScan, all_series: Sequence[Series], searches: Searches) -> list[Result]:
    """PASS: within the interval wanted, as finely as it was scanned; UNDECIDED: overlaps it; FAIL: elsewhere, none.

    Where more than a third of the points have not settled, nothing is decided.
    """
    results = []
    for k, reference in enumerate(scan.transitions, start=1):
        for series in all_series:
            if reference.branch in (None, series.branch):
                search = searches.get((series.branch, series.suffix, reference.quantity))
                if search is None:
                    search = TransitionSearch(
                        (), None, f"{reference.quantity} keeps its value, or is not searched for transitions."
                    )
                x = [p.x(scan) for p in series.points]
                name = f"reference.transition.{k}.{series.branch}{series.suffix}"
                result = _judge_transition(name, scan, reference, search, x)
                late = sum(reference.quantity in p.found.late for p in series.points)
                results.append(replace(result, verdict="UNDECIDED") if 3 * late > len(series.points) else result)
    return results


def _judge_transition(
    name: str, scan: PhaseScan, reference: TransitionReference, search: TransitionSearch, x: Sequence[float]
) -> Result:
    low, high = reference.interval
    unit = _unit(scan)
    overlapping = [t for t in search.transitions if t.low <= high and t.high >= low]
    spacing = float(np.median(np.diff(x))) if len(x) > 1 else 0.0
    within = [t for t in overlapping if t.low >= low - spacing and t.high <= high + spacing]
    verdict: Verdict = "PASS" if within else "UNDECIDED" if overlapping or search.p_value is None else "FAIL"
    chosen = next(iter([*within, *overlapping, *search.transitions]), None)
    middle, error = (None, None) if chosen is None else (chosen.middle, 0.25 * (chosen.high - chosen.low))
    label = f"Transition in {reference.quantity}, {name.split('.')[3]}"
    return Result(name, label, middle, error, unit, f"{low:g} to {high:g} {unit}", verdict, search.explanation)


def _is_at(scan: PhaseScan, reference: ValueReference, at: ScanStage) -> bool:
    temperature = scan.temperatures[0] if reference.temperature is None else reference.temperature
    pressure = scan.pressures[0] if reference.pressure is None else reference.pressure
    return at.temperature_K == temperature and at.pressure_bar == pressure


def transition_results(scan: PhaseScan, searches: Searches) -> list[Result]:
    results = []
    for (branch, suffix, quantity), search in searches.items():
        label = f"Transition in {quantity}, {branch}{suffix.replace('.', ' ')}"
        name = f"transition.{branch}.{quantity}{suffix}"
        if not search.transitions:
            results.append(Result(name, label, None, None, _unit(scan), explanation=search.explanation))
        for number, found in enumerate(search.transitions, start=1):
            text = f"95 % interval {found.low:g} to {found.high:g} {_unit(scan)}; "
            text += f"{quantity} changes by {format_value(found.jump, found.jump_error)}. {search.explanation}"
            own = f"{name}.{number}" if number > 1 else name
            results.append(
                Result(own, label, found.middle, 0.25 * (found.high - found.low), _unit(scan), explanation=text)
            )
    return results


def symmetry_results(scan: PhaseScan, all_series: Sequence[Series]) -> list[Result]:
    """Where the space group of the mean structure changes: between two neighbouring points."""
    results = []
    for series in all_series:
        groups = [(p.x(scan), *chosen_symmetry(p.found)[:2]) for p in series.points]
        changes = [(a, b) for a, b in pairwise(groups) if a[1] != b[1]]
        for k, ((low, _, before), (high, _, after)) in enumerate(changes, start=1):
            name = f"transition.{series.branch}.space_group{series.suffix}" + (f".{k}" if k > 1 else "")
            label = f"{before} below, {after} above, {series.branch}{series.suffix.replace('.', ' ')}"
            text = f"Between {low:g} and {high:g} {_unit(scan)}, two neighbouring points."
            results.append(Result(name, label, 0.5 * (low + high), 0.25 * (high - low), _unit(scan), explanation=text))
    return results


def hysteresis_results(scan: PhaseScan, searches: Searches) -> list[Result]:
    if len(scan.branches) < 2:
        return []
    rising, falling = sorted(scan.branches, key=lambda b: b not in _RISING)
    results = []
    for suffix, quantity in dict.fromkeys((s, q) for _, s, q in searches):
        there, back = (searches.get((branch, suffix, quantity)) for branch in (rising, falling))
        if there is None or back is None:
            continue
        name, label = f"hysteresis.{quantity}{suffix}", f"Hysteresis of {quantity}"
        widths = hysteresis(there.transitions, back.transitions)
        for number, (width, low, high) in enumerate(widths, start=1):
            text = f"Between {low:g} and {high:g} {_unit(scan)}: "
            text += "seen." if low > 0.0 else "not seen, the intervals of both branches overlap."
            own = f"{name}.{number}" if number > 1 else name
            results.append(Result(own, label, width, 0.25 * (high - low), _unit(scan), explanation=text))
        if len(there.transitions) != len(back.transitions):
            text = f"{len(there.transitions)} transitions on {rising}, {len(back.transitions)} on {falling}."
            results.append(Result(name, label, None, None, _unit(scan), explanation=text))
    return results


def point_results(scan: PhaseScan, points: Sequence[ScanPoint]) -> list[Result]:
    results = []
    for point in points:
        at, pressure = point.at, f".{point.at.pressure_bar:g}bar" if len(scan.pressures) > 1 else ""
        prefix = f"{at.branch}.{at.temperature_K:g}K{pressure}"
        volume = point.found.values["volume"]
        results.append(Result(f"{prefix}.volume", f"Volume, {_where(at)}", volume.value, volume.error, "A^3"))
        number, symbol, text = chosen_symmetry(point.found)
        results.append(
            Result(f"{prefix}.space_group", f"Space group, {_where(at)}: {symbol}", number, explanation=text)
        )
    return results


def chosen_symmetry(found: PhasePoint) -> tuple[int, str, str]:
    """(number, symbol, why): that of the smallest tolerance at which, and at the next, it is the same."""
    groups = found.symmetries
    text = ", ".join(f"{symbol} at {tolerance:g}" for tolerance, _, symbol in groups) + " A."
    for (_, number, symbol), (_, following, _) in pairwise(groups):
        if number == following and number > 1:
            return number, symbol, text
    return groups[-1][1], groups[-1][2], text


def _where(at: ScanStage) -> str:
    pressure = "" if at.pressure_bar == 1.0 else f", {at.pressure_bar:g} bar"
    return f"{at.temperature_K:g} K{pressure} ({at.branch})"


def _unit(scan: PhaseScan) -> str:
    return "K" if scan.along == "temperature" else "bar"
