"""The model card: what a model is, for what, from what, how good, at what cost; kept in the provenance of its file.

`dpsim show` prints it first. It is plain data (JSON), keys in the order in which they are read:

    model, description, purpose [str], elements [str], data [{name, frames, sha256}], teacher {name, identity},
    rounds [{...}], errors {name: number}, acceptance {verdict, date, criteria [...]}, cost {teacher, student},
    licence, limits [str]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from dpsim.analysis.statistics import format_value

if TYPE_CHECKING:
    from dpsim.distill.accept import Acceptance

KEY = "card"
_COSTS = (("speed", "seconds", 1e6, "µs per atom and step"), ("memory", "bytes", 2.0**-10, "KiB per atom"))
_STYLE = {"PASS": "green", "FAIL": "red", "UNDECIDED": "yellow", "INFO": "dim"}


def make_card(
    acceptance: Acceptance | None = None,
    *,
    provenance: Mapping[str, Any] | None = None,
    purpose: Sequence[str] = (),
    rounds: Sequence[Mapping[str, Any]] = (),
    limits: Sequence[str] = (),
) -> dict[str, Any]:
    """A card, of what is known.

    Args:
        acceptance: the test, with conditions, teacher, criteria and costs.
        provenance: of the model's file (`model.metadata["provenance"]`); default: that of the student tested. From it
            come name, training data with their hashes, errors on validation data, licence, elements.
        purpose: what the model is for, in words; default: the conditions of the test.
        rounds: of a distillation, plain data for each: any of round, frames, accurate, candidate, failed, labelled,
            force_error, ... in the order to show them. Default: those of the card that the file has already.
        limits: what it is not for; what can be told from the rest is added.
    """
    if provenance is None and acceptance is not None:
        from dpsim.models.checkpoint import read_header

        provenance = read_header(str(acceptance.student.source))["provenance"]
    origin = dict(provenance or {})
    training = _training(origin)
    test = acceptance.to_json() if acceptance is not None else {}
    conditions = test.get("conditions", [])
    card: dict[str, Any] = {
        "model": origin.get("name") or test.get("student", {}).get("name", "a model without a name"),
        "description": origin.get("description"),
        "purpose": list(purpose) or [f"simulations of {c}" for c in conditions],
        "elements": _elements(origin),
        "data": _data(origin.get("data")),
        "teacher": test.get("teacher") or _teacher(origin),
        "rounds": [dict(r) for r in rounds or _rows((origin.get(KEY) or {}).get("rounds"))],
        "errors": training.get("metrics", {}),
        "acceptance": {k: test[k] for k in ("verdict", "date", "criteria") if k in test},
        "cost": test.get("costs", {}),
        "licence": origin.get("licence"),
        "limits": [*limits, *_limits(acceptance, conditions)],
    }
    return {key: value for key, value in card.items() if value not in (None, [], {}, "")}


def add_card(path: str | Path, card: Mapping[str, Any]) -> None:
    """Write a card into a .dpsim file; everything else in it stays. Atomic."""
    from dpsim.models.checkpoint import load_model, save_model

    model = load_model(path)
    save_model(path, model, {**model.metadata.get("provenance", {}), KEY: dict(card)})


def render_card(card: Mapping[str, Any]) -> Lines:
    """For the terminal: what anybody may write into a file is shown as text, whatever it is."""
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(card):
        facts.add_row(name, Text(text))
    parts: list[Any] = [Text(f"Model card: {card.get('model', '')}", style="bold underline"), facts]
    if rounds := _rows(card.get("rounds")):
        parts += [Text(), _plain_table("Rounds", rounds)]
    acceptance = card.get("acceptance")
    if isinstance(acceptance, Mapping):
        parts += [Text(), _acceptance_table(acceptance)]
    return Lines(*parts, Text())


def _facts(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The lines of a card that are not tables."""
    for key in ("description", "purpose", "elements"):
        if card.get(key):
            yield key, _listed(card[key])
    for entry in _rows(card.get("data")):
        frames = f", {entry['frames']} frames" if entry.get("frames") else ""
        digest = f", sha256 {str(entry['sha256'])[:16]}" if entry.get("sha256") else ""
        yield "data", f"{entry.get('name', '?')}{frames}{digest}"
    teacher = card.get("teacher")
    if isinstance(teacher, Mapping):
        digest = str(teacher.get("identity") or teacher.get("sha256") or "")
        yield "teacher", f"{teacher.get('name') or '?'}{f' ({digest[:16]})' if digest else ''}"
    errors = card.get("errors")
    if isinstance(errors, Mapping):
        yield "errors", ", ".join(f"{k.replace('_', ' ')} {_number(v)}" for k, v in errors.items())
    yield from _cost_lines(card.get("cost"))
    if card.get("licence"):
        yield "licence", str(card["licence"])
    for limit in card.get("limits") or ():
        yield "limits", str(limit)


