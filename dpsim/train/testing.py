"""`dpsim test`: the errors of a model as a table, as JSON and as a parity plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from dpsim.analysis.figures import plot_parity
from dpsim.models.checkpoint import find_model, load_model
from dpsim.models.container import atomic_write
from dpsim.train.evaluate import QUANTITIES, Pairs, SetErrors, evaluate

_HEADINGS = {"energy": "energy meV/atom", "forces": "forces meV/Å", "virial": "virial meV/atom"}


def check_model(
    model: str | Path,
    data: Sequence[str | Path],
    output: str | Path | None = None,
    max_frames: int | None = None,
    precision: Literal["float32", "float64"] | None = None,
    console: Console | None = None,
) -> list[SetErrors]:
    """Compare a model with labelled data, print the table, and write test.json and parity.png.

    Args: model: path or name; data: one set per path; output: folder for the files (None: write none);
    max_frames: per set, evenly spread (None: all).
    Raises: ModelFileError, DataError, ElementError.
    """
    loaded = load_model(model, precision=precision)
    results = evaluate(loaded, data, max_frames)
    console = console or Console()
    console.print(table(results))
    if output is not None:
        folder = Path(output)
        sha256 = loaded.metadata.get("sha256", "")
        write_json(folder / "test.json", results, {"path": str(find_model(model)), "sha256": sha256})
        plot = write_parity(folder / "parity.png", results)
        console.print(f"written to {folder / 'test.json'}" + (f" and {plot}" if plot else ""), highlight=False)
    return results


def total(results: Sequence[SetErrors]) -> SetErrors:
    """All sets together, every frame and every component counting alike."""
    merged = SetErrors("all", sum(r.n_frames for r in results))
    for name in QUANTITIES:
        merged.pairs[name] = Pairs(
            [a for r in results for a in r.pairs[name].label], [a for r in results for a in r.pairs[name].predicted]
        )
    return merged


def table(results: Sequence[SetErrors]) -> Table:
    """MAE and RMSE per set beside the spread of the labels; all sets together in the last row."""
    shown = [q for q in QUANTITIES if any(r.pairs[q].metrics()["n"] for r in results)]
    out = Table(title="Errors of the model", caption="σ: standard deviation of the labels", title_justify="left")
    out.add_column("set", overflow="fold")
    out.add_column("frames", justify="right")
    for q in shown:
        for heading in (f"{_HEADINGS[q]}\nMAE", "\nRMSE", "\nσ"):
            out.add_column(heading, justify="right")
    rows = list(zip(_short_names(results), results, strict=True))
    if len(results) > 1:
        rows.append(("all", total(results)))
    for name, result in rows:
        if name == "all":
            out.add_section()
        cells = [name, str(result.n_frames)]
        for q in shown:
            metrics = result.pairs[q].metrics()
            cells += [_cell(metrics.get(k)) for k in ("mae", "rmse", "label_std")]
        out.add_row(*cells)
    return out


def write_json(path: str | Path, results: Sequence[SetErrors], model: dict[str, Any]) -> None:
    """Errors of every set and of all together: {"model": ..., "sets": [...], "all": ...}."""
    content = {"model": model, "sets": [r.metrics() for r in results], "all": total(results).metrics()}
    atomic_write(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def write_parity(path: str | Path, results: Sequence[SetErrors]) -> Path | None:
    """A parity plot of all sets together; energies relative to their mean. None if there is nothing to show."""
    panels = {}
    for name, pairs in total(results).pairs.items():
        label, predicted = pairs.arrays()
        if len(label):
            zero = label.mean() if name == "energy" else 0.0
            unit = QUANTITIES[name].replace("A", "Å")
            title = f"energy − mean ({unit})" if name == "energy" else f"{name} ({unit})"
            panels[title] = (label - zero, predicted - zero)
    return plot_parity(path, panels) if panels else None


def _short_names(results: Sequence[SetErrors]) -> list[str]:
    """The names of the sets without what all of them begin with."""
    paths = [Path(r.name) for r in results]
    if len({p.parts for p in paths}) < len(paths) or len(paths) == 1:
        return ["/".join(p.parts[-2:]) for p in paths]
    common = 0
    while len({p.parts[common] if common < len(p.parts) - 1 else object() for p in paths}) == 1:
        common += 1
    return ["/".join(p.parts[common:]) for p in paths]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
