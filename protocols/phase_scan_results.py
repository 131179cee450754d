"""What follows from the runs of a phase scan: numbers and transitions, with figures, phases.csv and mean structures.

What is judged, and under which names, is in phase_scan_verdicts.py.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpsim.analysis import phases
from dpsim.analysis.phases import LATTICE, OrderParameter, phase_point, read_snapshots
from dpsim.analysis.report import Figure, Section, Table
from dpsim.analysis.statistics import Estimate, format_value
from dpsim.analysis.transitions import TransitionSearch, find_transitions
from dpsim.errors import ConfigError, DataError
from dpsim.files import atomic_write
from dpsim.protocols.context import AnalysisOutput
from dpsim.protocols.phase_scan import OffCentring, PhaseScan, Strain, ValueReference
from dpsim.protocols.phase_scan_verdicts import (
    ScanPoint,
    Searches,
    Series,
    chosen_symmetry,
    hysteresis_results,
    judge_transitions,
    judge_values,
    point_results,
    symmetry_results,
    transition_results,
)
from dpsim.protocols.structures import load_structure
from dpsim.protocols.sweep import FinishedPoint

if TYPE_CHECKING:
    from dpsim.analysis.phase_figures import ScanBranch


def conclude(scan: PhaseScan, finished: Sequence[FinishedPoint], figures: Path) -> AnalysisOutput:
    """Numbers, figures and warnings of the points that have finished."""
    points, warnings = measure(scan, finished)
    if not points:
        return AnalysisOutput(warnings=warnings)
    all_series = series_of(scan, points)
    searched = [name for name in (*(o.name for o in scan.order_parameters), "volume") if _varies(points, name)]
    searches = {(s.branch, s.suffix, name): _search(scan, s, name) for s in all_series for name in searched}
    output = AnalysisOutput(warnings=warnings)
    output.results.extend(judge_values(scan, points))
    output.results.extend(judge_transitions(scan, all_series, searches))
    output.results.extend(transition_results(scan, searches))
    output.results.extend(symmetry_results(scan, all_series))
    output.results.extend(hysteresis_results(scan, searches))
    output.results.extend(point_results(scan, points))
    table = write_table(figures.parent / "phases.csv", scan, points)
    _write_structures(figures.parent / "mean_structures", points)
    output.sections.extend(_sections(scan, all_series, searches, figures, table.name))
    return output


def measure(scan: PhaseScan, finished: Sequence[FinishedPoint]) -> tuple[list[ScanPoint], list[str]]:
    """Every temperature and pressure that was simulated, and warnings about those that settled late or were short."""
    done = {point.key: point for point in finished}
    orders = order_parameters_of(scan)
    points, warnings = [], []
    for at in scan.scan():
        record = done[at.point].stages.get(at.stage) if at.point in done else None
        if record is None:
            continue
        where = f"{at.branch}, {at.temperature_K:g} K, {at.pressure_bar:g} bar"
        skipped = int(np.ceil(scan.skip / scan.trajectory_every - 1e-9))
        try:
            snapshots = read_snapshots(record.topology, record.trajectory, skipped)
        except DataError as error:
            warnings.append(f"{where}: left out: {error}")
            continue
        structure = scan.structure
        if at.branch != scan.branches[0] and scan.back_structure is not None:
            structure = scan.back_structure
        found = phase_point(snapshots, orders, scan.cells, structure.repeat, scan.tolerances, scan.mobile)
        points.append(ScanPoint(at, found))
        if not found.settled:
            late = ", ".join(name for name in found.values if name in found.late)
            warnings.append(f"{where}: in the second half of its time still drift {late}. Simulate it for longer.")
        elif not found.values["volume"].reliable:
            warnings.append(f"{where}: short beside the correlation time of its volume; errors may be too small.")
    return points, warnings


def order_parameters_of(scan: PhaseScan) -> dict[str, OrderParameter]:
    """The order parameters by name. Raises ConfigError for groups of atoms that the structure has not."""
    atoms = load_structure(scan.structure, scan.seed)
    for element in scan.mobile:
        _group(atoms, "mobile", element)
    if set(atoms.symbols) <= set(scan.mobile):
        raise ConfigError(
            f"`mobile` is {list(scan.mobile)}: nothing is left; expected some of the elements. Shorten it."
        )
    made: dict[str, OrderParameter] = {}
    for order in scan.order_parameters:
        if isinstance(order, OffCentring):
            centres, around = (_group(atoms, name, getattr(order, name)) for name in ("atoms", "neighbours"))
            made[order.name] = phases.off_centring(centres, around, order.count, order.average == "magnitude")
        elif isinstance(order, Strain):
            cubic = np.diag(np.asarray(scan.cells, dtype=np.float64))
            cell = cubic if order.reference == "cubic" else atoms.cell.array
            made[order.name] = phases.strain(cell, order.average == "magnitude")
        else:
            made[order.name] = phases.c_over_a(scan.cells, None if order.axis == "auto" else "abc".index(order.axis))
    return made


def series_of(scan: PhaseScan, points: Sequence[ScanPoint]) -> list[Series]:
    """The points in branches."""
    several = len(scan.pressures) > 1 and scan.along == "temperature"
    found = []
    for branch in scan.branches:
        for pressure in scan.pressures if several else (None,):
            mine = [p for p in points if p.at.branch == branch and pressure in (None, p.at.pressure_bar)]
            suffix = "" if pressure is None else f".{pressure:g}bar"
            if mine:
                found.append(Series(branch, suffix, sorted(mine, key=lambda p: p.x(scan))))
    return found


# ---- results, table, figures ---------------------------------------------------------------------------------------


def write_table(path: Path, scan: PhaseScan, points: Sequence[ScanPoint]) -> Path:
    """phases.csv: a line for each temperature and pressure; values and standard errors."""
    names = [*LATTICE, *(order.name for order in scan.order_parameters)]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = [column for name in names for column in (name, f"{name}_error")]
    writer.writerow(["branch", "temperature_K", "pressure_bar", *head, "space_group", "equilibration_ps", "settled"])
    for p in points:
        values = [number for name in names for number in (p.found.values[name].value, p.found.values[name].error)]
        group = chosen_symmetry(p.found)[1]
        writer.writerow(
            [p.at.branch, p.at.temperature_K, p.at.pressure_bar, *(f"{v:.8g}" for v in values), group,
             f"{p.found.equilibration_ps:g}", int(p.found.settled)]
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text.getvalue().encode())
    return path


def _write_structures(folder: Path, points: Sequence[ScanPoint]) -> None:
    """The mean structures, as extxyz."""
    from ase import Atoms
    from ase.io import write

    folder.mkdir(parents=True, exist_ok=True)
    for point in points:
        at, found = point.at, point.found
        atoms = Atoms(list(found.symbols), scaled_positions=found.fractions, cell=found.cell, pbc=True)
        write(folder / f"{at.branch}_{at.temperature_K:g}K_{at.pressure_bar:g}bar.extxyz", atoms)


def _sections(
    scan: PhaseScan,
    all_series: Sequence[Series],
    searches: Searches,
    figures: Path,
    table: str,
) -> list[Section]:
    from dpsim.analysis.phase_figures import plot_phase_scan

    xlabel = "temperature (K)" if scan.along == "temperature" else "pressure (bar)"
    drawn = []
    for suffix in dict.fromkeys(s.suffix for s in all_series):
        branches = [_branch(scan, s) for s in all_series if s.suffix == suffix]
        path = figures / f"phases{suffix.replace('.', '_')}.png"
        plot_phase_scan(path, branches, _panels(scan, suffix, searches), xlabel)
        caption = f"Filled: {branches[0].name}" + (f"; open: {branches[1].name}" if len(branches) > 1 else "")
        caption += ". Bars are 95 % intervals, shaded the intervals of transitions; grey points had not settled."
        drawn.append(Figure(path, caption))
    rows: list[Sequence[str | float | int | None]] = [_row(scan, p) for series in all_series for p in series.points]
    header = ("branch", "T (K)", "P (bar)", *("a (A)", "b (A)", "c (A)", "α (°)", "β (°)", "γ (°)", "V (A^3)"),
              *(order.name for order in scan.order_parameters), "space group", "equilibration (ps)")  # fmt: skip
    text = (
        "Lattice constants and volume are those of one unit cell. "
        f"All numbers are in `{table}`, the mean structures in `mean_structures`."
    )
    return [Section("Phases", text, figures=drawn), Section("Every point", table=Table(header, rows))]


def _panels(scan: PhaseScan, suffix: str, searches: Searches) -> list[Any]:
    from dpsim.analysis.phase_figures import ScanPanel

    def spans(quantity: str) -> list[tuple[str, float, float]]:
        return [(b, t.low, t.high) for (b, s, q), found in searches.items() if (s, q) == (suffix, quantity)
                for t in found.transitions]  # fmt: skip

    def references(*quantities: str) -> list[tuple[float, float]]:
        return [(_reference_x(scan, r), r.value) for r in scan.references if r.quantity in quantities]

    labels = {"strain": "strain", "c_over_a": "$c/a$"}
    units = {order.name: "(Å)" for order in scan.order_parameters if isinstance(order, OffCentring)}
    panels = [
        ScanPanel("lattice (Å)", ("a", "b", "c"), (), references("a", "b", "c")),
        ScanPanel("volume (Å³)", ("volume",), spans("volume"), references("volume")),
    ]
    for order in scan.order_parameters:
        label = f"{labels.get(order.name, order.name.replace('_', ' '))} {units.get(order.name, '')}".strip()
        panels.append(ScanPanel(label, (order.name,), spans(order.name), references(order.name)))
    return panels


def _branch(scan: PhaseScan, series: Series) -> ScanBranch:
    from dpsim.analysis.phase_figures import ScanBranch

    names = [*LATTICE, *(order.name for order in scan.order_parameters)]
    values: dict[str, list[Estimate]] = {name: [p.found.values[name] for p in series.points] for name in names}
    settled = {name: [name not in p.found.late for p in series.points] for name in names}
    return ScanBranch(series.branch, [p.x(scan) for p in series.points], values, settled)


def _row(scan: PhaseScan, point: ScanPoint) -> Sequence[str | float | int | None]:
    names = [*LATTICE, *(order.name for order in scan.order_parameters)]
    values = [format_value(point.found.values[n].value, point.found.values[n].error) for n in names]
    late = "" if point.found.settled else " (not settled)"
    at = point.at
    return (at.branch, at.temperature_K, at.pressure_bar, *values, chosen_symmetry(point.found)[1],
            f"{point.found.equilibration_ps:g}{late}")  # fmt: skip


def _search(scan: PhaseScan, series: Series, quantity: str) -> TransitionSearch:
    """Transitions among all points: those at one settle last, and without them it would be found elsewhere."""
    estimates = [p.found.values[quantity] for p in series.points]
    x, y, errors = [p.x(scan) for p in series.points], [e.value for e in estimates], [e.error for e in estimates]
    found = find_transitions(x, y, errors, scan.significance, scan.seed)
    if late := [f"{p.x(scan):g}" for p in series.points if quantity in p.found.late]:
        found = replace(found, explanation=f"{found.explanation} Had not settled: {', '.join(late)}.")
    return found


def _varies(points: Sequence[ScanPoint], name: str) -> bool:
    """Whether a quantity is more than a constant, as c/a is in a cell that keeps its shape."""
    values = np.array([p.found.values[name].value for p in points])
    return bool(np.ptp(values) > 1e-5 * max(1e-3, float(np.abs(values).max())))


def _group(atoms: Any, name: str, wanted: str | tuple[int, ...]) -> list[int]:
    if isinstance(wanted, str):
        found = [k for k, symbol in enumerate(atoms.get_chemical_symbols()) if symbol == wanted]
        known = f"one of the elements {sorted(set(atoms.get_chemical_symbols()))}"
    else:
        found = list(wanted) if wanted and min(wanted) >= 0 and max(wanted) < len(atoms) else []
        known = f"indices 0 ... {len(atoms) - 1}"
    if not found:
        raise ConfigError(f"`{name}` is {wanted!r}; expected {known}, or a list. Correct it.")
    return found


def _reference_x(scan: PhaseScan, reference: ValueReference) -> float:
    values = scan.temperatures if scan.along == "temperature" else scan.pressures
    given = reference.temperature if scan.along == "temperature" else reference.pressure
    return values[0] if given is None else given
