"""What the report says of the run as a whole: key figures, the structure, what has settled, the stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpsim.analysis.convergence import MIN_SAMPLES, Convergence, convergence, plot_convergence
from dpsim.analysis.report import Figure, Section, Table
from dpsim.analysis.statistics import format_value, mean_with_error
from dpsim.analysis.structure_view import MAX_ATOMS, StructureView, frames_to_show
from dpsim.engines.base import Array, StageFailed
from dpsim.engines.output import read_thermo
from dpsim.protocols.context import RunContext, StageRecord
from dpsim.protocols.provenance import hardware
from dpsim.trajectory import count_frames, read_frame

_MIN_SAMPLES = 10
_EVIDENCE = (
    "The grey start of each series is what comes before equilibrium, found as the start that leaves most independent "
    "samples (Chodera 2016), and left out. The running mean of the rest has to come to rest within a narrowing band; "
    "a mean that still wanders, or one of few independent samples, is not to be trusted."
)


def run_facts(context: RunContext) -> dict[str, str]:
    """A few key figures."""
    last = [*context.stages.values()][-1]
    state = last.result.state
    simulated = sum(s.result.step * s.settings.timestep_fs for s in context.stages.values()) * 1e-3
    wall = sum(s.result.wall_seconds for s in context.stages.values())
    facts = {"atoms": str(state.n_atoms), "simulated": f"{simulated:g} ps", "wall time": f"{wall:.0f} s"}
    if wall > 0.0 and simulated > 0.0:
        facts["speed"] = f"{simulated * 1e-3 / wall * 86400.0:.3g} ns/day"
        facts["cost"] = cost_per_ns(wall, simulated, context.protocol.device)
    return facts


def cost_per_ns(wall_seconds: float, simulated_ps: float, device: str) -> str:
    """Hours of a GPU, or of all cores in use, for a nanosecond."""
    machine = hardware(device)
    hours_per_ns = wall_seconds / 3600.0 / (simulated_ps * 1e-3)
    if "gpu" in machine:
        return f"{hours_per_ns:.3g} GPU-h/ns"
    return f"{hours_per_ns * (machine['threads'] or machine['cores'] or 1):.3g} core-h/ns"


def run_sections(context: RunContext) -> list[Section]:
    """The structure, the evidence of convergence and the stages."""
    sections = [structure_section(context.stages), convergence_section(context), stage_section(context)]
    return [section for section in sections if section is not None]


def structure_section(stages: Mapping[str, StageRecord], of: str = "") -> Section | None:
    """The last stage's trajectory in three dimensions, or its last state. of: what is said before, e.g. "Point a: "."""
    stage = [*stages.values()][-1]
    state = stage.result.state
    if state.n_atoms > MAX_ATOMS:
        return None
    count = count_frames(stage.trajectory) if stage.trajectory.exists() else 0
    frames = [read_frame(stage.trajectory, k) for k in frames_to_show(count, state.n_atoms)]
    cells = [frame.cell for frame in frames] or [state.cell]
    shown = f"{len(frames)} frames of stage {stage.name}" if frames else f"The end of stage {stage.name}"
    positions = [frame.positions for frame in frames] or [state.positions]
    labels = [f"{frame.time_ps:.4g} ps" for frame in frames]
    if stage.failure is not None and (failed := _failed_frame(stage.failure)) is not None:
        positions, cells = [*positions, failed[0]], [*cells, failed[1]]
        labels = [*(labels or [""]), f"step {stage.failure.step}: failed"]
        shown += ", and the one that failed"
    view = StructureView(
        symbols=_symbols(state.numbers),
        positions=np.array(positions),
        cells=np.array(cells) if state.has_volume else None,
        pbc=(bool(state.pbc[0]), bool(state.pbc[1]), bool(state.pbc[2])),
        labels=labels,
        caption=f"{of}{shown}, atoms wrapped into the cell. Drag to turn, pinch or click and scroll to zoom.",
    )
    return Section("Atoms", structure=view)


