"""Diffusion at several temperatures: D(T) with errors, and an activation energy, or that there is not one.

Each temperature is simulated `replicas` times: `equilibration`, then `duration`, from which also what precedes
equilibrium is left out. Replicas count as independent runs of one system. D: `dpsim/analysis/diffusion.py`; the line
through ln D against 1/T and the test for a break: `dpsim/analysis/arrhenius.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from dpsim.analysis.arrhenius import Arrhenius, ArrheniusLine, fit_arrhenius
from dpsim.analysis.diffusion import CM2_PER_S
from dpsim.analysis.report import Figure, Result, Section, Table
from dpsim.analysis.statistics import Estimate
from dpsim.config import Energy, Pressure, StrictModel, Temperature, Time, Viscosity
from dpsim.protocols.analyses import DiffusionAnalysis, DiffusionReference
from dpsim.protocols.context import AnalysisOutput
from dpsim.protocols.diffusion_stage import (
    MSD_CAPTION,
    Found,
    check_species,
    diffusion_of,
    doubts,
    msd_curve,
    not_cubic,
    regime_table,
    result_of,
    uncorrected,
)
from dpsim.protocols.sampling import Sample, sample, unsettled
from dpsim.protocols.stages import MinimiseStage, NptStage, NvtStage
from dpsim.protocols.structures import load_structure
from dpsim.protocols.sweep import FinishedPoint, Point, Sweep
from dpsim.protocols.verdicts import longer_text, verdict_of
from dpsim.units import format_quantity

PRODUCTION = "production"


class DiffusionReferenceAt(DiffusionReference):
    """What D should be at a temperature."""

    temperature: Temperature = Field(gt=0.0, description="one of `temperatures`")


class ActivationEnergyReference(StrictModel):
    """What the activation energy should be."""

    species: str = Field(description="element")
    value: Energy
    tolerance: float = Field(0.1, gt=0.0, description="largest relative difference")


class DiffusionProtocol(Sweep):
    """Runs at each temperature, D of each element, Arrhenius' law and where it breaks."""

    protocol: Literal["diffusion"]
    temperatures: tuple[Temperature, ...] = Field(min_length=1, description="two give a line, four a test for a break")
    replicas: PositiveInt = Field(1, description="independent runs at each temperature")
    species: Literal["all"] | tuple[str, ...] = Field("all", description="elements such as [Li]")
    minimise: bool = Field(False, description="relax bad contacts of the structure first")
    equilibration: Time = Field(2000.0, gt=0.0, description="simulated before, not analysed")
    duration: Time = Field(gt=0.0, description="analysed, of each run, less what precedes equilibrium")
    timestep: Time = Field(0.5, gt=0.0, description="0.5 fs suits liquids with hydrogen, 2 fs most oxides and metals")
    damping: Time = Field(200.0, gt=0.0, description="relaxation time of the thermostat")
    pressure: Pressure | None = Field(None, description="constant pressure; default: the cell stays as it is")
    cell: Literal["isotropic", "anisotropic", "triclinic"] = Field(
        "isotropic", description="what may change at constant pressure: volume; three lengths; lengths and angles"
    )
    pressure_damping: Time = Field(1000.0, gt=0.0, description="relaxation time of the barostat")
    trajectory_every: Time = Field(50.0, gt=0.0, description="time between frames")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="of the intervals that are judged")
    viscosities: tuple[Viscosity, ...] = Field(
        (), description="of the liquid, one for each temperature: corrects D for the size of the cell"
    )
    references: tuple[DiffusionReferenceAt, ...] = ()
    activation_energies: tuple[ActivationEnergyReference, ...] = ()

    @model_validator(mode="after")
    def _lists_fit(self) -> DiffusionProtocol:
        if self.viscosities and len(self.viscosities) != len(self.temperatures):
            raise ValueError(
                f"`viscosities` are {len(self.viscosities)}; expected one for each of the {len(self.temperatures)} "
                "temperatures, in their order. Give all or none."
            )
        for reference in self.references:
            if reference.temperature not in self.temperatures:
                raise ValueError(
                    f"`references` has {reference.temperature:g} K; expected one of `temperatures`. Add it there."
                )
        if self.activation_energies and len(self.temperatures) < 2:
            raise ValueError("`activation_energies` needs two temperatures or more. Add temperatures.")
        return self

    def points(self) -> list[Point]:
        self._check_elements()
        points = []
        for temperature in self.temperatures:
            for replica in range(1, self.replicas + 1):
                key = f"{temperature:g}K" + (f".{replica}" if self.replicas > 1 else "")
                labels = {"temperature_K": temperature} | ({"replica": replica} if self.replicas > 1 else {})
                points.append(Point(key, self.md(key, self._stages(temperature), [self._analysis()]), labels))
        return points

    def conclude(self, points: Sequence[FinishedPoint], figures: Path) -> AnalysisOutput:

        output = AnalysisOutput()
        parts = {point.key: sample(point.stages[PRODUCTION], None) for point in points}
        output.warnings.extend(f"{key}: {text}" for key, part in parts.items() for text in unsettled([part]))
        found: dict[str, dict[float, Found]] = {}
        for temperature in sorted({point.labels["temperature_K"] for point in points}):
            runs = [parts[point.key] for point in points if point.labels["temperature_K"] == temperature]
            viscosity = self.viscosities[self.temperatures.index(temperature)] if self.viscosities else None
            for name, item in diffusion_of(runs, self.species, self.confidence, viscosity).items():
                found.setdefault(name, {})[temperature] = item
        for name, by_temperature in found.items():
            _conclude_species(self, name, by_temperature, figures, output)
        output.sections.append(_equilibration(parts))
        if self.viscosities:
            output.warnings.extend(not_cubic([*parts.values()]))
        return output

    def _check_elements(self) -> None:

        referenced = [r.species for r in self.references] + [r.species for r in self.activation_energies]
        check_species(self.species, referenced, load_structure(self.structure, self.seed).get_chemical_symbols())

    def _stages(self, temperature: float) -> list[MinimiseStage | NvtStage | NptStage]:
        first: list[MinimiseStage | NvtStage | NptStage] = [MinimiseStage(type="minimise")] if self.minimise else []
        lengths = {"equilibration": self.equilibration, PRODUCTION: self.duration}
        return [*first, *(self._stage(name, temperature, length) for name, length in lengths.items())]

    def _stage(self, name: str, temperature: float, length: float) -> NvtStage | NptStage:
        times = {
            "duration": length,
            "timestep": self.timestep,
            "damping": self.damping,
            "trajectory_every": self.trajectory_every,
        }
        keys = {"name": name, "temperature": format_quantity(temperature, "K")}
        keys |= {key: format_quantity(time, "fs") for key, time in times.items()}
        if self.pressure is None:
            return NvtStage.model_validate({"type": "nvt", **keys})
        keys |= {"pressure": format_quantity(self.pressure, "bar"), "cell": self.cell}
        keys |= {"pressure_damping": format_quantity(self.pressure_damping, "fs")}
        return NptStage.model_validate({"type": "npt", **keys})

    def _analysis(self) -> DiffusionAnalysis:
        return DiffusionAnalysis(type="diffusion", species=self.species, confidence=self.confidence)


