"""The RDF analysis: radial distribution functions with error bars, coordination numbers, agreement with a reference.

Given enough statistics any two models differ, so agreement is judged by size: PASS where the whole 95 % interval of a
difference is within what `criteria` accept, FAIL where all of it is outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpsim.analysis.report import Curve, Figure, Result, Section, Table, Verdict
from dpsim.analysis.statistics import format_value, student_t
from dpsim.analysis.structure import RDF, RDFComparison, Value, compare_rdf, load_rdf_reference, save_rdf
from dpsim.analysis.structure import rdf as compute_rdf
from dpsim.errors import ConfigError, DataError
from dpsim.protocols.analyses import RdfAnalysis, RdfCriteria
from dpsim.protocols.context import AnalysisContext, AnalysisOutput, StageRecord
from dpsim.protocols.sampling import joined_names
from dpsim.protocols.schema import Protocol
from dpsim.protocols.verdicts import judge_distance, longer_text, verdict_of
from dpsim.trajectory import count_frames, open_universe

if TYPE_CHECKING:
    from MDAnalysis import Universe


def run_rdf(analysis: RdfAnalysis, context: AnalysisContext) -> AnalysisOutput:
    """Compute, plot, and compare the RDFs of the chosen stages."""
    from dpsim.analysis.figures import plot_rdf

    stages = rdf_stages(analysis, context)
    label = joined_names(stages)
    universe = _universe(stages)
    pairs = None if analysis.pairs == "all" else [(p.split("-")[0], p.split("-")[1]) for p in analysis.pairs]
    rdfs = compute_rdf(
        universe,
        pairs,
        analysis.r_max,
        analysis.bins,
        analysis.blocks,
        frames=_frames(analysis, stages),
    )
    table = save_rdf(context.directory / f"rdf_{label}.csv", rdfs)
    comparisons, warnings = _compare(analysis, rdfs)
    if short := [item.label for item in rdfs if not item.reliable]:
        warnings.append(
            f"The run is short beside the time in which its structure changes: the error bars of g(r) of "
            f"{', '.join(short)} may be too small."
        )
    results: list[Result] = []
    for item in rdfs:
        results += _describe(item, label)
        comparison = comparisons.get(item.label)
        if comparison is not None:
            results += judge_rdf(item, comparison, analysis.criteria, label)
    path = plot_rdf(context.figures / f"rdf_{label}.png", rdfs, list(comparisons.values()))
    caption = f"Stage {label}: {rdfs[0].n_frames} frames in {rdfs[0].n_blocks} blocks. The numbers are in {table.name}."
    section = Section("Structure", figures=[Figure(path, caption)], table=_shells(rdfs))
    curves = [Curve(f"{label}.rdf.{i.label}", f"g(r) of {i.label}", "r (A)", "g", i.r, i.g, i.g_error) for i in rdfs]
    return AnalysisOutput(results, [section], warnings, curves)


def check_rdf(analysis: RdfAnalysis, protocol: Protocol, atoms: Any) -> None:
    """Raise DpsimError where the file, the elements or the range that it names do not suit the structure."""
    elements = sorted(set(atoms.get_chemical_symbols()))
    if analysis.reference is not None:
        load_rdf_reference(analysis.reference)
    if abs(np.linalg.det(atoms.cell.array)) < 1e-12:
        raise ConfigError("`analyses` has an rdf, but the structure has no cell; expected one. Leave the rdf out.")
    wanted = set() if analysis.pairs == "all" else {e for pair in analysis.pairs for e in pair.split("-")}
    unknown = sorted(wanted - set(elements))
    if unknown:
        raise ConfigError(f"`pairs` has the elements {unknown}; expected those of the structure, {elements}.")
    half = 0.5 / float(np.linalg.norm(atoms.cell.reciprocal(), axis=1).max())
    if analysis.r_max is not None and analysis.r_max > half:
        raise ConfigError(
            f"`r_max` is {analysis.r_max:g} A; expected at most {half:.3f} A, half the smallest height of the "
            "cell. Lower it, or repeat the structure."
        )


def rdf_stages(analysis: RdfAnalysis, context: AnalysisContext) -> list[StageRecord]:
    """The stages to average over: named, or the last dynamics stage."""
    if analysis.stages:
        return [context.stages[name] for name in analysis.stages]
    return [[stage for stage in context.stages.values() if stage.settings.kind != "minimise"][-1]]


def judge_rdf(item: RDF, comparison: RDFComparison, criteria: RdfCriteria, label: str = "") -> list[Result]:
    """The r-factor, and position and height of the first peak: is the whole interval within the criterion?"""
    prefix = f"{label}.rdf.{item.label}" if label else f"rdf.{item.label}"
    text = (
        f"Differs from the reference by {comparison.rms_in_errors:.2g} error bars rms "
        f"({comparison.rms_in_errors_expected:.2g} expected by chance), most at {comparison.largest_r:.2f} A: "
        f"{format_value(comparison.largest.value, comparison.largest.error)}. Errors of the reference: "
        f"{comparison.reference_error}."
    )
    position, height = comparison.peak_position_difference, comparison.peak_height_difference
    relative = abs(comparison.peak_height_reference.value) or 1.0
    scaled = Value(height.value / relative, height.error / relative)
    position_text = _versus(comparison.peak_position, comparison.peak_position_reference, "A")
    height_text = _versus(comparison.peak_height, comparison.peak_height_reference, "")
    return [
        judge_distance(
            f"{prefix}.r_factor", f"{item.label} difference from the reference (r-factor)", comparison.r_factor,
            comparison.r_factor_noise, item.n_blocks, criteria.r_factor, item.reliable, text,
        ),
        _judge_peak(f"{prefix}.peak_position_difference", f"{item.label} first peak, shift", position, "A",
                    criteria.peak_position, item, position_text),
        _judge_peak(f"{prefix}.peak_height_difference", f"{item.label} first peak, relative difference in height",
                    scaled, "", criteria.peak_height, item, height_text),
    ]  # fmt: skip


def _judge_peak(name: str, label: str, difference: Value, unit: str, accepted: float, item: RDF, text: str) -> Result:
    """PASS or FAIL where the whole 95 % interval is within the criterion, or outside; INFO where there is no peak."""
    verdict: Verdict = "INFO"
    if np.isfinite(difference.value):
        half = student_t(0.95, item.n_blocks - 1) * difference.error if np.isfinite(difference.error) else np.inf
        interval = difference.value - half, difference.value + half
        verdict = verdict_of(interval, (-accepted, accepted))
        if verdict == "UNDECIDED":
            text += " " + longer_text(difference.value, interval, (-accepted, accepted))
    return Result(name, label, difference.value, difference.error, unit, accepted, verdict, text)


def _versus(value: Value, reference: Value, unit: str) -> str:
    if not (np.isfinite(value.value) and np.isfinite(reference.value)):
        return "No first peak stands out of the noise in both curves: not judged."
    a, b = format_value(value.value, value.error), format_value(reference.value, reference.error)
    return f"{a} here, {b} in the reference{', in ' + unit if unit else ''}."


def _universe(stages: Sequence[StageRecord]) -> Universe:
    """The stages' trajectories as one."""
    first = open_universe(stages[0].topology, stages[0].trajectory)
    if len(stages) > 1:
        first.load_new([str(stage.trajectory) for stage in stages])
    return first


