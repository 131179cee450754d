"""The NVE check: does the run conserve its total energy, and if not, is time step, precision or model at fault?

Velocity Verlet conserves a shadow energy that differs from E by O(dt^2): a sound run fluctuates, in proportion to
dt^2, and does not drift. A drift is judged by the whole confidence interval of its slope. What causes one is found by
re-running from the same start:

    time step   half the time step removes most of the drift
    precision   float64 removes most of it
    model       neither does: the forces are not the gradient of the energy, or the energy has jumps. Independent of
                any integrator, dE/dt = (U(b) - U(a) + int_a^b F.dx)/dt along straight pieces of the path then
                differs from zero
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dpsim.analysis.dynamics import DriftResult, ScalingResult, energy_drift, fluctuation_scaling
from dpsim.analysis.report import Figure, Result, Section, Table, Verdict
from dpsim.analysis.statistics import Estimate, format_value, mean_with_error
from dpsim.engines.base import StageSettings, State
from dpsim.engines.output import START, THERMO, load_checkpoint, read_thermo
from dpsim.errors import ConfigError, DataError, SimulationError
from dpsim.protocols.analyses import NveCheck
from dpsim.protocols.context import AnalysisOutput, RunContext, StageRecord, Stopped
from dpsim.protocols.verdicts import verdict_of
from dpsim.trajectory import count_frames, read_frame
from dpsim.units import ASE_TIME_FS

_CURED = 0.5  # a re-run removes the drift if it leaves less than this part of it (dt^2 leaves a quarter)
_SIGMAS = 2.0  # ... and the difference exceeds this many standard errors
_PATH_PIECES = 40  # pieces of the path on which work is compared with energy
_GAUSS_POINTS = 4  # exact for polynomials of degree 7 along a piece
_MIN_STEPS = 40  # of the largest time step, in the runs whose fluctuations are compared

UNIT = "meV/atom/ps"


@dataclass(frozen=True)
class DriftVerdict:
    """The verdict on a drift, and why."""

    verdict: Verdict
    explanation: str


@dataclass(frozen=True)
class Rerun:
    """A re-run from the start of the stage: `drift` is None where it exploded or cannot be done, as `note` says."""

    label: str
    drift: DriftResult | None
    note: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What is at fault, and the evidence. `fault`: "time step", "precision", "model" or "unknown"."""

    fault: str
    explanation: str
    baseline: DriftResult | None
    reruns: tuple[Rerun, ...]
    power: Estimate | None


def run_nve_check(check: NveCheck, context: RunContext) -> AnalysisOutput:
    """Judge the nve stage, show how its fluctuation scales with the time step, and diagnose what does not pass."""
    stage = _stage(check, context)
    if stage.error is not None:
        return _judge_explosion(check, context, stage, stage.error)
    thermo = read_thermo(stage.thermo)
    n_atoms = stage.result.state.n_atoms
    drift = energy_drift(thermo["time_ps"], thermo["total_energy_eV"], n_atoms)
    judged = judge_drift(drift, check.threshold, check.confidence)
    results = [
        Result(
            f"{stage.name}.energy_drift", "Energy drift", drift.drift, drift.error, UNIT, check.threshold,
            judged.verdict, judged.explanation,
        ),
        Result(
            f"{stage.name}.energy_fluctuation", "Energy fluctuation", drift.fluctuation, None, "meV/atom",
            explanation="Standard deviation of the total energy about the fitted line.",
        ),
    ]  # fmt: skip
    warnings = [] if drift.reliable else [
        f"The NVE stage ({drift.duration_ps:g} ps) is short compared with the slow motion of its total energy: "
        "the error of the drift may be underestimated."
    ]  # fmt: skip
    sections = [_drift_section(stage, thermo, drift, context)]
    scan = _scan(check, context, stage)
    if scan is not None:
        results.append(scan[0])
        sections.append(scan[1])
    if judged.verdict != "PASS" and check.diagnosis:
        diagnosis = diagnose(check, context, stage, thermo)
        results.append(_fault_result(stage, diagnosis, judged.verdict))
        sections.append(_diagnosis_section(diagnosis, 1e3 * drift.duration_ps))
    return AnalysisOutput(results, sections, warnings)