def _failed_frame(failure: StageFailed) -> tuple[Array, Array] | None:
    """Positions and cell of the frame that failed; None where they are no numbers."""
    from ase.io import read

    atoms: Any = read(failure.frame)
    cell = atoms.cell.array
    return (atoms.positions, cell) if np.isfinite(atoms.positions).all() and np.isfinite(cell).all() else None


def _symbols(numbers: np.ndarray) -> list[str]:
    from ase.data import chemical_symbols

    return [chemical_symbols[z] for z in numbers]


def convergence_section(context: RunContext) -> Section | None:
    """For every stage of dynamics that is long enough: what has settled, when, and how well its mean is known."""
    figures, rows = [], []
    for name, stage in context.stages.items():
        if stage.settings.kind == "minimise":
            continue
        series = _settling(stage)
        for label, item in series.items():
            rows.append(_evidence(name, label, item))
        if series:
            path = plot_convergence(context.figures / f"{name}_convergence.png", series)
            figures.append(Figure(path, f"Stage {name}."))
    if not rows:
        return None
    header = ("stage", "quantity", "mean", "left out (ps)", "correlation time (ps)", "independent samples", "settled")
    return Section("Convergence and equilibration", _EVIDENCE, figures=figures, table=Table(header, rows))


def _settling(stage: StageRecord) -> dict[str, Convergence]:
    """The quantities of a stage that fluctuate."""
    thermo = read_thermo(stage.thermo)
    n_atoms = stage.result.state.n_atoms
    energy = thermo["potential_energy_eV"]
    series = {
        "temperature (K)": thermo["temperature_K"],
        "potential energy − first (meV/atom)": (energy - energy[:1]) * 1e3 / n_atoms,
        "pressure (kbar)": thermo["pressure_bar"] * 1e-3,
        "volume (Å³)": thermo["volume_A3"],
    }
    time = thermo["time_ps"]
    return {
        label: convergence(time, values)
        for label, values in series.items()
        if len(values) >= MIN_SAMPLES and np.isfinite(values).all() and np.ptp(values) > 1e-9 * np.abs(values).max()
    }


def _evidence(stage: str, label: str, item: Convergence) -> tuple[str | float | int | None, ...]:
    name, _, unit = label.partition(" (")
    mean = f"{format_value(item.mean.value, item.mean.error)} {unit.rstrip(')')}"
    settled = "yes" if item.settled and item.mean.reliable else "no" if not item.settled else "too short to tell"
    independent = format_value(item.mean.n_effective, None, 3)
    return (
        stage, name, mean, format_value(item.start, None, 3), format_value(item.correlation_time, None, 3),
        independent, settled,
    )  # fmt: skip


def stage_section(context: RunContext) -> Section:
    """A table of the stages' averages."""
    rows = [_row(name, stage, read_thermo(stage.thermo)) for name, stage in context.stages.items()]
    header = ("stage", "steps", "time (ps)", "T (K)", "P (bar)", "volume (A³)", "wall time (s)")
    return Section("Stages", "Averages are over the second half of each stage.", table=Table(header, rows))


def _row(name: str, stage: StageRecord, thermo: dict[str, np.ndarray]) -> tuple[str | float | int | None, ...]:
    if stage.settings.kind == "minimise":
        return (name, stage.result.step, None, None, None, None, round(stage.result.wall_seconds, 1))
    time_ps = stage.result.step * stage.settings.timestep_fs * 1e-3
    averages = [_average(thermo[column]) for column in ("temperature_K", "pressure_bar", "volume_A3")]
    return (name, stage.result.step, time_ps, *averages, round(stage.result.wall_seconds, 1))


def _average(values: np.ndarray) -> str | None:
    """The mean of the second half with its error; None where there are no numbers."""
    half = values[len(values) // 2 :]
    if len(half) < _MIN_SAMPLES or not np.isfinite(half).all():
        return None
    if np.ptp(half) < 1e-9 * np.abs(half).max():  # held constant
        return format_value(float(half[0]))
    estimate = mean_with_error(half)
    return format_value(estimate.value, estimate.error)
