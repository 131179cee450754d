"""The diffusion analysis: D of each element from the stages of one run, where the motion is diffusive, and a verdict.

How the regime is found and the error made: `dpsim/analysis/diffusion.py`. Several temperatures: `diffusion.py` here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpsim.analysis.diffusion import (
    CM2_PER_S,
    Diffusion,
    Walk,
    diffusion_coefficient,
    finite_size_correction,
    read_walk,
)
from dpsim.analysis.report import Curve, Figure, Result, Section, Table, Verdict
from dpsim.analysis.statistics import format_value
from dpsim.engines.output import read_thermo
from dpsim.errors import ConfigError
from dpsim.protocols.analyses import DiffusionAnalysis, DiffusionReference
from dpsim.protocols.context import AnalysisContext, AnalysisOutput, StageRecord
from dpsim.protocols.sampling import Sample, label_of, left_out, require_frames, samples, unsettled
from dpsim.protocols.schema import Protocol
from dpsim.protocols.verdicts import longer_text, verdict_of

_FEWEST_FRAMES = 50  # of a run
_CUBIC = 0.02  # edges that differ by more, or angles, make the correction an approximation


@dataclass(frozen=True)
class Found:
    """D of one element in runs of one system; `correction` (cm^2/s) is added to it for the size of the cell.

    settled: the runs had reached equilibrium.
    """

    diffusion: Diffusion
    correction: float | None = None
    settled: bool = True

    @property
    def value(self) -> float:
        """cm^2/s; NaN where there is none."""
        return CM2_PER_S * self.diffusion.value + (self.correction or 0.0)

    @property
    def error(self) -> float:
        """cm^2/s."""
        return CM2_PER_S * self.diffusion.error

    def interval(self, confidence: float) -> tuple[float, float]:
        """cm^2/s."""
        low, high = (CM2_PER_S * d + (self.correction or 0.0) for d in self.diffusion.interval(confidence))
        return low, high


def run_diffusion(analysis: DiffusionAnalysis, context: AnalysisContext) -> AnalysisOutput:
    """D of the chosen elements of the chosen stages, which count as independent runs."""
    from dpsim.analysis.figures_motion import plot_msd

    parts = samples(analysis, context.stages)
    label = label_of(parts)
    found = diffusion_of(parts, analysis.species, analysis.confidence, analysis.viscosity)
    references = {reference.species: reference for reference in analysis.references}
    results = [
        result_of(f"{label}.diffusion.{name}", name, item, references.get(name), analysis.confidence)
        for name, item in found.items()
    ]
    if analysis.viscosity is not None:
        results += [uncorrected(f"{label}.diffusion.{name}.uncorrected", name, item) for name, item in found.items()]
    path = plot_msd(context.figures / f"diffusion_{label}.png", {n: item.diffusion for n, item in found.items()})
    caption = f"Stage {label}; {left_out(parts)}. {MSD_CAPTION}"
    section = Section("Diffusion", figures=[Figure(path, caption)], table=regime_table(found))
    warnings = unsettled(parts) + [text for name, item in found.items() for text in doubts(name, item)]
    if analysis.viscosity is not None:
        warnings += not_cubic(parts)
    curves = [msd_curve(f"{label}.diffusion.{name}", f"MSD of {name}", item.diffusion) for name, item in found.items()]
    return AnalysisOutput(results, [section], warnings, curves)


MSD_CAPTION = (
    "Left: mean squared displacement; dashed, 6 D t + c where D was taken. Right: its slope between a lag and twice "
    "the lag, with 95 % bands, which is D where it stays the same; the point is the D taken."
)


def check_diffusion(analysis: DiffusionAnalysis, protocol: Protocol, atoms: Any) -> None:
    """Raise DpsimError for elements that the structure does not have, and stages with too few frames."""
    check_species(analysis.species, [r.species for r in analysis.references], atoms.get_chemical_symbols())
    require_frames(analysis, protocol, lambda interval: _FEWEST_FRAMES, " to find the diffusive regime in")


def check_species(chosen: str | Sequence[str], referenced: Sequence[str], symbols: Sequence[str]) -> None:
    """Raise ConfigError for elements that are not there, or references of elements that are not analysed."""
    present = sorted(set(symbols))
    wanted = present if chosen == "all" else list(chosen)
    if unknown := sorted(set(wanted) - set(present)):
        raise ConfigError(f"`species` has {unknown}; expected elements of the structure, {present}. Correct the list.")
    if extra := sorted(set(referenced) - set(wanted)):
        raise ConfigError(f"`references` has {extra}; expected one of `species`, {wanted}. Correct the element.")


def diffusion_of(
    parts: Sequence[Sample], species: str | Sequence[str], confidence: float, viscosity: float | None = None
) -> dict[str, Found]:
    """D of each element, from independent runs of one system at one temperature."""
    walks: list[Walk] = [read_walk((p.stage.topology, p.stage.trajectory), p.first_frame) for p in parts]
    names = list(dict.fromkeys(walks[0].symbols)) if species == "all" else list(species)
    correction = None if viscosity is None else _correction(parts, viscosity)
    settled = all(part.settled for part in parts)
    return {
        name: Found(
            diffusion_coefficient([walk.of(name) for walk in walks], walks[0].interval_ps, confidence),
            correction,
            settled,
        )
        for name in names
    }


def result_of(
    name: str, label: str, found: Found, reference: DiffusionReference | None, confidence: float = 0.95
) -> Result:
    """D, or that there is none and why; PASS or FAIL against a reference."""
    item = found.diffusion
    text, verdict, threshold = item.explanation, "INFO", None
    if item.estimate is not None:
        low, high = found.interval(confidence)
        size = "" if found.correction is None else f", with {found.correction:.3g} cm²/s for the size of the cell"
        text = f"{100.0 * confidence:g} % interval {low:.3g} ... {high:.3g} cm²/s{size}. {text}"
    if reference is not None:
        accepted = reference.value / reference.factor, reference.value * reference.factor
        threshold = f"{format_value(accepted[0], digits=3)} ... {format_value(accepted[1], digits=3)}"
        verdict, why = _judge(found, reference, accepted, confidence)
        text = f"{why} {text}"
    value, error = (found.value, found.error) if item.estimate is not None else (None, None)
    return Result(name, f"D of {label}", value, error, "cm^2/s", threshold, verdict, text)  # type: ignore[arg-type]


def uncorrected(name: str, label: str, found: Found) -> Result:
    """D in the cell as it is."""
    item = found.diffusion
    value, error = (CM2_PER_S * item.value, CM2_PER_S * item.error) if item.estimate is not None else (None, None)
    return Result(name, f"D of {label}, in this cell", value, error, "cm^2/s")


def regime_table(found: Mapping[str, Found], head: str = "element") -> Table:
    """Where each D comes from, or why there is none."""
    rows: list[Sequence[str | float | int | None]] = []
    for label, item in found.items():
        d = item.diffusion
        value = format_value(item.value, item.error) if d.estimate is not None else None
        rows.append((label, value, d.regime, d.lag_ps, d.exponent, d.n_runs, d.n_atoms))
    return Table((head, "D (cm²/s)", "regime", "from lag (ps)", "d ln MSD / d ln t", "runs", "atoms"), rows)


def doubts(label: str, found: Found) -> list[str]:
    """Warnings about one D."""
    item = found.diffusion
    if item.estimate is None:
        return [f"No D of {label}: {item.explanation}"]
    if not item.estimate.reliable:
        return [f"The runs are short beside the time in which {label} diffuses: the error of D may be too small."]
    return []


def msd_curve(name: str, label: str, item: Diffusion) -> Curve:
    """For `dpsim compare`."""
    return Curve(f"{name}.msd", label, "lag (ps)", "MSD (Å²)", item.lags_ps, item.msd)


def not_cubic(parts: Sequence[Sample]) -> list[str]:
    """The finite-size correction is that of a cube."""
    cell = parts[0].stage.result.state.cell
    lengths = np.linalg.norm(cell, axis=1)
    cosines = (cell @ cell.T / np.outer(lengths, lengths))[np.triu_indices(3, 1)]
    if np.ptp(lengths) <= _CUBIC * lengths.mean() and np.abs(cosines).max() <= _CUBIC:
        return []
    return ["The cell is no cube: the correction for its size is that of a cube of its volume, an approximation."]


def temperature_of(stage: StageRecord) -> float:
    """Of the thermostat, or the mean where there is none, K."""
    target = stage.settings.temperature_K
    return float(read_thermo(stage.thermo)["temperature_K"].mean()) if target is None else target


def _correction(parts: Sequence[Sample], viscosity: float) -> float:
    """cm^2/s; of a cube of the mean volume."""
    stage = parts[0].stage
    length = float(read_thermo(stage.thermo)["volume_A3"].mean()) ** (1.0 / 3.0)
    if not math.isfinite(length):
        raise ConfigError("`viscosity` is given, but the cell has no volume; expected a periodic cell. Leave it out.")
    return CM2_PER_S * finite_size_correction(temperature_of(stage), viscosity, length)


def _judge(
    found: Found, reference: DiffusionReference, accepted: tuple[float, float], confidence: float
) -> tuple[Verdict, str]:
    """Verdict and why. Where atoms are caged the upper bound may be enough to say no."""
    item = found.diffusion
    if item.estimate is None:
        if item.upper is not None and CM2_PER_S * max(item.upper, 0.0) < accepted[0]:
            return "FAIL", f"Caged, and D is below {CM2_PER_S * max(item.upper, 0.0):.2g} cm²/s."
        return "UNDECIDED", "There is no D to judge."
    interval = found.interval(confidence)
    verdict = verdict_of(interval, accepted)
    text = f"{found.value / reference.value:.2f} times the reference."
    if verdict == "UNDECIDED":
        return verdict, f"{text} {longer_text(found.value, interval, accepted)}"
    trusted = item.estimate.reliable and found.settled
    if verdict == "PASS" and not trusted:
        return "UNDECIDED", f"{text} The run is too short, or had not settled, for its error to be trusted."
    return verdict, text
