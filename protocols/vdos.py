"""The vdos analysis: velocity autocorrelation of each element and its spectrum, with error bands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dpsim.analysis.curves import CurveComparison, ReferenceCurve, compare_curve, reference_curve, save_curves
from dpsim.analysis.rdf_reference import read_columns
from dpsim.analysis.report import Curve, Figure, Result, Section, Table
from dpsim.analysis.statistics import format_value
from dpsim.analysis.vibrations import CM_PER_THZ, Vibrations, frames_needed, vibrational_spectra
from dpsim.errors import ConfigError, DataError
from dpsim.protocols.analyses import VdosAnalysis
from dpsim.protocols.context import AnalysisContext, AnalysisOutput
from dpsim.protocols.sampling import label_of, left_out, require_frames, samples, unsettled
from dpsim.protocols.schema import Protocol
from dpsim.protocols.verdicts import judge_curve

_SLOWEST_WITH_HYDROGEN = 4.0  # fs between frames: half a period of 125 THz, the fastest bonds of hydrogen
_HAVE_ALL = 0.998  # of the modes: figures end there


def run_vdos(analysis: VdosAnalysis, context: AnalysisContext) -> AnalysisOutput:
    """Compute, plot, and compare the spectra of the chosen stages."""
    from dpsim.analysis.figures_motion import plot_curves

    parts = samples(analysis, context.stages)
    label, settled = label_of(parts), all(part.settled for part in parts)
    found = vibrational_spectra([(p.universe(), p.first_frame) for p in parts], analysis.resolution, analysis.blocks)
    references = load_vdos_references(analysis.reference) if analysis.reference is not None else {}
    comparisons = [compare_curve(i.spectrum, references[i.species]) for i in found if i.species in references]
    warnings = unsettled(parts) + [_aliased(item, parts[0].interval_ps) for item in found if item.aliased]
    if short := [item.species for item in found if not item.spectrum.reliable]:
        warnings.append(f"The run is short: the error bars of the spectrum of {', '.join(short)} may be too small.")
    results = [result for item in found for result in _describe(item, label)] + [
        judge_curve(
            f"{label}.vdos.{c.label}.difference", f"{c.label} spectrum, difference from the reference", c,
            analysis.difference, settled and _reliable(found, c),
        )
        for c in comparisons
    ]  # fmt: skip
    columns = [(f"vdos_{item.species}", item.spectrum) for item in found]
    table = save_curves(context.directory / f"vdos_{label}.csv", "frequency_THz", columns)
    save_curves(context.directory / f"vacf_{label}.csv", "time_ps", [(f"vacf_{i.species}", i.vacf) for i in found])
    figures = context.figures
    spectrum = plot_curves(figures / f"vdos_{label}.png", [i.spectrum for i in found], "frequency (THz)", "$g$ (1/THz)",
                           comparisons, _shown(found))  # fmt: skip
    vacf = plot_curves(figures / f"vacf_{label}.png", [i.vacf for i in found], "time (ps)", "$c(t)$")
    caption = (
        f"Density of vibrational states per atom; stage {label}, {left_out(parts)}. A sharp line is "
        f"{analysis.resolution:g} THz wide. 1 THz is {CM_PER_THZ:.2f} cm⁻¹. The numbers are in {table.name}."
    )
    shown = [Figure(spectrum, caption), Figure(vacf, "Velocity autocorrelation.")]
    curves = [
        Curve(f"{label}.vdos.{i.species}", f"Vibrations of {i.species}", "frequency (THz)", "g (1/THz)",
              i.spectrum.x, i.spectrum.y, i.spectrum.y_error)
        for i in found
    ]  # fmt: skip
    return AnalysisOutput(results, [Section("Vibrations", figures=shown, table=_table(found))], warnings, curves)


def check_vdos(analysis: VdosAnalysis, protocol: Protocol, atoms: Any) -> None:
    """Raise DpsimError where frames are too far apart for hydrogen, or the reference does not suit."""
    elements = list(dict.fromkeys(atoms.get_chemical_symbols()))
    if analysis.reference is not None and not set(load_vdos_references(analysis.reference)) & set(elements):
        raise ConfigError(f"`reference` {analysis.reference} has none of the elements {elements}. Choose another.")
    if "H" in elements:
        hydrogens = np.array(atoms.get_chemical_symbols()) == "H"
        _require_close_frames(analysis, protocol, float(atoms.get_masses()[hydrogens].min()))
    require_frames(
        analysis,
        protocol,
        lambda interval: frames_needed(analysis.resolution, interval, analysis.blocks),
        f" for a resolution of {analysis.resolution:g} THz in {analysis.blocks} blocks",
    )


def _require_close_frames(analysis: VdosAnalysis, protocol: Protocol, lightest: float) -> None:
    """Refuse frames too far apart for the vibrations of hydrogen of this mass (amu). Raises ConfigError."""
    stages = dict(zip(protocol.stage_names(), protocol.stages, strict=True))
    fitting = [name for name, stage in stages.items() if stage.type in analysis.stage_types]
    slowest = _SLOWEST_WITH_HYDROGEN * float(np.sqrt(lightest / 1.008))
    for name in analysis.stages or fitting[-1:]:
        settings = stages[name].settings()
        interval = settings.trajectory_every * settings.timestep_fs
        if interval > slowest + 1e-9:
            raise ConfigError(
                f"`trajectory_every` of stage {name} is {interval:g} fs; expected at most {slowest:.3g} fs for a vdos "
                f"with hydrogen, whose bonds vibrate that fast. Set `trajectory_every: {int(slowest)} fs`."
            )


def load_vdos_references(path: Path) -> dict[str, ReferenceCurve]:
    """Reference spectra by element: columns frequency_THz, vdos_O, optionally vdos_O_error. Raises DataError."""
    columns = read_columns(path)
    names = [key for key in columns if key.startswith("vdos_") and not key.endswith("_error")]
    if "frequency_THz" not in columns or not names:
        raise DataError(
            f"`reference` {path} has the columns {list(columns)}; expected `frequency_THz` and one per element, such "
            "as vdos_O. Rename the columns."
        )
    return {
        name.removeprefix("vdos_"): reference_curve(
            name, columns["frequency_THz"], columns[name], columns.get(f"{name}_error")
        )
        for name in names
    }


def _reliable(found: list[Vibrations], comparison: CurveComparison) -> bool:
    return all(item.spectrum.reliable and not item.aliased for item in found if item.species == comparison.label)


def _aliased(item: Vibrations, interval_ps: float) -> str:
    return (
        f"The forces on {item.species} say that it vibrates with {item.rms_frequency_of_forces:.3g} THz rms; the "
        f"spectrum has {item.rms_frequency.value:.3g} THz. Frames {1e3 * interval_ps:g} fs apart miss its fastest "
        "vibrations and show them at wrong frequencies: lower `trajectory_every`."
    )


def _describe(item: Vibrations, label: str) -> list[Result]:
    prefix = f"{label}.vdos.{item.species}"
    exact = item.rms_frequency_of_forces
    text = "" if exact is None else f"From the forces: {exact:.4g} THz."
    wave_number = f"{CM_PER_THZ * item.peak.value:.0f} cm⁻¹."
    return [
        Result(f"{prefix}.peak", f"{item.species} highest peak at", *item.peak, "THz", explanation=wave_number),
        Result(
            f"{prefix}.rms_frequency", f"{item.species} rms frequency", *item.rms_frequency, "THz", explanation=text
        ),
    ]


def _table(found: list[Vibrations]) -> Table:
    rows = [
        (
            i.species, format_value(*i.peak), format_value(CM_PER_THZ * i.peak.value, CM_PER_THZ * i.peak.error),
            format_value(*i.rms_frequency), i.rms_frequency_of_forces,
        )
        for i in found
    ]  # fmt: skip
    return Table(("element", "peak (THz)", "peak (cm⁻¹)", "rms frequency (THz)", "the same from forces"), rows)


def _shown(found: list[Vibrations]) -> float:
    """The frequency up to which nearly all vibrations lie, THz."""
    ends = []
    for item in found:
        share = np.cumsum(np.maximum(item.spectrum.y, 0.0))
        ends.append(item.spectrum.x[int(np.argmax(share >= _HAVE_ALL * share[-1]))])
    return float(min(1.05 * max(ends), found[0].spectrum.x[-1]))
