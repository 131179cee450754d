"""What path-integral runs say: kinetic energies and sizes of the nuclei, whether the beads are enough, and a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dpsim.analysis.convergence import MIN_SAMPLES, convergence, plot_convergence
from dpsim.analysis.figures import BLUE, GREY, figure
from dpsim.analysis.path_integrals import harmonic_curve, harmonic_frequency, missing_energy, oscillator_energy
from dpsim.analysis.report import Curve, Figure, Result, Section, Table
from dpsim.analysis.statistics import Estimate, format_value, mean_with_error
from dpsim.engines.ipi_path_integrals import read_estimators
from dpsim.errors import DataError
from dpsim.protocols.analyses import RdfAnalysis
from dpsim.protocols.analysis_table import run_analysis
from dpsim.protocols.averages import averages_of
from dpsim.protocols.context import AnalysisOutput, Stopped
from dpsim.protocols.pimd import SAMPLING, BeadsRun, PimdProtocol
from dpsim.protocols.provenance import origin_of
from dpsim.protocols.rundir import RunOutcome, conclude_run
from dpsim.protocols.runner import failure_of
from dpsim.protocols.sampling import Sample, left_out, sample, unsettled
from dpsim.protocols.summary import run_facts, run_sections
from dpsim.protocols.verdicts import longer_text, verdict_of
from dpsim.units import BOLTZMANN_EV_PER_K

_MEV = 1000.0


@dataclass(frozen=True)
class Nucleus:
    """An element with so many beads. kinetic: meV, centroid virial; difference: primitive less that, meV, of the same
    samples; gyration: A; missing: the part of `kinetic` that so few beads lack, None where that cannot be told."""

    n_beads: int
    kinetic: Estimate
    difference: Estimate
    gyration: Estimate
    missing: Estimate | None


def conclude(
    config: PimdProtocol,
    runs: Sequence[BeadsRun],
    directory: Path,
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
) -> RunOutcome:
    """results.json and report.html; the run with most beads under plain names. Raises Stopped."""
    output, nuclei = AnalysisOutput(), dict[int, dict[str, Nucleus]]()
    done = [run for run in runs if run.failed is None]
    for run in reversed(done):
        if should_stop():
            raise Stopped
        say(f"analysing: {run.n_beads} beads")
        prefix = "" if run is done[-1] else f"beads_{run.n_beads}."
        found = _of_one_run(config, run, nuclei)
        _add(output, found, prefix)
    if nuclei:
        section, curves = _beads_section(config, nuclei, directory / "figures" / "beads.png")
        output.sections.insert(0, section)
        output.curves.extend(curves)
    broken = runs[-1].failed
    if broken is not None:
        output.results.insert(0, failure_of(broken))
    main = (done or runs)[-1].summary
    output.sections.extend(run_sections(main))
    speed = {
        f"{run.n_beads} beads, {name}": f"{stage.result.step} steps, {stage.result.wall_seconds:.1f} s"
        for run in runs
        for name, stage in run.summary.stages.items()
    }
    facts = {"beads": ", ".join(str(run.n_beads) for run in runs), **run_facts(main)}
    outcome = conclude_run(directory, config.name, output, origin_of(config, speed), facts, say)
    return outcome if broken is None else replace(outcome, failure=str(broken.failure))


def _add(output: AnalysisOutput, found: AnalysisOutput, prefix: str) -> None:
    """Results and curves of fewer beads have a prefix, and no sections but the figures of curves."""
    label = f"{prefix.rstrip('.').replace('beads_', '')} beads: " if prefix else ""
    output.results.extend(replace(r, name=prefix + r.name, label=label + r.label) for r in found.results)
    output.curves.extend(replace(c, name=prefix + c.name, label=label + c.label) for c in found.curves)
    output.warnings.extend(label + text for text in found.warnings)
    output.sections.extend(replace(s, title=label + s.title) for s in found.sections)


def _of_one_run(config: PimdProtocol, run: BeadsRun, nuclei: dict[int, dict[str, Nucleus]]) -> AnalysisOutput:
    """The numbers of a run, and the analyses of molecular dynamics; `nuclei` gets what the figure over beads needs."""
    part = sample(run.summary.stages[SAMPLING], None)
    found = nuclei[run.n_beads] = _nuclei(config, run, part)
    output = AnalysisOutput(warnings=unsettled([part]))
    for element, nucleus in found.items():
        output.results.extend(_results(config, element, nucleus))
        most = run.n_beads == config.beads[-1]  # that fewer lack more is what they are there for
        if most and nucleus.missing is not None and nucleus.missing.value > config.missing:
            output.warnings.append(
                f"{run.n_beads} beads lack at least {100.0 * nucleus.missing.value:.0f} % of the kinetic energy of "
                f"{element}: too few. Use more."
            )
    output.results.extend(averages_of([part], SAMPLING))
    output.sections.append(_samples_section(run, part, found))
    for analysis in config.analyses:
        if isinstance(analysis, RdfAnalysis) and not analysis.skip:
            analysis = analysis.model_copy(update={"skip": 1e3 * part.skipped_ps})
        more = run_analysis(analysis, run.context)
        output.results.extend(more.results)
        output.curves.extend(more.curves)
        output.sections.extend(more.sections)
        output.warnings.extend(text for text in more.warnings if text not in output.warnings)
    return output


def _columns(run: BeadsRun, part: Sample) -> tuple[np.ndarray, dict[str, np.ndarray], list[str]]:
    """Times that count, the estimators there, and the elements."""
    from ase.data import chemical_symbols

    numbers = part.stage.result.state.numbers.tolist()
    elements = [chemical_symbols[z] for z in dict.fromkeys(numbers)]
    table = read_estimators(part.stage.directory, elements)
    counted = table["time_ps"] >= part.skipped_ps - 1e-9
    return table["time_ps"][counted], {name: values[counted] for name, values in table.items()}, elements


def _nuclei(config: PimdProtocol, run: BeadsRun, part: Sample) -> dict[str, Nucleus]:
    _, table, elements = _columns(run, part)
    found = {}
    for element in elements:
        kinetic = mean_with_error(_MEV * table[f"{element}_centroid_virial_eV"])
        difference = _MEV * (table[f"{element}_primitive_eV"] - table[f"{element}_centroid_virial_eV"])
        squared = mean_with_error(table[f"{element}_squared_gyration_A2"])
        radius = math.sqrt(squared.value)
        gyration = replace(squared, value=radius, error=0.5 * squared.error / radius if radius else 0.0)
        missing = _missing(kinetic, config.temperature, run.n_beads)
        found[element] = Nucleus(run.n_beads, kinetic, mean_with_error(difference), gyration, missing)
    return found


def _missing(kinetic: Estimate, temperature: float, n_beads: int) -> Estimate | None:
    """With the error that follows from that of the kinetic energy."""
    low, middle, high = (
        missing_energy((kinetic.value + sign * kinetic.error) / _MEV, temperature, n_beads) for sign in (-1, 0, 1)
    )
    if low is None or middle is None or high is None:
        return None
    return replace(kinetic, value=middle, error=0.5 * abs(high - low))


def _results(config: PimdProtocol, element: str, nucleus: Nucleus) -> list[Result]:
    """The numbers of one element, and whether its two kinetic energies agree."""
    name, kinetic = f"kinetic_energy.{element}", nucleus.kinetic
    classical = 1.5 * _MEV * BOLTZMANN_EV_PER_K * config.temperature
    text = f"{kinetic.value / classical:.3f} times the classical 3/2 kT, {classical:.2f} meV."
    results = [Result(name, f"Kinetic energy of {element}, centroid virial", kinetic.value, kinetic.error, "meV/atom",
                      explanation=text)]  # fmt: skip
    if nucleus.n_beads == 1:
        return results
    apart = replace(
        nucleus.difference,
        value=nucleus.difference.value / kinetic.value,
        error=nucleus.difference.error / kinetic.value,
    )
    accepted = -config.consistency, config.consistency
    verdict = verdict_of(apart.interval(), accepted) if apart.reliable else "UNDECIDED"
    why = "The springs and the forces must tell the same kinetic energy, with any number of beads."
    if verdict == "UNDECIDED":
        why += f" {longer_text(apart.value, apart.interval(), accepted)}"
    if verdict == "FAIL":
        why += " They do not: reduce the time step, or equilibrate longer."
    results.append(
        Result(f"{name}.consistency", f"{element}: primitive less centroid virial, relative", apart.value, apart.error,
               "", config.consistency, verdict, why)
    )  # fmt: skip
    if nucleus.missing is not None:
        why = (
            "Of an isotropic oscillator with this kinetic energy and so many beads; in harmonic motion that is not the "
            "same in all directions it is more."
        )
        results.append(
            Result(f"{name}.missing", f"{element}: part of the kinetic energy that the beads lack, at least",
                   nucleus.missing.value, nucleus.missing.error, explanation=why)
        )  # fmt: skip
    why = "Root mean square distance of the beads from their centroid."
    results.append(Result(f"gyration_radius.{element}", f"Radius of gyration of {element}", nucleus.gyration.value,
                          nucleus.gyration.error, "A", explanation=why))  # fmt: skip
    return results


def _samples_section(run: BeadsRun, part: Sample, nuclei: Mapping[str, Nucleus]) -> Section:
    """Series of the kinetic energies with their running means, and a table."""
    times, table, elements = _columns(run, part)
    series = {}
    for element in elements:
        values = _MEV * table[f"{element}_centroid_virial_eV"]
        if len(values) >= MIN_SAMPLES and np.ptp(values) > 1e-9 * np.abs(values).max():
            series[f"{element}: kinetic\nenergy (meV)"] = convergence(times, values)
    figures = []
    if series:
        path = plot_convergence(run.context.figures / "kinetic_energy.png", series)
        caption = f"{run.n_beads} beads, centroid virial; {left_out([part])}."
        figures.append(Figure(path, caption))
    rows = [
        (
            element,
            format_value(n.kinetic.value, n.kinetic.error),
            format_value(n.difference.value, n.difference.error),
            format_value(n.gyration.value, n.gyration.error),
            "–" if n.missing is None else f"{100.0 * n.missing.value:.1f} %",
        )
        for element, n in nuclei.items()
    ]
    header = (
        "element",
        "kinetic energy (meV)",
        "primitive − centroid virial (meV)",
        "radius of gyration (Å)",
        "lacking",
    )
    return Section("Nuclei", figures=figures, table=Table(header, rows))


def _beads_section(
    config: PimdProtocol, nuclei: Mapping[int, Mapping[str, Nucleus]], path: Path
) -> tuple[Section, list[Curve]]:
    """The kinetic energies against the number of beads."""
    elements = list(next(iter(nuclei.values())))
    points = {element: [nuclei[p][element] for p in sorted(nuclei)] for element in elements}
    plot_beads(path, points, config.temperature)
    caption = (
        "Kinetic energy against the number of beads, bars of two standard errors. The line is what an isotropic "
        "oscillator has that agrees at the largest number, its limit dashed: more is missing where some directions are "
        "stiffer than others, as in a bond. Classical mechanics is dotted."
    )
    curves = [
        Curve(f"kinetic_energy.{element}.beads", f"Kinetic energy of {element}", "beads", "kinetic energy (meV)",
              [n.n_beads for n in found], [n.kinetic.value for n in found], [n.kinetic.error for n in found])
        for element, found in points.items() if len(found) > 1
    ]  # fmt: skip
    return Section("Are the beads enough?", figures=[Figure(path, caption)]), curves


def plot_beads(path: str | Path, points: Mapping[str, Sequence[Nucleus]], temperature_K: float) -> Path:
    """A panel for each element; points by rising numbers of beads."""
    if not points:
        raise DataError("`points` is empty; expected at least one element. Leave the figure out.")
    classical = 1.5 * _MEV * BOLTZMANN_EV_PER_K * temperature_K
    with figure(path, 1, len(points), height=3.4) as (canvas, axes):
        for ax, (element, found) in zip(axes[0], points.items(), strict=True):
            last = found[-1]
            frequency = harmonic_frequency(last.kinetic.value / _MEV, temperature_K, last.n_beads)
            ax.axhline(classical, color=GREY, lw=1.0, ls=(0, (1, 2)), label="classical")
            if frequency and last.n_beads > 1:
                beads = np.unique(np.geomspace(1, 4 * last.n_beads, 40).astype(int))
                curve = _MEV * harmonic_curve(frequency, temperature_K, beads)
                ax.plot(beads, curve, color=GREY, lw=1.2, label="oscillator")
                limit = 3.0 * _MEV * oscillator_energy(frequency, temperature_K)
                ax.axhline(limit, color="black", lw=1.0, ls=(0, (5, 3)), label="its limit")
            values = np.array([n.kinetic.value for n in found])
            errors = 2.0 * np.array([n.kinetic.error for n in found])
            ax.errorbar([n.n_beads for n in found], values, errors, fmt="o", color=BLUE, ms=6, mec="white", capsize=3,
                        label="this run", zorder=4)  # fmt: skip
            ax.set_xscale("log", base=2)
            ax.set_title(element)
            ax.set_xlabel("beads")
            ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes[0, 0].set_ylabel("kinetic energy (meV)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper right", ncols=4, borderaxespad=0.2)
    return Path(path)
