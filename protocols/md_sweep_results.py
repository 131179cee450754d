"""What follows from the points of an `md-sweep`: numbers of each condition, how they depend on it, how models differ.

Replicas are analysed together, as independent runs of one system. Whether they scatter more than their errors allow is
tested; so is, between models under the same conditions, every difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dpsim.analysis.comparison import differences, file_name, holm, plot_curves, plot_series, scatter_p_value
from dpsim.analysis.report import Curve, Figure, Result, Section, Table
from dpsim.analysis.statistics import format_value
from dpsim.protocols.analysis_table import run_analysis
from dpsim.protocols.context import AnalysisContext, AnalysisOutput, StageRecord
from dpsim.protocols.md_sweep import Condition, condition_of
from dpsim.protocols.provenance import origin_of
from dpsim.protocols.rundir import conclude_run
from dpsim.protocols.sweep import FinishedPoint

if TYPE_CHECKING:
    from dpsim.protocols.md_sweep import MdSweep

CONDITIONS = "conditions"
ALPHA = 0.05  # of models that differ, and of replicas that scatter: by Holm's rule
_MOST_FIGURES = 12
_MOST_CURVES = 10  # in one figure
_MOST_COLUMNS = 6
_MOST_ROWS = 20  # of differences, unless more are significant
_VARY = ("temperature_K", "pressure_bar", "model")
_Row = Sequence[str | float | int | None]


@dataclass(frozen=True)
class Measured:
    """What is known of one condition: numbers and curves, named as in a run of its own.

    alone: what each replica says by itself, where analyses do not pool, named `<point>.<name>`.
    """

    results: dict[str, Result]
    curves: dict[str, Curve]
    alone: dict[str, Result] = field(default_factory=dict)


def conclude(sweep: MdSweep, points: Sequence[FinishedPoint], figures: Path) -> AnalysisOutput:
    """Numbers, curves, figures and warnings of all conditions that have a finished point."""
    output = AnalysisOutput()
    measured: dict[Condition, Measured] = {}
    for condition in dict.fromkeys(map(condition_of, points)):
        replicas = [point for point in points if condition_of(point) == condition]
        if sweep.replicas == 1:
            measured[condition] = _of_one(replicas[0], output)
        else:
            folder = figures.parent / CONDITIONS / condition.key
            measured[condition] = _of_replicas(sweep.name, condition, replicas, folder, output)
    for condition, of_one in measured.items():
        prefix, words = (f"{condition.key}.", f", {condition.words}") if condition.key else ("", "")
        output.results.extend(replace(r, name=prefix + r.name, label=r.label + words) for r in of_one.results.values())
        output.results.extend(of_one.alone.values())
        output.curves.extend(replace(c, name=prefix + c.name, label=c.label + words) for c in of_one.curves.values())
    if sweep.replicas > 1:
        output.warnings.extend(_scatter(points))
    sections = [_numbers(sweep, measured), _dependence(measured, figures), _curves(measured, figures)]
    if sweep.compare:
        sections.insert(0, _models(sweep, measured))
    output.sections.extend(section for section in sections if section.figures or section.table)
    return output


def _of_one(point: FinishedPoint, output: AnalysisOutput) -> Measured:
    """What the run of a condition says itself."""
    output.warnings.extend(f"{point.key}: {text}" for text in point.warnings)
    return Measured(dict(point.results), {curve.name: curve for curve in point.curves})


def _of_replicas(
    title: str, condition: Condition, replicas: Sequence[FinishedPoint], folder: Path, output: AnalysisOutput
) -> Measured:
    """The analyses of all replicas together, with a report of their own; of those that do not pool, what each says."""
    folder.mkdir(parents=True, exist_ok=True)
    found = _pooled(replicas, folder)
    together = {result.name: result for result in found.results}
    alone = {
        f"{point.key}.{name}": replace(result, name=f"{point.key}.{name}", label=f"{result.label}, {point.key}")
        for point in replicas
        for name, result in point.results.items()
        if result.verdict != "INFO" and not _is_pooled(name, found.results)
    }
    found.results.extend(alone.values())
    origin = origin_of(replicas[0].point.protocol, {point.key: f"points/{point.key}" for point in replicas})
    facts = {"replicas": str(len(replicas))}
    conclude_run(folder, ", ".join(filter(None, (title, condition.words))), found, origin, facts, lambda text: None)
    where = f"{condition.words}: " if condition.words else ""
    output.warnings.extend(where + text for text in found.warnings)
    return Measured(together, {curve.name: curve for curve in found.curves}, alone)


def _pooled(replicas: Sequence[FinishedPoint], folder: Path) -> AnalysisOutput:
    """The analyses of all replicas together."""
    found = AnalysisOutput()
    protocol = replicas[0].point.protocol
    stages: dict[str, StageRecord] = {
        f"{point.labels['replica']}.{name}": stage for point in replicas for name, stage in point.stages.items()
    }
    types = dict(zip(protocol.stage_names(), (stage.type for stage in protocol.stages), strict=True))
    for analysis in protocol.analyses:
        if analysis.pools:
            last = [name for name, kind in types.items() if kind in analysis.stage_types][-1:]
            names = [name for name in stages if name.partition(".")[2] in (analysis.named_stages() or last)]
            made = run_analysis(analysis.model_copy(update={"stages": tuple(names)}), AnalysisContext(folder, stages))
            found.results.extend(made.results)
            found.curves.extend(made.curves)
            found.sections.extend(made.sections)
            found.warnings.extend(text for text in made.warnings if text not in found.warnings)
    return found


def _is_pooled(name: str, results: Sequence[Result]) -> bool:
    """Whether a number of one replica is of an analysis that was made of all: `sample.rdf.` is the start of both."""
    start = ".".join(name.split(".")[:2])
    return any(result.name.startswith(start) for result in results)


def _scatter(points: Sequence[FinishedPoint]) -> list[str]:
    """A warning for numbers of which replicas differ by more than their errors allow, by Holm's rule."""
    by_number: dict[tuple[str, str], list[Result]] = {}
    for point in points:
        for result in point.results.values():
            by_number.setdefault((condition_of(point).words, result.name), []).append(result)
    p_values = {key: scatter_p_value(results) for key, results in by_number.items()}
    warnings = []
    for words, name in holm(p_values, ALPHA):
        p = p_values[words, name]
        values = "; ".join(format_value(r.value, r.error) for r in by_number[words, name] if r.value is not None)
        warnings.append(
            f"Replicas differ in `{name}`{' at ' + words if words else ''} by more than their errors allow "
            f"(p = {p:.1g}): {values}. They had not come to the same equilibrium, or are too short for their errors."
        )
    return warnings


