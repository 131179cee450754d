"""`dpsim compare RUN RUN ...`: the numbers and curves of several runs beside each other, and whether they differ.

A run is the folder that `dpsim run` left, or a file like its results.json: measurements and the numbers of other codes
need `schema_version`, `title`, `results` and `curves`. Each number is compared with that of the first run which has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from dpsim.analysis.comparison import Difference, curve_distance, differences, file_name, plot_curves, plot_values
from dpsim.analysis.report import (
    Curve,
    Figure,
    Result,
    Section,
    Table,
    read_results_json,
    write_report,
    write_results_json,
)
from dpsim.analysis.statistics import format_value
from dpsim.errors import ConfigError
from dpsim.protocols.provenance import version
from dpsim.protocols.rundir import RESULTS, RunOutcome

ALPHA = 0.05
_MOST_FIGURES = 6  # of single numbers: those that differ most
_Row = Sequence[str | float | int | None]


def compare_runs(runs: Sequence[str], output: Path, console: Console | None = None) -> RunOutcome:
    """Read the runs, write report.html and results.json to the folder `output`, print the numbers.

    Raises: ConfigError, DataError naming the run that cannot be read, or cannot be told from another.
    """
    console = console or Console(highlight=False)
    documents = _read(runs)
    results = {run: document["results"] for run, document in documents.items()}
    found = differences(results, ALPHA)
    if not found:
        raise ConfigError(f"the runs {list(documents)} have no number in common; expected some. Compare similar runs.")
    summary = _summary(found)
    title = " and ".join(documents) if len(documents) < 4 else f"{len(documents)} runs"
    table = _numbers(documents, found)
    sections = [_what_differs(documents), Section("Numbers", _EXPLAINED, _figures(results, found, output), table)]
    sections.append(_curves(documents, output))
    origin = {"dpsim": version("dpsim"), "runs": {run: document["source"] for run, document in documents.items()}}
    path = write_results_json(output / RESULTS, [_as_result(d) for d in found], origin, title=title, summary=summary)
    report = write_report(
        output, f"Comparison of {title}", [], [s for s in sections if s.figures or s.table], origin, summary=summary
    )
    console.print(_printed(table))
    console.print(f"{summary}\n{report}", soft_wrap=True)
    return RunOutcome(output, "INFO", report, path, False, summary)


_EXPLAINED = (
    "Each value with one standard error; then, for each run, its difference from the first in standard errors of that "
    f"difference. ✱ marks differences that are significant at {100 * ALPHA:g} % by Holm's rule, which allows for their "
    "number. Standard errors are taken as those of independent runs."
)


def _read(runs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The documents by label: given as `label=path`, else the title, else the folder where titles are the same."""
    if len(runs) < 2:
        raise ConfigError(f"`runs` is {list(runs)}; expected two or more. Name their folders.")
    found: list[tuple[str, Path, dict[str, Any]]] = []
    for text in runs:
        label, equals, path = text.partition("=")
        place = Path(path if equals else text)
        file = place / RESULTS if place.is_dir() else place
        found.append((label if equals else "", place, read_results_json(file) | {"source": str(file)}))
    titles = [document.get("title", "") for _, _, document in found]
    labels = [
        label or (title if title and titles.count(title) == 1 else place.resolve().stem)
        for (label, place, _), title in zip(found, titles, strict=True)
    ]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigError(f"`runs` has {twice} twice; expected names that differ. Write label=path.")
    return {label: document for label, (_, _, document) in zip(labels, found, strict=True)}


