"""The report of a run: results.json for programs, report.html for people. Both are written atomically.

results.json (schema_version 1):

    {"schema_version": 1, "title": str, "verdict": "PASS" | "FAIL" | "UNDECIDED" | "INFO", "summary": str,
     "warnings": [str],
     "results": [{"name": str, "label": str, "value": number | null, "error": number | null, "unit": str,
                  "threshold": number | str | null, "verdict": as above, "explanation": str}],
     "provenance": {...}}

`name` identifies a result and never changes its meaning; `error` is one standard error; numbers that are not finite
are null. Readers must ignore keys they do not know; a change that breaks them raises schema_version.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dpsim.analysis.statistics import format_value
from dpsim.errors import DataError

SCHEMA_VERSION = 1
Verdict = Literal["PASS", "FAIL", "UNDECIDED", "INFO"]

_SYMBOL = {"PASS": "✓ PASS", "FAIL": "✗ FAIL", "UNDECIDED": "? UNDECIDED", "INFO": "INFO"}
_IMAGE_TYPES = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg"}


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
    """A part of the report. Blank lines in `text` separate paragraphs; `backticks` mark code; `code` is kept as is."""

    title: str
    text: str = ""
    figures: Sequence[Figure | Path] = field(default_factory=tuple)
    table: Table | None = None
    code: str = ""


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
) -> Path:
    """Write results.json (schema in this module), atomically.

    Raises:
        DataError: two results of one name.
    """
    names = [result.name for result in results]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise DataError(f"`results` has the names {double} twice; expected different names. Rename one of each.")
    document = {
        "schema_version": SCHEMA_VERSION,
        "title": title,
        "verdict": overall_verdict(results),
        "summary": summary,
        "warnings": list(warnings),
        "results": [asdict(result) for result in results],
        "provenance": dict(provenance),
    }
    text = json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False)
    return _write_atomically(Path(path), text + "\n")


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
    """Write `directory`/report.html: one file with its style and figures inside, that needs no network and no script.

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
    parts = [
        f"<header><h1>{escape(title)}</h1>{_kicker(provenance)}</header>",
        _verdict(verdict, summary or _default_summary(verdict, results)),
        _warnings(warnings),
        _facts(facts or {}),
        _results(results),
        *[_section(section) for section in sections],
        _provenance(provenance),
        "<footer>Uncertainties are one standard error (±) and allow for correlated samples; "
        "intervals and verdicts use 95 % confidence. Machine-readable numbers: results.json.</footer>",
    ]
    style = files("dpsim.analysis").joinpath("report.css").read_text(encoding="utf-8")
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{verdict}: {escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )
    return _write_atomically(Path(directory) / "report.html", page)


def _kicker(provenance: Mapping[str, Any]) -> str:
    """The line under the title: when and by what."""
    parts = [
        f"{key} {provenance[key]}" if key == "dpsim" else str(provenance[key])
        for key in ("date", "dpsim")
        if key in provenance
    ]
    return f'<p class="kicker">{escape(" · ".join(parts))}</p>' if parts else ""


def _default_summary(verdict: Verdict, results: Sequence[Result]) -> str:
    """What fails, or that nothing does."""
    judged = [result for result in results if result.verdict != "INFO"]
    counted = [result for result in judged if result.verdict == verdict]
    if verdict == "INFO":
        return "Nothing was judged: no thresholds were given."
    if verdict == "PASS":
        return f"All {len(judged)} checks hold." if len(judged) > 1 else "The check holds."
    what = "fail" if verdict == "FAIL" else "are undecided, none fails"
    return f"{len(counted)} of {len(judged)} checks {what}: " + ", ".join(result.label for result in counted) + "."


def _verdict(verdict: Verdict, summary: str) -> str:
    return (
        f'<div class="verdict {verdict.lower()}" role="status"><span class="badge">{_SYMBOL[verdict]}</span>'
        f"<p>{_inline(summary)}</p></div>"
    )


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{_inline(text)}</li>" for text in warnings)
    return f'<div class="warnings"><strong>Before trusting these numbers</strong><ul>{items}</ul></div>'