def _models(sweep: MdSweep, measured: Mapping[Condition, Measured]) -> Section:
    """Every number of every other model against that of `model` under the same conditions."""
    by_model: dict[str, list[Result]] = {label: [] for label in sweep.labelled}
    for condition, of_one in measured.items():
        assert condition.model is not None  # as there are several
        where = condition.without("model").words
        for name, result in of_one.results.items():
            by_model[condition.model].append(replace(result, name=f"{where}: {name}" if where else name))
    found = sorted((d for d in differences(by_model, ALPHA) if d.error is not None), key=lambda d: d.p)
    significant = sum(d.significant for d in found)
    rows: list[_Row] = []
    for d in found[: max(significant, _MOST_ROWS)]:
        where = d.name.rpartition(": ")[0]
        rows.append((_with_unit(d.a), where, d.run, d.in_errors, _cell(d.b), _cell(d.a)))
    text = (
        f"{significant} of {len(found)} differences from {sweep.label} are larger than chance explains (✱, Holm's rule "
        f"at {100 * ALPHA:g} %). Standard errors are taken as known, and runs as independent."
    )
    if len(found) > len(rows):
        text += f" The {len(rows)} largest:"
    header = ("number", "at", "model", "differs by", "", sweep.label)
    return Section("Do the models differ?", text, table=_table(header, rows))


