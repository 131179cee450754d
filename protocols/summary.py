"""What the report says of the run as a whole: key figures, the stages, the temperature."""

from __future__ import annotations

import numpy as np

from dpsim.analysis.report import Figure, Section, Table
from dpsim.analysis.statistics import format_value, mean_with_error
from dpsim.engines.output import read_thermo
from dpsim.protocols.context import RunContext, StageRecord

_MIN_SAMPLES = 10


def run_facts(context: RunContext) -> dict[str, str]:
    """A few key figures."""
    last = [*context.stages.values()][-1]
    state = last.result.state
    simulated = sum(s.result.step * s.settings.timestep_fs for s in context.stages.values()) * 1e-3
    wall = sum(s.result.wall_seconds for s in context.stages.values())
    facts = {"atoms": str(state.n_atoms), "simulated": f"{simulated:g} ps", "wall time": f"{wall:.0f} s"}
    if wall > 0.0 and simulated > 0.0:
        facts["speed"] = f"{simulated * 1e-3 / wall * 86400.0:.3g} ns/day"
    return facts


def stage_section(context: RunContext) -> Section:
    """A table of the stages' averages and a figure of each dynamics stage's temperature."""
    from dpsim.analysis.figures import plot_temperature

    rows = []
    figures = []
    for name, stage in context.stages.items():
        thermo = read_thermo(stage.thermo)
        rows.append(_row(name, stage, thermo))
        if stage.settings.kind != "minimise" and len(thermo["step"]) >= _MIN_SAMPLES:
            path = plot_temperature(
                context.figures / f"{name}_temperature.png",
                thermo["time_ps"],
                thermo["temperature_K"],
                stage.settings.temperature_K,
            )
            figures.append(Figure(path, f"Stage {name}."))
    header = ("stage", "steps", "time (ps)", "T (K)", "P (bar)", "volume (A³)", "wall time (s)")
    return Section("Stages", figures=figures, table=Table(header, rows))


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
    estimate = mean_with_error(half)
    return format_value(estimate.value, estimate.error)
