"""The adf analysis: angles that neighbours make at an atom, within a coordination shell, against a reference.

Which neighbours count is decided, in this order, by `cutoffs`, by the distance that the reference's column names, and
by `shell`: those between two minima of g(r) of the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpsim.analysis.angles import (
    AngleDistribution,
    AngleReference,
    Shell,
    Triplet,
    angle_distribution,
    column_name,
    load_angle_references,
)
from dpsim.analysis.curves import compare_curve, highest_peak, save_curves
from dpsim.analysis.report import Curve, Figure, Result, Section, Table
from dpsim.analysis.statistics import format_value
from dpsim.analysis.structure import rdf
from dpsim.errors import ConfigError, DataError
from dpsim.protocols.analyses import AdfAnalysis
from dpsim.protocols.context import AnalysisContext, AnalysisOutput
from dpsim.protocols.sampling import joined, label_of, left_out, require_frames, samples, unsettled
from dpsim.protocols.schema import Protocol
from dpsim.protocols.verdicts import judge_curve

if TYPE_CHECKING:
    from MDAnalysis import Universe

_SAME = 1e-3  # A


def run_adf(analysis: AdfAnalysis, context: AnalysisContext) -> AnalysisOutput:
    """Compute, plot, and compare the distributions of the chosen stages."""
    from dpsim.analysis.figures_motion import plot_curves

    parts = samples(analysis, context.stages)
    label, (universe, frames) = label_of(parts), joined(parts)
    references = _references(analysis)
    found: list[AngleDistribution] = []
    for text in analysis.triplets:
        triplet = _elements(text)
        shells = _shells(analysis, triplet, references.get(text), universe, frames)
        found.append(angle_distribution(universe, triplet, shells, analysis.bins, analysis.blocks, frames))
    comparisons = [
        compare_curve(item.curve, references[item.label].curve) for item in found if item.label in references
    ]
    warnings = unsettled(parts)
    if analysis.reference is not None and (missing := [i.label for i in found if i.label not in references]):
        warnings.append(f"The reference has no {', '.join(missing)}: not judged.")
    if short := [item.label for item in found if not item.curve.reliable]:
        warnings.append(
            f"The run is short beside the time in which its structure changes: the error bars of the angles "
            f"{', '.join(short)} may be too small."
        )
    results = [result for item in found for result in _describe(item, label)]
    reliable = {item.label: item.curve.reliable and all(part.settled for part in parts) for item in found}
    results += [
        judge_curve(
            f"{label}.adf.{c.label}.difference",
            f"{c.label} angles, difference from the reference",
            c,
            analysis.difference,
            reliable[c.label],
        )
        for c in comparisons
    ]
    columns = [(column_name(item), item.curve) for item in found]
    table = save_curves(context.directory / f"adf_{label}.csv", "angle_deg", columns)
    path = plot_curves(
        context.figures / f"adf_{label}.png", [i.curve for i in found], "angle (°)", "$P$ (1/°)", comparisons
    )
    caption = f"Stage {label}: {found[0].n_frames} frames; {left_out(parts)}. The numbers are in {table.name}."
    section = Section("Angles", figures=[Figure(path, caption)], table=_table(found))
    curves = [
        Curve(f"{label}.adf.{i.label}", f"Angles {i.label}", "angle (°)", "P (1/°)",
              i.curve.x, i.curve.y, i.curve.y_error)
        for i in found
    ]  # fmt: skip
    return AnalysisOutput(results, [section], warnings, curves)


def check_adf(analysis: AdfAnalysis, protocol: Protocol, atoms: Any) -> None:
    """Raise DpsimError where elements or the reference do not suit the structure."""
    present = sorted(set(atoms.get_chemical_symbols()))
    if unknown := sorted({e for t in analysis.triplets for e in t.split("-")} - set(present)):
        raise ConfigError(f"`triplets` has the elements {unknown}; expected those of the structure, {present}.")
    require_frames(analysis, protocol, lambda interval: analysis.blocks, f", one in each of {analysis.blocks} blocks")
    references = _references(analysis)
    if analysis.reference is not None and not references:
        raise ConfigError(f"`reference` {analysis.reference} has none of {list(analysis.triplets)}. Choose another.")
    for text in analysis.triplets:
        known = _given_cutoffs(analysis, _elements(text), references.get(text))
        if None in known and abs(atoms.cell.volume) < 1e-9:
            raise ConfigError(
                f"`cutoffs` has none for {text}, and the structure has no cell, which g(r) and its shells need; "
                f"expected a distance. Add it, such as cutoffs: {{{text.rpartition('-')[0]}: 3.4 A}}."
            )


def _references(analysis: AdfAnalysis) -> dict[str, AngleReference]:
    """The reference of each triplet that the file has; a-b-c is c-b-a."""
    if analysis.reference is None:
        return {}
    by_triplet = {r.triplet: r for r in load_angle_references(analysis.reference)}
    by_triplet |= {triplet[::-1]: r for triplet, r in by_triplet.items() if triplet[::-1] not in by_triplet}
    return {text: by_triplet[_elements(text)] for text in analysis.triplets if _elements(text) in by_triplet}


def _shells(
    analysis: AdfAnalysis, triplet: Triplet, reference: AngleReference | None, universe: Universe, frames: list[int]
) -> tuple[Shell, Shell]:
    """(from, to) of the distances from the central atom to the first and to the last."""
    first, last = (
        (0.0, cutoff) if cutoff is not None else _shell(analysis, (triplet[1], outer), universe, frames)
        for cutoff, outer in zip(_given_cutoffs(analysis, triplet, reference), triplet[::2], strict=True)
    )
    return first, last


def _given_cutoffs(
    analysis: AdfAnalysis, triplet: Triplet, reference: AngleReference | None
) -> tuple[float | None, float | None]:
    """What the file, or the reference, says about both arms. Raises ConfigError where they contradict each other."""
    given = {frozenset(pair.split("-")): length for pair, length in analysis.cutoffs.items()}
    arms = given.get(frozenset(triplet[:2])), given.get(frozenset(triplet[1:]))
    wanted = None if reference is None else reference.cutoff
    if wanted is None:
        return arms
    if any(arm is not None and abs(arm - wanted) > _SAME for arm in arms):
        raise ConfigError(
            f"`cutoffs` of {'-'.join(triplet)} are {arms} A, but the reference counts neighbours within {wanted:g} A; "
            "expected the same. Leave the cutoffs out."
        )
    return wanted, wanted


def _shell(analysis: AdfAnalysis, pair: tuple[str, str], universe: Universe, frames: list[int]) -> Shell:
    """The shell of that number around the central element, between minima of g(r)."""
    item = rdf(universe, [pair], blocks=min(analysis.blocks, len(frames)), frames=frames)[0]
    minima = [shell.minimum_position for shell in item.shells]
    wanted = minima[: analysis.shell]
    if len(wanted) < analysis.shell or any(m is None for m in wanted):
        raise DataError(
            f"g(r) of {item.label} has {sum(m is not None for m in minima)} minima up to {item.edges[-1]:.2f} A; "
            f"expected {analysis.shell}, to close the shell. Simulate more, or give `cutoffs`: {{{item.label}: 3.4 A}}."
        )
    positions = [0.0, *(m.value for m in wanted if m is not None)]
    return positions[-2], positions[-1]


def _describe(item: AngleDistribution, label: str) -> list[Result]:
    """Mean, width and peak, as they are."""
    prefix = f"{label}.adf.{item.label}"
    peak, _ = highest_peak(item.curve)
    text = f"At each {item.triplet[1]}: {format_value(*item.angles_per_center)} angles, {_range(item)}."
    return [
        Result(f"{prefix}.mean", f"{item.label} mean angle", *item.mean, "°", explanation=text),
        Result(f"{prefix}.width", f"{item.label} standard deviation of the angle", *item.width, "°"),
        Result(f"{prefix}.peak", f"{item.label} most frequent angle", *peak, "°"),
    ]


def _table(found: list[AngleDistribution]) -> Table:
    rows = [
        (i.label, _range(i), format_value(*i.angles_per_center), format_value(*i.mean), format_value(*i.width))
        for i in found
    ]
    return Table(("angle", "neighbours", "angles per atom", "mean (°)", "width (°)"), rows)


def _range(item: AngleDistribution) -> str:
    """In words, which neighbours count."""
    names = (item.triplet[0], item.triplet[2])
    texts = [f"{name} at {near:.2f} to {far:.2f} A" for name, (near, far) in zip(names, item.shells, strict=True)]
    return " and ".join(dict.fromkeys(texts))


def _elements(text: str) -> Triplet:
    first, center, last = text.split("-")
    return first, center, last
