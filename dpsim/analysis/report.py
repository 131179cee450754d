"""The report of a run: results.json for programs, report.html for people. Both are written atomically.

results.json (schema_version 1):

    {"schema_version": 1, "title": str, "verdict": "PASS" | "FAIL" | "UNDECIDED" | "INFO", "summary": str,
     "warnings": [str],
     "results": [{"name": str, "label": str, "value": number | null, "error": number | null, "unit": str,
                  "threshold": number | str | null, "verdict": as above, "explanation": str}],
     "curves": [{"name": str, "label": str, "x_label": str, "y_label": str,
                 "x": [number], "y": [number | null], "error": [number | null] | null}],
     "provenance": {...}}

`name` identifies a result and never changes its meaning; `error` is one standard error; numbers that are not finite
are null. Readers must ignore keys they do not know; a change that breaks them raises schema_version.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dpsim.analysis.page import page, plain
from dpsim.analysis.structure_view import StructureView
from dpsim.errors import DataError
from dpsim.files import atomic_write

SCHEMA_VERSION = 1
Verdict = Literal["PASS", "FAIL", "UNDECIDED", "INFO"]


@dataclass(frozen=True)
class Result:
    """One number of a report, and whether it passes.

    A numeric threshold is an upper limit on |value|; another criterion is written out, as in "2.73 ± 0.05".
    """

    name: str
    label: str
    value: float | None
    error: float | None = None
    unit: str = ""
    threshold: float | str | None = None
    verdict: Verdict = "INFO"
    explanation: str = ""


@dataclass(frozen=True)
class Curve:
    """A function of one variable, for `dpsim compare` and other programs: x, y and one standard error of y, (n,)."""

    name: str
    label: str
    x_label: str
    y_label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    error: Sequence[float] | np.ndarray | None = None


@dataclass(frozen=True)
class Figure:
    """An image file and what it shows."""

    path: Path
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """A plain table; numbers are aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | float | int | None]]


@dataclass(frozen=True)
class Section:
    """A part of the report. Blank lines in `text` separate paragraphs; `backticks` mark code; `code` is kept as is.

    structure: atoms to look at from all sides.
    """

    title: str
    text: str = ""
    figures: Sequence[Figure | Path] = field(default_factory=tuple)
    table: Table | None = None
    code: str = ""
    structure: StructureView | None = None


def overall_verdict(results: Iterable[Result]) -> Verdict:
    """FAIL if any result fails, else UNDECIDED if any is, else PASS if any passes; INFO if nothing was judged."""
    verdicts = {result.verdict for result in results}
    ranked: tuple[Verdict, ...] = ("FAIL", "UNDECIDED", "PASS")
    return next((verdict for verdict in ranked if verdict in verdicts), "INFO")


def write_results_json(
    path: str | Path,
    results: Sequence[Result],
    provenance: Mapping[str, Any],
    *,
    title: str = "",
    summary: str = "",
    warnings: Sequence[str] = (),
    curves: Sequence[Curve] = (),
) -> Path:
    """Write results.json (schema in this module), atomically.

    Raises:
        DataError: two results of one name.
    """
    for what, items in (("results", results), ("curves", curves)):
        names = [item.name for item in items]
        if double := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"`{what}` has the names {double} twice; expected different names. Rename one of each.")
    document = {
        "schema_version": SCHEMA_VERSION,
        "title": title,
        "verdict": overall_verdict(results),
        "summary": summary,
        "warnings": list(warnings),
        "results": [asdict(result) for result in results],
        "curves": [asdict(curve) for curve in curves],
        "provenance": dict(provenance),
    }
    text = json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write(path, f"{text}\n".encode())
    return Path(path)


def read_results_json(path: str | Path) -> dict[str, Any]:
    """What `write_results_json` wrote, with `results` as a list of Result, `curves` of Curve. Raises DataError."""
    path = Path(path)
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        if document["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"its schema_version is {document['schema_version']}, not {SCHEMA_VERSION}")
        for key, kind in (("results", Result), ("curves", Curve)):
            known = kind.__dataclass_fields__
            found = document.get(key, [])
            document[key] = [kind(**{k: v for k, v in item.items() if k in known}) for item in found]
        return document
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"`{path}` cannot be read ({error}); expected the results.json of a run.") from error


def write_report(
    directory: str | Path,
    title: str,
    results: Sequence[Result],
    sections: Sequence[Section],
    provenance: Mapping[str, Any],
    *,
    summary: str = "",
    facts: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
) -> Path:
    """Write `directory`/report.html: one file with everything inside, that needs no network.

    Args:
        directory: where to write.
        title: headline.
        results: the numbers, in the order to show them; the verdict is `overall_verdict(results)`.
        sections: what follows: figures, tables, text.
        provenance: how it was made (protocol, model and its hash, versions, seed, hardware, ...); a mapping inside
            it becomes a group.
        summary: the verdict in a sentence or two; by default the results that fail.
        facts: a few key figures under the verdict, {"simulated": "2.0 ps"}.
        warnings: things the reader must know before trusting the numbers.

    Returns:
        The path of the report.

    Raises:
        DataError: a figure that is missing or of an unknown type.
    """
    verdict = overall_verdict(results)
    text = page(title, verdict, results, sections, provenance, summary=summary, facts=facts, warnings=warnings)
    path = Path(directory) / "report.html"
    atomic_write(path, text.encode())
    return path