def _conclude_species(
    config: DiffusionProtocol, name: str, found: Mapping[float, Found], figures: Path, output: AnalysisOutput
) -> None:
    """Numbers, figures and warnings of one element, added to `output`."""
    from dpsim.analysis.figures_motion import plot_arrhenius, plot_msd

    labelled = {f"{temperature:g} K": item for temperature, item in found.items()}
    references = {r.temperature: r for r in config.references if r.species == name}
    for temperature, item in found.items():
        key = f"{name}.{temperature:g}K.diffusion"
        label = f"{name} at {temperature:g} K"
        output.results.append(result_of(key, label, item, references.get(temperature), config.confidence))
        if config.viscosities:
            output.results.append(uncorrected(f"{key}.uncorrected", label, item))
        output.warnings.extend(doubts(label, item))
        output.curves.append(msd_curve(key, f"MSD of {label}", item.diffusion))
    points = [(t, estimate) for t, item in found.items() if (estimate := _in_cm2(item)) is not None]
    fit = fit_arrhenius(points, config.seed)
    wanted = next((r for r in config.activation_energies if r.species == name), None)
    output.results.extend(_energies(config, name, fit, wanted))
    if fit is not None and fit.broken(config.confidence):
        output.warnings.append(f"{name}: one line through ln D against 1/T is not enough. {_break_text(fit)}")
    figure = [Figure(plot_msd(figures / f"msd_{name}.png", {k: i.diffusion for k, i in labelled.items()}), MSD_CAPTION)]
    if len(found) > 1:
        bounds = [(t, CM2_PER_S * u) for t, item in found.items() if (u := item.diffusion.upper) is not None and u > 0]
        shown = [(r.temperature, r.value) for r in references.values()]
        path = plot_arrhenius(figures / f"arrhenius_{name}.png", points, fit, shown, bounds)
        figure.append(Figure(path, f"Arrhenius plot of {name}, bars: 95 % intervals. {_break_text(fit)}"))
    output.sections.append(Section(f"Diffusion of {name}", figures=figure, table=regime_table(labelled, "temperature")))