def _what_differs(documents: Mapping[str, dict[str, Any]]) -> Section:
    """What the runs say of how they were made, where they say different things."""
    made = {run: _flat(document.get("provenance", {})) for run, document in documents.items()}
    keys = list(dict.fromkeys(key for facts in made.values() for key in facts))
    rows: list[_Row] = []
    for key in keys:
        values = [made[run].get(key) for run in made]
        if len(set(values)) > 1 and not key.startswith(("date", "speed")):
            rows.append((key, *values))
    return Section("What differs", table=Table(("", *documents), rows) if rows else None)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as one level: "model sha256"; hashes shortened."""
    flat: dict[str, str] = {}
    for key, value in facts.items():
        name = f"{prefix} {key}".strip()
        if isinstance(value, Mapping):
            flat |= _flat(value, name)
        elif not isinstance(value, list):
            flat[name] = str(value)[:12] if "sha256" in name else str(value)
    return flat


def _numbers(documents: Mapping[str, dict[str, Any]], found: Sequence[Difference]) -> Table:
    """A row for each number that two runs have."""
    by_name = {run: {r.name: r for r in document["results"]} for run, document in documents.items()}
    differs = {(d.name, d.run): d for d in found}
    rows: list[_Row] = []
    for name in dict.fromkeys(d.name for d in found):
        values = [by_name[run].get(name) for run in documents]
        one = next(r for r in values if r is not None)
        cells = [None if r is None or r.value is None else format_value(r.value, r.error) for r in values]
        apart = [d.in_errors if (d := differs.get((name, run))) else None for run in list(documents)[1:]]
        rows.append((name, one.unit, *cells, *apart))
    return Table(("number", "unit", *documents, *(f"{run} differs by" for run in list(documents)[1:])), rows)


def _figures(results: Mapping[str, Sequence[Result]], found: Sequence[Difference], output: Path) -> list[Figure]:
    """The numbers that differ most in their standard errors, as points with bars."""
    worst = sorted((d for d in found if d.error is not None), key=lambda d: -abs(d.z))
    figures = []
    for name in list(dict.fromkeys(d.name for d in worst if d.significant))[:_MOST_FIGURES]:
        values = {run: r for run, of_run in results.items() for r in of_run if r.name == name and r.value is not None}
        one = next(iter(values.values()))
        path = plot_values(output / "figures" / f"{file_name(name)}.png", one.label, one.unit, values)
        figures.append(Figure(path, f"`{name}`: bars of two standard errors."))
    return figures


def _curves(documents: Mapping[str, dict[str, Any]], output: Path) -> Section:
    """A figure for each curve that two runs have."""
    by_name: dict[str, dict[str, Curve]] = {}
    for run, document in documents.items():
        for curve in document["curves"]:
            by_name.setdefault(curve.name, {})[run] = curve
    figures = []
    for name, curves in by_name.items():
        if len(curves) < 2:
            continue
        path = plot_curves(output / "figures" / f"curve_{file_name(name)}.png", curves)
        figures.append(Figure(path, f"{next(iter(curves.values())).label} (`{name}`).{_distances(curves)}"))
    return Section("Curves", figures=figures)


def _distances(curves: Mapping[str, Curve]) -> str:
    """How far each is from the first."""
    (first, a), *others = curves.items()
    found = {run: distance for run, b in others if (distance := curve_distance(a, b)) is not None}
    if not found:
        return ""
    parts = ", ".join(f"{run} {distance:.2g}" for run, distance in found.items())
    return f" Rms difference from {first} in standard errors, about 1 by chance: {parts}."


def _summary(found: Sequence[Difference]) -> str:
    judged = [d for d in found if d.error is not None]
    significant = [d for d in judged if d.significant]
    if not judged:
        return f"{len(found)} differences; none has error bars on both sides, so none can be judged."
    if not significant:
        return f"None of {len(judged)} differences is larger than chance explains."
    names = ", ".join(dict.fromkeys(d.name for d in sorted(significant, key=lambda d: d.p)))
    return f"{len(significant)} of {len(judged)} differences are larger than chance explains: {names}."


def _as_result(d: Difference) -> Result:
    chance = "" if d.error is None else f" {d.z:+.2f} standard errors, p = {d.p:.2g}."
    text = f"{format_value(d.b.value, d.b.error)} against {format_value(d.a.value, d.a.error)} in {d.first}.{chance}"
    if d.significant:
        text += " More than chance explains."
    return Result(
        f"{d.run}.{d.name}", f"{d.a.label}: {d.run} less {d.first}", d.value, d.error, d.a.unit, None, "INFO", text
    )


def _printed(table: Table) -> RichTable:
    """The same table in a terminal."""
    out = RichTable()
    for k, heading in enumerate(table.header):
        out.add_column(str(heading), justify="right" if k > 1 else "left", overflow="fold", no_wrap=k == 0)
    for row in table.rows:
        out.add_row(*("–" if cell is None else str(cell) for cell in row))
    return out