def judge_drift(drift: DriftResult, threshold: float, confidence: float = 0.95) -> DriftVerdict:
    """PASS if the confidence interval of the drift lies within -threshold ... threshold, FAIL if it lies outside."""
    low, high = drift.interval(confidence)
    verdict = verdict_of((low, high), (-threshold, threshold))
    interval = f"{100 * confidence:g} % interval {low:.2g} ... {high:.2g} {UNIT}"
    text = f"The whole {interval} is {'within' if verdict == 'PASS' else 'beyond'} the threshold."
    if verdict == "UNDECIDED":
        text = f"The {interval} contains the threshold: the run is too short to tell."
        room = abs(threshold - abs(drift.drift))
        if room > 0.1 * threshold:  # the error of a slope falls with duration^(3/2)
            text += f" About {drift.duration_ps * (0.5 * (high - low) / room) ** (2 / 3):.2g} ps would decide."
    return DriftVerdict(verdict, text)


def diagnose(check: NveCheck, context: RunContext, stage: StageRecord, thermo: dict[str, Any]) -> Diagnosis:
    """Re-run the beginning of the stage with half the time step and in float64; compare work with energy."""
    settings = stage.settings
    n_atoms = stage.result.state.n_atoms
    duration = min(check.diagnosis_duration, settings.n_steps * settings.timestep_fs)
    window = thermo["time_ps"] <= 1e-3 * duration + 1e-9
    baseline = energy_drift(thermo["time_ps"][window], thermo["total_energy_eV"][window], n_atoms)
    reruns = [_half_time_step(context, stage, duration)]
    precise = _float64_calculator(context)
    if precise is not None:
        reruns.append(_rerun(context, stage, "float64", settings.timestep_fs, duration, precise))
    power = _path_power(context, stage, precise if precise is not None else context.calculator)
    fault, explanation = _attribute(baseline, reruns, power)
    return Diagnosis(fault, explanation, baseline, tuple(reruns), power)


def _judge_explosion(check: NveCheck, context: RunContext, stage: StageRecord, error: str) -> AnalysisOutput:
    """A stage that failed (NaN, exploding temperature): FAIL, and whichever re-run survives tells the cause."""
    failed = Result(
        f"{stage.name}.energy_drift", "Energy drift", None, None, UNIT, check.threshold, "FAIL", f"The {error}"
    )
    if not check.diagnosis:
        return AnalysisOutput([failed])
    duration = min(check.diagnosis_duration, stage.settings.n_steps * stage.settings.timestep_fs)
    reruns = [_half_time_step(context, stage, duration)]
    precise = _float64_calculator(context)
    if precise is not None:
        reruns.append(_rerun(context, stage, "float64", stage.settings.timestep_fs, duration, precise))
    fault, why = "model", "Every re-run fails too: the model does not know such structures, or the start is unsound."
    for rerun in reruns:
        if rerun.drift is not None:
            fault = "precision" if rerun.label == "float64" else "time step"
            change = "in float64" if fault == "precision" else f"with half the time step ({rerun.label})"
            why = f"The re-run {change} survives."
            break
    diagnosis = Diagnosis(fault, why, None, tuple(reruns), None)
    return AnalysisOutput([failed, _fault_result(stage, diagnosis, "FAIL")], [_diagnosis_section(diagnosis, duration)])


def path_power(
    calculator: Any, states: list[tuple[State, np.ndarray]], timestep_fs: float, atoms_of: Callable[[State], Any]
) -> np.ndarray:
    """dE/dt of exact dynamics, from energy and work alone, meV/atom/ps, one number per state.

    dE/dt = (U(x + v dt) - U(x) + int F.dx) / dt along the straight piece x ... x + v dt, by Gauss-Legendre quadrature.
    Zero for forces that are the gradient of the energy.

    Args:
        calculator: an ASE calculator.
        states: (state, velocities (n_atoms, 3) A per fs) to start pieces from.
        timestep_fs: length of a piece in time, fs.
        atoms_of: State -> Atoms.
    """
    points, weights = np.polynomial.legendre.leggauss(_GAUSS_POINTS)
    rates = []
    for state, velocities in states:
        displacement = velocities * timestep_fs
        atoms = atoms_of(state)
        atoms.calc = calculator
        before = float(atoms.get_potential_energy())
        atoms.positions = state.positions + displacement
        after = float(atoms.get_potential_energy())
        work = 0.0
        for point, weight in zip(0.5 * (points + 1.0), 0.5 * weights, strict=True):
            atoms.positions = state.positions + point * displacement
            work += weight * float(np.sum(atoms.get_forces() * displacement))
        rates.append((after - before + work) / (timestep_fs * 1e-3) * 1e3 / state.n_atoms)
    return np.array(rates)


def _stage(check: NveCheck, context: RunContext) -> StageRecord:
    """The stage to judge: named, or the last nve stage."""
    return context.stages[check.stage or [n for n, s in context.stages.items() if s.settings.kind == "nve"][-1]]


