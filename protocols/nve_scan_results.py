"""What follows from the runs of an NVE scan: drift and fluctuation of each, the law of dt^2, and a recommended step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpsim.analysis.report import Curve, Figure, Result, Section, Table, Verdict
from dpsim.analysis.statistics import format_value
from dpsim.analysis.timesteps import Conservation, StepLaw, conservation, step_law
from dpsim.engines.output import read_thermo
from dpsim.protocols.context import AnalysisOutput
from dpsim.protocols.nve import UNIT, judge_drift
from dpsim.protocols.nve_scan import NVE, START, NveScan
from dpsim.protocols.sweep import FinishedPoint
from dpsim.protocols.verdicts import longer_text, verdict_of

_FLOOR = 1.5  # times the law: a fluctuation this much above it is said to leave it


@dataclass(frozen=True)
class Judged:
    """A point. run: None where it exploded; why: what decided, in words."""

    precision: str
    timestep_fs: float
    run: Conservation | None
    verdict: Verdict
    why: str

    @property
    def name(self) -> str:
        return f"{self.precision}.{self.timestep_fs:g}fs"


def conclude(scan: NveScan, points: Sequence[FinishedPoint], figures: Path) -> AnalysisOutput:
    """Numbers, the figure and warnings of the points that have finished."""
    judged = [judge(scan, point) for point in points]
    laws: dict[str, StepLaw] = {p: law for p in scan.precisions if (law := step_law(_runs(judged, p))) is not None}
    output = AnalysisOutput([recommend(scan, judged, laws)])
    for precision in scan.precisions:
        output.results.extend(_of_precision(scan, precision, judged, laws.get(precision)))
        output.curves.extend(_curves(precision, _runs(judged, precision)))
    for point in judged:
        output.results.extend(_of_point(point))
    short = [p.name for p in judged if p.run is not None and not p.run.drift.reliable]
    if short:
        output.warnings.append(
            f"Short beside the slow motion of their total energy: {', '.join(short)}. The errors of their drifts may "
            "be underestimated: raise `duration`."
        )
    output.sections.append(_section(scan, judged, laws, output.results[0].value, figures))
    return output


def judge(scan: NveScan, point: FinishedPoint) -> Judged:
    """One run: unstable, or its drift and its fluctuation against the thresholds."""
    precision, dt = str(point.labels["precision"]), float(point.labels["timestep_fs"])
    checked = point.results[f"{NVE}.energy_drift"]
    if checked.value is None:
        return Judged(precision, dt, None, "FAIL", f"Unstable. {checked.explanation}")
    thermo = read_thermo(point.stages[NVE].thermo)
    n_atoms = point.stages[NVE].result.state.n_atoms
    run = conservation(dt, thermo["time_ps"], thermo["total_energy_eV"], thermo["kinetic_energy_eV"], n_atoms)
    drift = judge_drift(run.drift, scan.drift, scan.confidence)
    interval = run.ratio_interval(scan.confidence)
    verdicts: list[Verdict] = [
        drift.verdict,
        verdict_of(interval, (0.0, scan.fluctuation)),
    ]
    why = []
    if verdicts[0] != "PASS":
        why.append(f"Drift: {drift.explanation}")
    if verdicts[1] == "FAIL":
        why.append(f"Fluctuation: {_percent(run)} of that of the kinetic energy.")
    if verdicts[1] == "UNDECIDED":
        why.append(f"Fluctuation: {longer_text(run.ratio, interval, (0.0, scan.fluctuation))}")
    verdict: Verdict = "FAIL" if "FAIL" in verdicts else "UNDECIDED" if "UNDECIDED" in verdicts else "PASS"
    return Judged(precision, dt, run, verdict, " ".join(why))


def recommend(scan: NveScan, judged: Sequence[Judged], laws: dict[str, StepLaw]) -> Result:
    """The longest time step that passes; of precisions that allow the same, the first of the list."""
    accepted = f"drift ≤ {scan.drift:g} {UNIT}, std(E)/std(K) ≤ {100.0 * scan.fluctuation:g} %"
    passing = [p for p in judged if p.verdict == "PASS"]
    if passing:
        best = max(passing, key=lambda p: p.timestep_fs)  # the first of equal ones
        label = f"Recommended time step, {best.precision}"
        text = _reason(scan, best, judged)
        return Result("recommended_timestep", label, best.timestep_fs, None, "fs", accepted, "PASS", text)
    undecided = [p for p in judged if p.verdict == "UNDECIDED"]
    if undecided:
        text = " ".join(f"{p.timestep_fs:g} fs in {p.precision}: {p.why}" for p in undecided[:2])
        return Result("recommended_timestep", "Recommended time step", None, None, "fs", accepted, "UNDECIDED", text)
    text = f"No time step passes. {_what_to_do(scan, judged, laws)}"
    return Result("recommended_timestep", "Recommended time step", None, None, "fs", accepted, "FAIL", text)


def _reason(scan: NveScan, best: Judged, judged: Sequence[Judged]) -> str:
    assert best.run is not None
    drift = best.run.drift
    parts = [
        f"The longest that passes: drift {format_value(drift.drift, drift.error)} {UNIT}, fluctuation "
        f"{_percent(best.run)} of that of the kinetic energy."
    ]
    longer = [p for p in judged if p.precision == best.precision and p.timestep_fs > best.timestep_fs]
    if longer:
        after = min(longer, key=lambda p: p.timestep_fs)
        parts.append(f"The next, {after.timestep_fs:g} fs, {'fails' if after.verdict == 'FAIL' else 'is undecided'}. "
                     f"{after.why}")  # fmt: skip
    else:
        parts.append("No longer one was tried: add some to `timesteps`.")
    shorter = [p for p in judged if p.precision == best.precision and p.timestep_fs < best.timestep_fs]
    if doubtful := [f"{p.timestep_fs:g} fs" for p in shorter if p.verdict != "PASS"]:
        parts.append(f"But {', '.join(doubtful)}, shorter, does not pass: longer runs would tell which is chance.")
    for precision in scan.precisions:
        if precision != best.precision:
            step = _longest(judged, precision)
            parts.append(f"In {precision}: {'none' if step is None else f'{step:g} fs'}.")
    return " ".join(parts)


def _what_to_do(scan: NveScan, judged: Sequence[Judged], laws: dict[str, StepLaw]) -> str:
    """Why even the shortest step fails, in each precision."""
    parts = []
    for precision in dict.fromkeys(p.precision for p in judged):
        shortest = min((p for p in judged if p.precision == precision), key=lambda p: p.timestep_fs)
        where = f"In {precision}, at {shortest.timestep_fs:g} fs:"
        if shortest.run is None:
            parts.append(f"{where} unstable. Try shorter ones, or look at the structure and the model.")
        elif judge_drift(shortest.run.drift, scan.drift, scan.confidence).verdict == "FAIL":
            parts.append(
                f"{where} it drifts. If it does at any step: forces that are not the gradient of the energy, an energy "
                "that jumps, or rounding; an `nve_check` with that step finds which."
            )
        elif (law := laws.get(precision)) is not None:
            step = law.step_of(scan.fluctuation)[0]
            parts.append(f"{where} it fluctuates; by the law of dt² not too much at {step:.2g} fs. Add shorter ones.")
        else:
            parts.append(
                f"{where} it fluctuates, and not like dt²: rounding, or forces that are not the gradient of the energy."
            )
    return " ".join(parts)


def _of_precision(scan: NveScan, precision: str, judged: Sequence[Judged], law: StepLaw | None) -> list[Result]:
    """The longest step that passes, the power of dt, and where it would reach the threshold."""
    if not any(p.precision == precision for p in judged):
        return []
    longest = _longest(judged, precision)
    found = [
        Result(f"{precision}.longest_timestep", f"Longest time step that passes, {precision}", longest, None, "fs")
    ]
    if law is None:
        text = "The fluctuation nowhere grows like dt² between neighbouring time steps. " + _departures(
            judged, precision, None
        )
        name = f"{precision}.fluctuation_exponent"
        return [*found, Result(name, f"Fluctuation exponent, {precision}", None, explanation=text)]
    error = law.fit.error if law.fit.error < float("inf") else None
    text = f"dt² holds from {law.first_fs:g} to {law.last_fs:g} fs. {_departures(judged, precision, law)}".strip()
    step, step_error = law.step_of(scan.fluctuation)
    limit = f"Where the law of dt² gives std(E)/std(K) = {100.0 * scan.fluctuation:g} %."
    return [
        *found,
        Result(f"{precision}.fluctuation_exponent", f"Fluctuation exponent, {precision}", law.fit.exponent, error,
               explanation=text),
        Result(f"{precision}.limiting_timestep", f"Time step at the limit, {precision}", step, step_error, "fs",
               explanation=limit),
    ]  # fmt: skip


def _departures(judged: Sequence[Judged], precision: str, law: StepLaw | None) -> str:
    """Where the law breaks, on either side, and why."""
    mine = [p for p in judged if p.precision == precision]
    parts = []
    runs = [p.run for p in mine if p.run is not None and law is not None]
    for run in sorted(runs, key=lambda r: r.timestep_fs):
        assert law is not None
        excess = law.excess(run.timestep_fs, run.ratio)
        if run.timestep_fs < law.first_fs and excess > _FLOOR:
            cause = f"a floor: rounding{' of float32' if precision == 'float32' else ''}, kinks, or forces that are "
            parts.append(f"At {run.timestep_fs:g} fs {excess:.2g} times the law, {cause}not the gradient.")
        elif run.timestep_fs > law.last_fs and excess > _FLOOR:
            parts.append(f"At {run.timestep_fs:g} fs {excess:.2g} times the law: close to instability, or heating.")
    if unstable := [f"{p.timestep_fs:g}" for p in mine if p.run is None]:
        parts.append(f"Unstable: {', '.join(unstable)} fs.")
    return " ".join(parts)


def _of_point(point: Judged) -> list[Result]:
    """The numbers of a run that did not explode."""
    run = point.run
    if run is None:
        return []
    where = f"{point.timestep_fs:g} fs, {point.precision}"
    return [
        Result(f"{point.name}.energy_drift", f"Energy drift, {where}", run.drift.drift, run.drift.error, UNIT),
        Result(f"{point.name}.energy_fluctuation", f"Energy fluctuation, {where}", run.fluctuation,
               run.fluctuation_error, "meV/atom"),
        Result(f"{point.name}.relative_fluctuation", f"std(E)/std(K), {where}", run.ratio, run.ratio_error),
    ]  # fmt: skip


def _curves(precision: str, runs: Sequence[Conservation]) -> list[Curve]:
    if not runs:
        return []
    steps = [run.timestep_fs for run in runs]
    drifts, ratios = [run.drift for run in runs], [run.ratio for run in runs]
    return [
        Curve(f"{precision}.energy_drift", f"Energy drift, {precision}", "time step (fs)", f"drift ({UNIT})", steps,
              [d.drift for d in drifts], [d.error for d in drifts]),
        Curve(f"{precision}.relative_fluctuation", f"std(E)/std(K), {precision}", "time step (fs)", "std(E)/std(K)",
              steps, ratios, [run.ratio_error for run in runs]),
    ]  # fmt: skip


def _section(
    scan: NveScan, judged: Sequence[Judged], laws: dict[str, StepLaw], recommended: float | None, figures: Path
) -> Section:
    from dpsim.analysis.figures_cost import plot_timesteps

    header = ("precision", "time step (fs)", f"drift ({UNIT})", "fluctuation (meV/atom)", "std(E)/std(K)", "", "why")
    rows: list[Sequence[str | float | int | None]] = []
    for p in judged:
        run = p.run
        numbers = (None, None, None) if run is None else (
            format_value(run.drift.drift, run.drift.error),
            format_value(run.fluctuation, run.fluctuation_error),
            _percent(run),
        )  # fmt: skip
        rows.append((p.precision, p.timestep_fs, *numbers, p.verdict, p.why))
    unstable = sorted({p.timestep_fs for p in judged if p.run is None})
    shown = []
    series: dict[str, Sequence[Conservation]] = {p: runs for p in scan.precisions if (runs := _runs(judged, p))}
    if series:
        path = plot_timesteps(
            figures / "timesteps.png", series, laws, scan.drift, scan.fluctuation, recommended, unstable,
            scan.confidence,
        )  # fmt: skip
        caption = (
            f"Runs of {scan.duration:g} fs from one state; bars: {100.0 * scan.confidence:g} % intervals. "
            "Dashed: thresholds; dotted: dt². A triangle is an upper limit: that drift may be zero."
        )
        shown = [Figure(path, caption)]
    start = "the structure of the file" if scan.temperature is None else f"the last state of `{START}/`"
    return Section("Time steps", f"All runs start from {start}.", figures=shown, table=Table(header, rows))


def _runs(judged: Sequence[Judged], precision: str) -> list[Conservation]:
    return [p.run for p in judged if p.precision == precision and p.run is not None]


def _longest(judged: Sequence[Judged], precision: str) -> float | None:
    return max((p.timestep_fs for p in judged if p.precision == precision and p.verdict == "PASS"), default=None)


def _percent(run: Conservation) -> str:
    return f"{format_value(100.0 * run.ratio, 100.0 * run.ratio_error)} %"