def _cost_lines(costs: Any) -> Iterator[tuple[str, str]]:
    """Speed and memory beside the teacher's."""
    if not isinstance(costs, Mapping) or not isinstance(costs.get("student"), Mapping):
        return
    student, teacher = costs["student"], costs.get("teacher")
    for name, key, scale, unit in _COSTS:
        value, other = student.get(key), teacher.get(key) if isinstance(teacher, Mapping) else None
        if not isinstance(value, int | float) or value <= 0:
            continue
        against = ""
        if isinstance(other, int | float):
            against = f"; teacher {format_value(scale * other, digits=3)}, {other / value:.3g} times as much"
        yield name, f"{format_value(scale * value, digits=3)} {unit}{against}"


def _acceptance_table(acceptance: Mapping[str, Any]) -> Table:
    """The criteria, a row each."""
    verdict = str(acceptance.get("verdict", "?"))
    table = Table(title=f"Acceptance: {verdict} ({acceptance.get('date', 'no date')})", title_justify="left")
    table.add_column("criterion", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("threshold", justify="right")
    table.add_column("verdict")
    for row in _rows(acceptance.get("criteria")):
        value, error, limit = row.get("value"), row.get("error"), row.get("threshold")
        number = (
            format_value(value, error if isinstance(error, float) else None) if isinstance(value, int | float) else "–"
        )
        shown = "" if limit is None else limit if isinstance(limit, str) else f"≤ {_number(limit)}"
        mark = str(row.get("verdict", ""))
        table.add_row(
            Text(str(row.get("label", row.get("name", "?")))),
            Text(f"{number} {row.get('unit', '')}".strip()),
            Text(str(shown)),
            Text(mark, style=_STYLE.get(mark, "")),
        )
    return table


def _plain_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    for key in keys:
        table.add_column(str(key).replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(Text(_number(row.get(key))) for key in keys))
    return table


def _training(origin: Mapping[str, Any]) -> Mapping[str, Any]:
    """How the model was trained; of a compressed one, how its teacher was."""
    training = origin.get("training")
    if not isinstance(training, Mapping):
        compressed = origin.get("teacher")
        training = compressed.get("training") if isinstance(compressed, Mapping) else None
    return training if isinstance(training, Mapping) else {}


def _teacher(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Who labelled the frames of a distillation, or what a table was made from."""
    for found in (origin.get("distillation"), origin):
        teacher = found.get("teacher") if isinstance(found, Mapping) else None
        if isinstance(teacher, str):
            return {"name": teacher}
        if isinstance(teacher, Mapping):
            return {key: teacher[key] for key in ("name", "sha256") if teacher.get(key)}
    return {}


def _data(found: Any) -> list[dict[str, Any]]:
    """Name, frames and hash of each training set; of several tasks, all of theirs."""
    if not isinstance(found, Mapping):
        return []
    if "train" not in found:
        return [entry for task in found.values() for entry in _data(task)]
    return [{k: entry[k] for k in ("name", "frames", "sha256") if k in entry} for entry in _rows(found["train"])]


def _elements(origin: Mapping[str, Any]) -> list[str]:
    """Those that the model was trained on."""
    found = origin.get("elements")
    if isinstance(found, Mapping):
        return sorted({str(e) for group in found.values() for e in group})
    return [str(e) for e in found] if isinstance(found, list) else []


def _limits(acceptance: Acceptance | None, conditions: Sequence[str]) -> list[str]:
    """What the test itself says of where the model may be used."""
    if acceptance is None:
        return ["Not tested against its teacher in simulations."]
    limits = [f"Tested only for {', '.join(conditions)}: elsewhere, watch the model deviation."]
    for verdict, text in (("FAIL", "Failed"), ("UNDECIDED", "Undecided for want of statistics")):
        labels = [r.label for r in acceptance.results if r.verdict == verdict]
        if labels:
            limits.append(f"{text}: {'; '.join(labels)}.")
    return limits


def _rows(value: Any) -> list[Mapping[str, Any]]:
    """The mappings in a list; a file may hold anything."""
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list | tuple) else []


def _listed(value: Any) -> str:
    return ", ".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return format_value(value, digits=3)
    return "–" if value is None else str(value)