def _rerun(
    context: RunContext, stage: StageRecord, label: str, timestep_fs: float, duration_fs: float, calculator: Any
) -> Rerun:
    """NVE from the stage's first state, in its own directory; continued after a kill like any stage."""
    start = load_checkpoint(stage.directory / START)
    if start is None:
        raise DataError(f"`{stage.directory / START}` is missing; expected the first state of the stage. Run it anew.")
    n_steps = max(1, round(duration_fs / timestep_fs))
    settings = StageSettings(
        kind="nve", n_steps=n_steps, timestep_fs=timestep_fs, trajectory_every=n_steps, thermo_every=1
    )
    name = f"{stage.name} {label}"
    directory = context.directory / "reruns" / name.replace(" ", "_")
    control = replace(context.control, name=name)
    try:
        result = context.engine.run_stage(start.state, calculator, settings, directory, control)
    except SimulationError as error:
        return Rerun(label, None, str(error))
    if not result.finished:
        raise Stopped
    thermo = read_thermo(directory / THERMO)
    drift = energy_drift(thermo["time_ps"], thermo["total_energy_eV"], result.state.n_atoms)
    return Rerun(label, drift)


def _half_time_step(context: RunContext, stage: StageRecord, duration_fs: float) -> Rerun:
    half = 0.5 * stage.settings.timestep_fs
    return _rerun(context, stage, f"{half:g} fs", half, duration_fs, context.calculator)


def _float64_calculator(context: RunContext) -> Any:
    """The same model in float64; None where it already is, or cannot be had."""
    if context.protocol.precision == "float64":
        return None
    try:
        return context.calculator_for(context.protocol, "float64")
    except ConfigError:
        return None


def _path_power(context: RunContext, stage: StageRecord, calculator: Any) -> Estimate | None:
    """Mean of `path_power` over frames of the stage; None with too few frames."""
    from dpsim.engines.ase_engine import atoms_from_state

    n_frames = count_frames(stage.trajectory)
    if n_frames < 4:
        return None
    reference = stage.result.state
    states = []
    for index in np.unique(np.linspace(0, n_frames - 1, _PATH_PIECES).round().astype(int)):
        frame = read_frame(stage.trajectory, int(index))
        if frame.velocities is None:
            return None
        cell = frame.cell if frame.cell.any() else reference.cell
        state = replace(reference, positions=frame.positions, cell=cell)
        states.append((state, frame.velocities / ASE_TIME_FS))
    return mean_with_error(path_power(calculator, states, stage.settings.timestep_fs, atoms_from_state))


def _attribute(baseline: DriftResult, reruns: list[Rerun], power: Estimate | None) -> tuple[str, str]:
    """The fault and why, from the re-runs: whichever leaves least of the drift, if it leaves little."""
    parts = [(rerun, _remaining(baseline, rerun.drift)) for rerun in reruns if rerun.drift is not None]
    cures = [(rerun, part) for rerun, part in parts if part is not None]
    evidence = _power_evidence(baseline, power)
    if cures:
        best, part = min(cures, key=lambda item: item[1])
        left = f"leaves {100 * part:.0f} % of the drift"
        if best.label == "float64":
            return "precision", f"Running in float64 {left}. Set `precision: float64`, or accept a larger threshold."
        return "time step", f"Half the time step ({best.label}) {left}. Reduce `timestep`."
    if abs(baseline.drift) < _SIGMAS * baseline.error:
        return "unknown", "The beginning of the stage is too short to resolve the drift. Raise `diagnosis_duration`."
    text = "Neither half the time step nor float64 removes the drift, so the model's forces are at fault"
    if len(reruns) < 2:
        text = "Half the time step does not remove the drift, so the model's forces are at fault"
    return "model", f"{text}: they are not the gradient of its energy, or the energy has jumps. {evidence}"


def _remaining(baseline: DriftResult, drift: DriftResult) -> float | None:
    """|drift| / |baseline| where significantly smaller and below _CURED, else None."""
    difference = abs(baseline.drift) - abs(drift.drift)
    if difference < _SIGMAS * math.hypot(baseline.error, drift.error):
        return None
    part = abs(drift.drift) / abs(baseline.drift)
    return part if part < _CURED else None


def _power_evidence(baseline: DriftResult, power: Estimate | None) -> str:
    if power is None:
        return ""
    value = f"{format_value(power.value, power.error)} {UNIT}"
    if abs(power.value) > _SIGMAS * power.error:
        return f"Along the path, work and energy differ by {value} (drift: {baseline.drift:.2g} {UNIT})."
    return f"Along the path, work and energy agree on average ({value}): look for rare jumps, as at a cutoff."