def _in_cm2(item: Found) -> Estimate | None:
    """D, cm^2/s, where there is one that differs from nothing."""
    estimate = item.diffusion.estimate
    if estimate is None or item.value <= 0.0:
        return None
    return replace(estimate, value=item.value, error=item.error)


def _energies(
    config: DiffusionProtocol, name: str, fit: Arrhenius | None, wanted: ActivationEnergyReference | None
) -> list[Result]:
    """The activation energy, those on both sides of a break, and the probability that there is none."""

    key, label = f"{name}.activation_energy", f"Activation energy of {name}"
    if fit is None:
        text = "Needs D at two temperatures or more."
        return [] if wanted is None else [Result(key, label, None, None, "eV", _wanted(wanted), "UNDECIDED", text)]
    broken = fit.broken(config.confidence)
    results = [_energy(key, label, fit.line, wanted, config.confidence, _doubt(fit, config.confidence))]
    results.append(Result(f"{name}.prefactor", f"ln D0 of {name}, D0 in cm²/s", fit.line.log_prefactor))
    if fit.break_p_value is not None:
        text = _break_text(fit)
        results.append(Result(f"{name}.break_p_value", f"{name}: probability of no break", fit.break_p_value, None,
                              explanation=text))  # fmt: skip
    if broken and fit.below is not None and fit.above is not None:
        for side, line in (("below", fit.below), ("above", fit.above)):
            results.append(
                _energy(f"{name}.{side}.activation_energy", f"{label} {side} the break", line, None, 0.95, "")
            )
    return results


def _energy(
    key: str,
    label: str,
    line: ArrheniusLine,
    wanted: ActivationEnergyReference | None,
    confidence: float,
    doubt: str,
) -> Result:

    low, high = line.interval(confidence)
    text = (
        f"{line.temperatures_K[0]:g} ... {line.temperatures_K[-1]:g} K, {len(line.temperatures_K)} temperatures; "
        f"{100.0 * confidence:g} % interval {low:.3f} ... {high:.3f} eV. {doubt}"
    ).strip()
    plain = Result(key, label, line.activation_energy_eV, line.error_eV, "eV", explanation=text)
    if wanted is None:
        return plain
    margin = abs(wanted.value) * wanted.tolerance
    accepted = wanted.value - margin, wanted.value + margin
    verdict = "UNDECIDED" if doubt else verdict_of((low, high), accepted)
    if verdict == "UNDECIDED" and not doubt:
        text += " " + longer_text(line.activation_energy_eV, (low, high), accepted)
    return replace(plain, threshold=_wanted(wanted), verdict=verdict, explanation=text)


def _wanted(wanted: ActivationEnergyReference) -> str:
    return f"{wanted.value:g} ± {100.0 * wanted.tolerance:g} %"


def _doubt(fit: Arrhenius, confidence: float) -> str:
    """Why one line is too little, if it is."""
    if fit.broken(confidence):
        return "But the line breaks: this is an average of two."
    if fit.scatter_p_value is not None and fit.scatter_p_value < 1.0 - confidence:
        return f"But the points scatter more than their errors allow (p = {fit.scatter_p_value:.3f})."
    return ""


def _break_text(fit: Arrhenius | None) -> str:
    if fit is None or fit.break_p_value is None or fit.between is None:
        return "A test for a break needs D at four temperatures."
    best = f"Best place for a break: between {fit.between[0]:g} and {fit.between[1]:g} K."
    return f"One line gives as much by chance with p = {fit.break_p_value:.3g}. {best}"


def _equilibration(parts: Mapping[str, Sample]) -> Section:
    """What was left out of each run."""

    rows = [(key, part.skipped_ps, "yes" if part.settled else "no") for key, part in parts.items()]
    return Section("Equilibration", table=Table(("run", "left out (ps)", "settled"), rows))