def _facts(facts: Mapping[str, str]) -> str:
    if not facts:
        return ""
    items = "".join(f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{items}</dl>'


def _results(results: Sequence[Result]) -> str:
    if not results:
        return ""
    rows = []
    for result in results:
        limit = _threshold(result.threshold)
        rows.append(
            f'<tbody class="{result.verdict.lower()}"><tr><td class="label">{escape(result.label)}</td>'
            f'<td class="number value">{format_value(result.value, result.error)}'
            f' <span class="unit">{escape(result.unit)}</span></td>'
            f'<td class="number limit{"" if limit else " none"}">{limit or "–"}</td>'
            f'<td class="state"><span class="mark">{_SYMBOL[result.verdict]}</span></td></tr>'
            + (f'<tr><td class="why" colspan="4">{_inline(result.explanation)}</td></tr>' if result.explanation else "")
            + "</tbody>"
        )
    head = (
        '<thead><tr><th>quantity</th><th class="number">value</th><th class="number">threshold</th>'
        "<th>verdict</th></tr></thead>"
    )
    return f'<h2>Results</h2>\n<table class="results">{head}{"".join(rows)}</table>'


def _threshold(threshold: float | str | None) -> str:
    if threshold is None:
        return ""
    return escape(threshold) if isinstance(threshold, str) else f"≤ {format_value(float(threshold))}"


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{_inline(text.strip())}</p>" for text in re.split(r"\n\s*\n", section.text) if text.strip()]
    parts += [_figure(item if isinstance(item, Figure) else Figure(Path(item))) for item in section.figures]
    if section.table is not None:
        parts.append(_table(section.table))
    if section.code:
        parts.append(f"<pre>{escape(section.code.rstrip())}</pre>")
    return "<section>" + "\n".join(parts) + "</section>"


def _figure(item: Figure) -> str:
    path = Path(item.path)
    if path.suffix.lower() not in _IMAGE_TYPES or not path.is_file():
        raise DataError(
            f"`figures` has {path}, which is no image file; expected one of {sorted(_IMAGE_TYPES)}. Write it first."
        )
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    caption = f"<figcaption>{_inline(item.caption)}</figcaption>" if item.caption else ""
    alt = escape(item.caption or path.stem.replace("_", " "))
    kind = _IMAGE_TYPES[path.suffix.lower()]
    return f'<figure><img alt="{alt}" src="data:{kind};base64,{data}">{caption}</figure>'


def _table(table: Table) -> str:
    numeric = [
        all(isinstance(row[k], int | float) or row[k] is None or _looks_numeric(str(row[k])) for row in table.rows)
        for k in range(len(table.header))
    ]
    css = [' class="number"' if n else "" for n in numeric]
    head = "".join(f"<th{c}>{escape(str(h))}</th>" for c, h in zip(css, table.header, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{c}>{_cell(x)}</td>" for c, x in zip(css, row, strict=True)) + "</tr>"
        for row in table.rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _looks_numeric(text: str) -> bool:
    return bool(re.match(r"^[(−\-–]?[\d.]*(\s|$|[±×%])", text))


def _cell(x: str | float | int | None) -> str:
    if x is None:
        return "–"
    return escape(x) if isinstance(x, str) else format_value(float(x))


def _provenance(provenance: Mapping[str, Any]) -> str:
    if not provenance:
        return ""
    single = {k: v for k, v in provenance.items() if not isinstance(v, Mapping)}
    items = [_entry(k, v) for k, v in single.items()]
    for name, group in provenance.items():
        if isinstance(group, Mapping):
            items.append(f'<dt class="group">{escape(_words(name))}</dt>')
            items += [_entry(k, v) for k, v in group.items()]
    return f'<section><h2>How it was made</h2><dl class="provenance">{"".join(items)}</dl></section>'


def _entry(key: str, value: Any) -> str:
    plain = _plain(value)
    if isinstance(plain, float):
        text = format_value(plain)
    elif isinstance(plain, list) and all(not isinstance(x, list | dict) for x in plain):
        text = ", ".join(str(x) for x in plain)
    elif isinstance(plain, list | dict):
        text = json.dumps(plain, ensure_ascii=False)
    else:
        text = "–" if plain is None else str(plain)
    return f"<dt>{escape(_words(str(key)))}</dt><dd>{escape(text)}</dd>"


def _words(key: str) -> str:
    return key.replace("_", " ")


def _inline(text: str) -> str:
    """Escaped text with `code` marked and pairs of elements (O-H) kept on one line."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\b([A-Z][a-z]?)-([A-Z][a-z]?)\b", r"\1&#8288;-&#8288;\2", text)


def _plain(value: Any) -> Any:
    """The value in JSON's types: NumPy numbers and paths converted, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)


def _write_atomically(path: Path, text: str) -> Path:
    """Write beside the target, flush to disk, rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path
