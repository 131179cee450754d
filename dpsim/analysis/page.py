"""The HTML of a report: one page with its style, scripts and figures inside, that needs no network.

Every figure is there as an image; a script (web/*.js) draws those that carry their data (figure_data.py) again, to zoom
and to point at. Without scripts, or where one fails, the image stays.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpsim.analysis.figure_data import split_data
from dpsim.analysis.statistics import format_value
from dpsim.analysis.structure_view import StructureView, view_data
from dpsim.errors import DataError

if TYPE_CHECKING:
    from dpsim.analysis.report import Figure, Result, Section, Table, Verdict

_FEW = 6  # numbers without a verdict that need no folding
_SYMBOL = {"PASS": "✓ PASS", "FAIL": "✗ FAIL", "UNDECIDED": "? UNDECIDED", "INFO": "INFO"}
_IMAGE_TYPES = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg"}
_SCRIPTS = ("tools.js", "plot.js", "structure.js", "report.js")
_LINKS = 3  # sections from which on a list of them helps
_COLORS = 128  # of the copies of figures in the page: a third of the size, and no difference to see


def page(
    title: str,
    verdict: Verdict,
    results: Sequence[Result],
    sections: Sequence[Section],
    provenance: Mapping[str, Any],
    *,
    summary: str = "",
    facts: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """The whole page; arguments as of `report.write_report`. Raises DataError."""
    parts = [
        f"<header><h1>{escape(title)}</h1>{_kicker(provenance)}</header>",
        _verdict(verdict, summary or _default_summary(verdict, results)),
        _warnings(warnings),
        _facts(facts or {}),
        _links([*(["Results"] if results else []), *(s.title for s in sections), "How it was made"]),
        _results(results),
        *[_section(section) for section in sections],
        _provenance(provenance),
        "<footer>Uncertainties are one standard error (±) and allow for correlated samples; "
        "intervals and verdicts use 95 % confidence. Machine-readable numbers: results.json.</footer>",
    ]
    body = "\n".join(part for part in parts if part)
    script = f'<script>\n(() => {{\n"use strict";\n{"".join(map(_file, _SCRIPTS))}}})();\n</script>\n'
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{verdict}: {escape(title)}</title>\n<style>\n{_file('report.css')}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n</main>\n{script if 'application/json' in body else ''}</body>\n</html>\n"
    )


def _file(name: str) -> str:
    return files("dpsim.analysis").joinpath("web", name).read_text(encoding="utf-8")


def _id(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"


def _links(titles: Sequence[str]) -> str:
    """The sections, to jump to."""
    if len(titles) <= _LINKS:
        return ""
    links = "".join(f'<a href="#{_id(title)}">{escape(title)}</a>' for title in dict.fromkeys(titles))
    return f'<nav aria-label="sections">{links}</nav>'


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
    """What was judged; what was not is folded below it, where both are there and it is long."""
    if not results:
        return ""
    judged = [result for result in results if result.verdict != "INFO"]
    others = [result for result in results if result.verdict == "INFO"]
    title = '<h2 id="results">Results</h2>\n'
    if not judged or len(others) <= _FEW:
        return title + _result_table(results)
    folded = f"<details><summary>{len(others)} further numbers</summary>{_result_table(others)}</details>"
    return title + _result_table(judged) + folded


def _result_table(results: Sequence[Result]) -> str:
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
    return f'<table class="results">{head}{"".join(rows)}</table>'


def _threshold(threshold: float | str | None) -> str:
    if threshold is None:
        return ""
    return escape(threshold) if isinstance(threshold, str) else f"≤ {format_value(float(threshold))}"


def _section(section: Section) -> str:
    parts = [f'<h2 id="{_id(section.title)}">{escape(section.title)}</h2>']
    parts += [f"<p>{_inline(text.strip())}</p>" for text in re.split(r"\n\s*\n", section.text) if text.strip()]
    if section.structure is not None:
        parts.append(_structure(section.structure))
    parts += [_figure(Path(item), "") if isinstance(item, Path) else _of(item) for item in section.figures]
    if section.table is not None:
        parts.append(_table(section.table))
    if section.code:
        parts.append(f"<pre>{escape(section.code.rstrip())}</pre>")
    return "<section>" + "\n".join(parts) + "</section>"


def _of(item: Figure) -> str:
    return _figure(Path(item.path), item.caption)


def _figure(path: Path, text: str) -> str:
    """The image, and its data where it carries them."""
    kind = _IMAGE_TYPES.get(path.suffix.lower())
    if kind is None or not path.is_file():
        raise DataError(
            f"`figures` has {path}, which is no image file; expected one of {sorted(_IMAGE_TYPES)}. Write it first."
        )
    content, data = path.read_bytes(), None
    if kind == "image/png":
        content, data = split_data(content)
        content = _smaller(content)
    caption = f"<figcaption>{_inline(text)}</figcaption>" if text else ""
    alt = escape(text or path.stem.replace("_", " "))
    image = f'<img alt="{alt}" src="data:{kind};base64,{base64.b64encode(content).decode("ascii")}">'
    if data is None:
        return f"<figure>{image}{caption}</figure>"
    return f'<figure class="plot">{image}{_embedded(data)}{caption}</figure>'


def _structure(view: StructureView) -> str:
    text = view.caption or f"{len(view.symbols)} atoms."
    lost = "<noscript><p>The view in three dimensions needs scripts to be allowed.</p></noscript>"
    caption = f"<figcaption>{_inline(text)}</figcaption>"
    return f'<figure class="structure">{_embedded(view_data(view))}{lost}{caption}</figure>'


def _embedded(data: Mapping[str, Any]) -> str:
    """Data for the scripts; no `<` in it can end the element."""
    text = json.dumps(plain(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>'


def _smaller(png: bytes) -> bytes:
    """The image with few colors, where that is smaller."""
    try:
        from PIL import Image
    except ImportError:
        return png
    with Image.open(io.BytesIO(png)) as image:
        if image.width < 100:
            return png
        reduced, file = image.convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE), io.BytesIO()
        reduced.save(file, format="PNG", optimize=True)
    return min(png, file.getvalue(), key=len)


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
    return (
        f'<section><h2 id="how-it-was-made">How it was made</h2><dl class="provenance">{"".join(items)}</dl></section>'
    )


def _entry(key: str, value: Any) -> str:
    value = plain(value)
    if isinstance(value, float):
        text = format_value(value)
    elif isinstance(value, list) and all(not isinstance(x, list | dict) for x in value):
        text = ", ".join(str(x) for x in value)
    elif isinstance(value, list | dict):
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = "–" if value is None else str(value)
    return f"<dt>{escape(_words(str(key)))}</dt><dd>{escape(text)}</dd>"


def _words(key: str) -> str:
    return key.replace("_", " ")


def _inline(text: str) -> str:
    """Escaped text with `code` marked and pairs of elements (O-H) kept on one line."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\b([A-Z][a-z]?)-([A-Z][a-z]?)\b", r"\1&#8288;-&#8288;\2", text)


def plain(value: Any) -> Any:
    """The value in JSON's types: NumPy numbers and paths converted, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)