def _frames(analysis: RdfAnalysis, stages: Sequence[StageRecord]) -> list[int]:
    """The frames of the joined trajectories that lie after `skip` in their stage."""
    frames: list[int] = []
    start = 0
    for stage in stages:
        n = count_frames(stage.trajectory)
        interval = stage.settings.trajectory_every * stage.settings.timestep_fs
        frames += range(start + int(np.ceil(analysis.skip / interval - 1e-9)), start + n)
        start += n
    return frames


def _compare(analysis: RdfAnalysis, rdfs: Sequence[RDF]) -> tuple[dict[str, RDFComparison], list[str]]:
    """Comparisons by pair, and a warning for pairs that the reference lacks."""
    if analysis.reference is None:
        return {}, []
    references = {frozenset(ref.pair): ref for ref in load_rdf_reference(analysis.reference).values()}
    found = {item.label: references[frozenset(item.pair)] for item in rdfs if frozenset(item.pair) in references}
    if not found:
        raise DataError(
            f"`reference` {analysis.reference} has none of the pairs {[item.label for item in rdfs]}; "
            "expected at least one of them. Choose the reference of this system."
        )
    missing = [item.label for item in rdfs if item.label not in found]
    warnings = [f"The reference has no {', '.join(missing)}: not judged."] if missing else []
    return {item.label: compare_rdf(item, found[item.label]) for item in rdfs if item.label in found}, warnings


def _describe(item: RDF, label: str) -> list[Result]:
    """The first peak and the coordination number, as they are."""
    if not item.shells:
        return []
    shell = item.shells[0]
    prefix = f"{label}.rdf.{item.label}"
    results = [
        Result(f"{prefix}.peak_position", f"{item.label} first peak at", *shell.peak_position, "A"),
        Result(f"{prefix}.peak_height", f"{item.label} first peak height", *shell.peak_height),
    ]
    if shell.coordination is not None and shell.minimum_position is not None:
        text = f"{item.pair[1]} around {item.pair[0]} within {shell.minimum_position.value:.2f} A, the first minimum."
        results.append(
            Result(f"{prefix}.coordination", f"{item.label} coordination number", *shell.coordination, explanation=text)
        )
    return results


def _shells(rdfs: Sequence[RDF]) -> Table:
    """Every shell of every pair."""
    rows = []
    for item in rdfs:
        for number, shell in enumerate(item.shells, start=1):
            minimum, inside = shell.minimum_position, shell.coordination
            rows.append((
                item.label, number, format_value(*shell.peak_position), format_value(*shell.peak_height),
                None if minimum is None else format_value(*minimum), None if inside is None else format_value(*inside),
            ))  # fmt: skip
    return Table(("pair", "shell", "peak (A)", "height", "minimum (A)", "neighbours within"), rows)