def _numbers(sweep: MdSweep, measured: Mapping[Condition, Measured]) -> Section:
    """What was measured: columns are temperatures, pressures or models, the first that vary; the rest are rows."""
    across = next((key for key in _VARY if 1 < len({getattr(c, key) for c in measured}) <= _MOST_COLUMNS), None)
    cells: dict[tuple[str, str], dict[str, Result]] = {}
    for condition, of_one in measured.items():
        rest, column = (condition, "") if across is None else (condition.without(across), condition.only(across).words)
        for result in of_one.results.values():
            cells.setdefault((_with_unit(result), rest.words), {})[column] = result
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    place = {name: k for k, name in enumerate(dict.fromkeys(name for name, _ in cells))}
    ordered = sorted(cells.items(), key=lambda item: place[item[0][0]])  # what is of one name together
    rows: list[_Row] = [(name, rest, *(_cell(row.get(column)) for column in columns)) for (name, rest), row in ordered]
    text = f"`{CONDITIONS}` has a report of each, of all replicas together." if sweep.replicas > 1 else ""
    return Section("Numbers", text, table=_table(("number", "at", *columns), rows) if rows else None)


def _table(header: Sequence[str], rows: Sequence[_Row]) -> Table:
    """Without the second column, the condition, where it says nothing."""
    if any(row[1] for row in rows):
        return Table(header, rows)
    return Table((header[0], *header[2:]), [(row[0], *row[2:]) for row in rows])


def _with_unit(result: Result) -> str:
    return f"{result.label} ({result.unit})" if result.unit else result.label


def _cell(result: Result | None) -> str | None:
    return None if result is None or result.value is None else format_value(result.value, result.error)


def _dependence(measured: Mapping[Condition, Measured], figures: Path) -> Section:
    """Each number against what is swept: the temperature, or the pressure."""
    axes = {"temperature_K": "temperature (K)", "pressure_bar": "pressure (bar)"}
    key = next((key for key in axes if len({getattr(condition, key) for condition in measured}) > 1), None)
    if key is None:
        return Section("Against the condition")
    x_label = axes[key]
    by_name: dict[str, dict[str, dict[float, Result]]] = {}
    for condition, of_one in measured.items():
        line = condition.without(key).words
        for name, result in of_one.results.items():
            if result.value is not None and result.error is not None:
                by_name.setdefault(name, {}).setdefault(line, {})[getattr(condition, key)] = result
    shown = {name: lines for name, lines in by_name.items() if any(len(points) > 1 for points in lines.values())}
    plots = []
    for name, lines in list(shown.items())[:_MOST_FIGURES]:
        one = next(iter(next(iter(lines.values())).values()))
        path = plot_series(figures / f"against_{file_name(name)}.png", one.label, one.unit, x_label, lines)
        plots.append(Figure(path, f"`{name}`: bars of two standard errors."))
    left = f" The other {len(shown) - len(plots)} are in results.json." if len(shown) > len(plots) else ""
    return Section(f"Against {x_label.partition(' (')[0]}", left.strip(), figures=plots)


def _curves(measured: Mapping[Condition, Measured], figures: Path) -> Section:
    """The same curve under all conditions; of each model by itself where one figure would hold too many."""
    split = len(measured) > _MOST_CURVES
    by_figure: dict[tuple[str, str], dict[str, Curve]] = {}
    for condition, of_one in measured.items():
        for name, curve in of_one.curves.items():
            part = (condition.model or "") if split else ""
            by_figure.setdefault((name, part), {})[condition.words or "all replicas"] = curve
    plots = []
    for (name, part), curves in by_figure.items():
        file = f"curves_{file_name('_'.join(filter(None, (name, part))))}.png"
        path = plot_curves(figures / file, curves)
        plots.append(Figure(path, f"{next(iter(curves.values())).label} (`{name}`), bands of two standard errors."))
    return Section("Curves", figures=plots)