def _scan(check: NveCheck, context: RunContext, stage: StageRecord) -> tuple[Result, Section] | None:
    """Short runs at several time steps from the same start; the exponent of the fluctuation."""
    timestep = stage.settings.timestep_fs
    steps = check.timesteps if check.timesteps is not None else (0.5 * timestep, timestep, 2.0 * timestep)
    if not steps:
        return None
    duration = max(check.scan_duration, _MIN_STEPS * max(steps))  # the same for all: the slow part depends on it
    runs = [
        (dt, _rerun(context, stage, f"scan {dt:g} fs", dt, duration, context.calculator)) for dt in sorted(set(steps))
    ]
    table = Table(
        ("time step (fs)", "fluctuation (meV/atom)", "drift (meV/atom/ps)", ""),
        [
            (dt, run.drift.fluctuation, format_value(run.drift.drift, run.drift.error), "")
            if run.drift is not None
            else (dt, None, None, "unstable")
            for dt, run in runs
        ],
    )
    stable = [(dt, run.drift.fluctuation) for dt, run in runs if run.drift is not None and run.drift.fluctuation > 0.0]
    if len(stable) < 2:
        text = "Fewer than two of the time steps gave a stable run."
        return (
            Result(f"{stage.name}.fluctuation_exponent", "Fluctuation exponent", None, explanation=text),
            Section("Scaling with the time step", text, table=table),
        )
    scaling = fluctuation_scaling([dt for dt, _ in stable], [f for _, f in stable])
    return _scaling_result(stage, scaling), _scaling_section(context, stage, scaling, table, duration)


def _scaling_result(stage: StageRecord, scaling: ScalingResult) -> Result:
    text = (
        "Fluctuation of the total energy ~ dt^p. Smooth forces give p = 2; "
        "a smaller p is a floor from rounding, a kink, or forces that are not a gradient."
    )
    error = scaling.error if math.isfinite(scaling.error) else None
    return Result(
        f"{stage.name}.fluctuation_exponent", "Fluctuation exponent", scaling.exponent, error, explanation=text
    )


def _scaling_section(
    context: RunContext, stage: StageRecord, scaling: ScalingResult, table: Table, duration: float
) -> Section:
    from dpsim.analysis.figures import plot_timestep_scaling

    path = plot_timestep_scaling(context.figures / f"{stage.name}_timestep.png", scaling)
    caption = f"Runs of {duration:g} fs from the same start at several time steps."
    return Section("Scaling with the time step", figures=[Figure(path, caption)], table=table)


def _drift_section(stage: StageRecord, thermo: dict[str, Any], drift: DriftResult, context: RunContext) -> Section:
    from dpsim.analysis.figures import plot_energy_drift

    path = plot_energy_drift(
        context.figures / f"{stage.name}_energy.png", thermo["time_ps"], thermo["total_energy_eV"], drift
    )
    settings = stage.settings
    caption = f"{settings.n_steps} steps of {settings.timestep_fs:g} fs."
    return Section("Conservation of energy", figures=[Figure(path, caption)])


def _fault_result(stage: StageRecord, diagnosis: Diagnosis, verdict: Verdict) -> Result:
    power = diagnosis.power
    certain = " (That the run drifts too much is not certain: see the drift.)" if verdict == "UNDECIDED" else ""
    return Result(
        f"{stage.name}.fault",
        f"At fault: {diagnosis.fault}",
        None if power is None else power.value,
        None if power is None else power.error,
        UNIT if power is not None else "",
        verdict="INFO",
        explanation=diagnosis.explanation + certain,
    )


def _diagnosis_section(diagnosis: Diagnosis, duration_fs: float) -> Section:
    baseline = diagnosis.baseline
    rows = [("as run", "failed" if baseline is None else format_value(baseline.drift, baseline.error), "")]
    for rerun in diagnosis.reruns:
        value = "failed" if rerun.drift is None else format_value(rerun.drift.drift, rerun.drift.error)
        rows.append((rerun.label, value, rerun.note))
    if diagnosis.power is not None:
        value = format_value(diagnosis.power.value, diagnosis.power.error)
        rows.append(("work against energy", value, "dE/dt from energies and forces along the path alone"))
    covered = duration_fs * 1e-3 if baseline is None else baseline.duration_ps
    text = f"{diagnosis.explanation}\n\nThe re-runs start from the first state of the stage and cover {covered:g} ps."
    return Section("What is at fault", text, table=Table(("run", f"drift ({UNIT})", ""), rows))
