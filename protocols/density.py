"""The density analysis: the mean density of npt stages, what was left out before equilibrium, and a verdict."""

from __future__ import annotations

import numpy as np

from dpsim.analysis.density import G_PER_CM3, mean_density
from dpsim.analysis.report import Figure, Result, Section, Verdict
from dpsim.analysis.statistics import format_value, mean_with_error
from dpsim.engines.output import read_thermo
from dpsim.protocols.analyses import DensityAnalysis
from dpsim.protocols.context import AnalysisContext, AnalysisOutput
from dpsim.protocols.sampling import label_of, left_out, samples, unsettled
from dpsim.protocols.verdicts import longer_text, verdict_of


def run_density(analysis: DensityAnalysis, context: AnalysisContext) -> AnalysisOutput:
    """Mean density and volume with errors; PASS or FAIL against a reference."""
    from dpsim.analysis.figures_motion import plot_density

    parts = samples(analysis, context.stages)
    label = label_of(parts)
    state = parts[0].stage.result.state
    mass = float(state.masses.sum())
    runs, shown, pressures = [], [], []
    for part in parts:
        thermo = read_thermo(part.stage.thermo)
        time, volume = thermo["time_ps"], thermo["volume_A3"]
        kept = time - time[0] >= part.skipped_ps - 1e-9
        runs.append((time[kept], volume[kept]))
        shown.append((time, G_PER_CM3 * mass / volume, float(time[0]) + part.skipped_ps))
        pressures.append(thermo["pressure_bar"][kept])
    found = mean_density(runs, mass, find_equilibration=False)
    density, settled = found.density, all(part.settled for part in parts)
    warnings = unsettled(parts)
    if not density.reliable:
        warnings.append(
            f"{label} is short beside the time in which its volume changes: the error of the density may be too small."
        )
    verdict, threshold, text = _judge(analysis, density.value, density.interval(), settled and density.reliable)
    pressure = mean_with_error(np.concatenate(pressures))
    results = [
        Result(f"{label}.density", "Density", density.value, density.error, "g/cm^3", threshold, verdict, text),
        Result(f"{label}.volume", "Volume of the cell", found.volume.value, found.volume.error, "A^3"),
        Result(f"{label}.volume_per_atom", "Volume per atom", found.volume.value / state.n_atoms,
               found.volume.error / state.n_atoms, "A^3"),
        Result(f"{label}.pressure", "Mean pressure", pressure.value, pressure.error, "bar",
               explanation=f"The barostat was set to {parts[0].stage.settings.pressure_bar:g} bar."),
    ]  # fmt: skip
    path = plot_density(context.figures / f"density_{label}.png", shown, density, analysis.reference)
    caption = f"Stage {label}; {left_out(parts)}. The band is the 95 % interval of the mean."
    return AnalysisOutput(results, [Section("Density", figures=[Figure(path, caption)])], warnings)


def _judge(
    analysis: DensityAnalysis, value: float, interval: tuple[float, float], sound: bool
) -> tuple[Verdict, str | None, str]:
    """Verdict, threshold and explanation."""
    reference = analysis.reference
    if reference is None:
        return "INFO", None, ""
    accepted = reference * (1.0 - analysis.tolerance), reference * (1.0 + analysis.tolerance)
    verdict = verdict_of(interval, accepted)
    text = f"{100.0 * (value / reference - 1.0):+.2f} % from the reference; 95 % interval {_range(interval)}."
    if verdict == "UNDECIDED":
        text += " " + longer_text(value, interval, accepted)
    elif not sound:
        verdict = "UNDECIDED"
        text += " The run is too short for its error to be trusted."
    return verdict, f"{format_value(reference)} ± {100.0 * analysis.tolerance:g} %", text


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f} ... {interval[1]:.4f} g/cm^3"
