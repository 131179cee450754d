"""The averages analysis: mean temperature, potential energy and pressure of stages. `pimd` has them too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpsim.analysis.report import Result
from dpsim.analysis.statistics import mean_with_error
from dpsim.engines.output import read_thermo
from dpsim.protocols.analyses import AveragesAnalysis
from dpsim.protocols.context import AnalysisContext, AnalysisOutput
from dpsim.protocols.sampling import Sample, label_of, samples, unsettled

_COLUMNS = (
    ("temperature", "Mean temperature", "K", "temperature_K"),
    ("potential_energy", "Mean potential energy", "eV/atom", "potential_energy_eV"),
    ("pressure", "Mean pressure", "bar", "pressure_bar"),
)


def run_averages(analysis: AveragesAnalysis, context: AnalysisContext) -> AnalysisOutput:
    """The averages of the chosen stages."""
    parts = samples(analysis, context.stages)
    return AnalysisOutput(averages_of(parts, label_of(parts)), warnings=unsettled(parts))


def averages_of(parts: Sequence[Sample], label: str) -> list[Result]:
    """`<label>.averages.temperature`, ...; what a structure does not have, such as a pressure, is left out."""
    n_atoms = parts[0].stage.result.state.n_atoms
    results = []
    for name, title, unit, column in _COLUMNS:
        values = np.concatenate([_counted(part, column) for part in parts]) / (n_atoms if "/atom" in unit else 1)
        if len(values) > 1 and np.isfinite(values).all():
            mean = mean_with_error(values)
            text = "" if mean.reliable else "The run is short beside the time in which this changes."
            results.append(Result(f"{label}.averages.{name}", title, mean.value, mean.error, unit, explanation=text))
    return results


def _counted(part: Sample, column: str) -> np.ndarray:
    """A column of thermo.csv from equilibrium on."""
    thermo = read_thermo(part.stage.thermo)
    return thermo[column][thermo["time_ps"] - thermo["time_ps"][0] >= part.skipped_ps - 1e-9]
