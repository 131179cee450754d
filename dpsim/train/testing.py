"""`dpsim test`: the errors of models on labelled data as a table, as JSON and as a parity plot.

One model on several sets, or a table of sets (sets.yaml) each with its model or head and its weight in the averages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator, model_validator
from rich.console import Console
from rich.table import Table

from dpsim.analysis.figures import plot_parity
from dpsim.calculators.members import committee_of, members_of
from dpsim.config import FilePath, ModelName, StrictModel
from dpsim.data.readers import open_dataset
from dpsim.data.validation import validate_systems
from dpsim.files import atomic_write
from dpsim.models.checkpoint import find_model, load_model
from dpsim.train.averages import log_weighted_average, weighted_average
from dpsim.train.energy_bias import fit_energy_bias, shift_energy_bias
from dpsim.train.evaluate import QUANTITIES, SPREAD, Pairs, SetErrors, evaluate_systems

_UNITS = {"energy": "meV/atom", "forces": "meV/Å", "virial": "meV/atom"}
_VALIDATED_FRAMES = 20
Precision = Literal["float32", "float64"]


class SetConfig(StrictModel):
    """One data set of a table, and the model to test on it."""

    data: list[FilePath] = Field(min_length=1, description="a path or several: all systems at or below them, one set")
    name: str = Field("", description="in the table; default: the end of the path")
    model: ModelName | None = Field(None, description="model or model:head; default: that of the whole table")
    weight: NonNegativeFloat = Field(1.0, description="in the averages over the sets")
    energy_bias: list[FilePath] = Field(
        [], description="frames (of the training set) that the energy bias is fitted to before the test: zero-shot"
    )

    @field_validator("data", "energy_bias", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value


class SetsConfig(StrictModel):
    """What `dpsim test --table sets.yaml` reads."""

    model: ModelName | None = Field(None, description="of the sets that name none")
    sets: list[SetConfig] = Field(min_length=1)
    frames: PositiveInt | None = Field(None, description="at most this many of each set, evenly spread; default: all")
    precision: Precision | None = Field(None, description="default: the models' own")

    @model_validator(mode="after")
    def _check(self) -> SetsConfig:
        if self.model is None and any(s.model is None for s in self.sets):
            raise ValueError("`model` is absent; expected one, here or in each of `sets`. Add it.")
        if not any(s.weight for s in self.sets):
            raise ValueError("`weight` is 0 in all sets; expected one above 0. Raise it.")
        return self


def check_model(
    model: str | Path,
    data: Sequence[str | Path],
    output: str | Path | None = None,
    max_frames: int | None = None,
    precision: Precision | None = None,
    console: Console | None = None,
    energy_bias: Sequence[str | Path] = (),
    device: str = "cpu",
) -> list[SetErrors]:
    """Compare a model with labelled data, print the table, and write test.json and parity.png.

    Args: model: path or name, or several with commas between them, whose mean it is; data: one set per path;
    output: folder for the files (None: write none);
    max_frames: per set, evenly spread (None: all); energy_bias: data that the energy bias is fitted to first.
    Raises: ModelFileError, DataError, ElementError.
    """
    sets = [SetConfig(data=[Path(path)], name=str(path), energy_bias=[Path(p) for p in energy_bias]) for path in data]
    table = SetsConfig(model=str(model), sets=sets, frames=max_frames, precision=precision)
    return check_sets(table, output, console, device)


def check_sets(
    config: SetsConfig, output: str | Path | None = None, console: Console | None = None, device: str = "cpu"
) -> list[SetErrors]:
    """Test every set of a table with its model, print the errors, and write test.json and parity.png.

    Raises: ModelFileError, DataError, ElementError.
    """
    results = []
    digests: dict[str, str] = {}
    for entry in config.sets:
        name = entry.model or config.model or ""
        members = {n: load_model(n, device=device, precision=config.precision) for n in map(str, members_of(name))}
        digests |= {n: member.metadata.get("sha256", "") for n, member in members.items()}
        fit = None
        for model in members.values() if entry.energy_bias else ():
            fit = fit_energy_bias(model, [s for p in entry.energy_bias for s in open_dataset(p, model.type_map)])
            shift_energy_bias(model, fit.shift)
        calculator = committee_of(list(members.values()))
        systems = [s for path in entry.data for s in open_dataset(path, calculator.type_map)]
        result = evaluate_systems(calculator, systems, entry.name or str(entry.data[0]), config.frames)
        result.model, result.weight = name, entry.weight
        result.shift = fit.by_element() if fit and len(members) == 1 else None
        results.append(result)
    console = console or Console()
    console.print(table(results))
    if output is not None:
        folder = Path(output)
        models = [{"path": str(find_model(name)), "sha256": digest} for name, digest in digests.items()]
        write_json(folder / "test.json", results, models[0] if len(models) == 1 else models)
        plot = write_parity(folder / "parity.png", results)
        console.print(f"written to {folder / 'test.json'}" + (f" and {plot}" if plot else ""), highlight=False)
    return results


def require_sets(config: SetsConfig) -> None:
    """Raise DpsimError where a model or a set of a table cannot be opened, or they do not fit together."""
    for entry in config.sets:
        members = members_of(entry.model or config.model or "")
        type_map = committee_of([load_model(str(name)) for name in members]).type_map
        for path in (*entry.data, *entry.energy_bias):
            validate_systems(open_dataset(path, type_map), type_map, n_frames=_VALIDATED_FRAMES)


def total(results: Sequence[SetErrors]) -> SetErrors:
    """All sets together, every frame and every component counting alike."""
    merged = SetErrors("all", sum(r.n_frames for r in results))
    for name in QUANTITIES:
        merged.pairs[name] = Pairs(
            [a for r in results for a in r.pairs[name].label], [a for r in results for a in r.pairs[name].predicted]
        )
    return merged


def averages(results: Sequence[SetErrors]) -> dict[str, dict[str, dict[str, float]]]:
    """{"WARMSE": {quantity: {"mae": ..., "rmse": ..., "label_std": ...}}, "LWARMSE": ...} over the sets with labels."""
    found: dict[str, dict[str, dict[str, float]]] = {"WARMSE": {}, "LWARMSE": {}}
    for quantity in QUANTITIES:
        metrics = [(r.metrics()[quantity], r.weight) for r in results]
        labelled = [(m, w) for m, w in metrics if m["n"] and w > 0]
        if not labelled:
            continue
        weights = [w for _, w in labelled]
        for key in ("mae", "rmse", "label_std", *([SPREAD] if all(SPREAD in m for m, _ in labelled) else [])):
            errors = [float(m[key]) for m, _ in labelled]
            found["WARMSE"].setdefault(quantity, {})[key] = weighted_average(errors, weights)
            found["LWARMSE"].setdefault(quantity, {})[key] = log_weighted_average(errors, weights)
    return found


def table(results: Sequence[SetErrors]) -> Table:
    """MAE and RMSE of each quantity, set by set, beside the spread of the labels; then all sets, and averages."""
    caption = "σ: standard deviation of the labels, of energies about the best constant for each element"
    if len(results) > 1:
        caption += "; WARMSE, LWARMSE: averages over the sets, of the errors and of their logarithms"
    if any(r.shift for r in results):
        caption += "; *: energy bias fitted to other frames first"
    out = Table(title="Errors of the model", caption=caption, title_justify="left", caption_justify="left")
    out.add_column("set", overflow="fold")
    for heading in ("frames", "MAE", "RMSE", "σ"):
        out.add_column(heading, justify="right", no_wrap=True)
    every = [r.metrics() for r in results]
    names = [n + ("*" if r.shift else "") for n, r in zip(_short_names(results), results, strict=True)]
    merged, means = total(results).metrics(), averages(results)
    for quantity, unit in _UNITS.items():
        if not merged[quantity]["n"]:
            continue
        out.add_row(f"[bold]{quantity}[/bold], {unit}")
        for name, metrics in zip(names, every, strict=True):
            out.add_row(name, str(metrics["n_frames"]), *_cells(metrics[quantity]))
        if len(results) > 1:
            together = merged[quantity] | (
                {"label_std": None} if quantity == "energy" else {}
            )  # of many zeros of energy
            out.add_row("all", str(merged["n_frames"]), *_cells(together))
            for name, by_quantity in means.items():
                out.add_row(name, "", *_cells(by_quantity[quantity]))
        out.add_section()
    return out


def _cells(metrics: Mapping[str, Any]) -> tuple[str, str, str]:
    spread = metrics.get(SPREAD, metrics.get("label_std"))
    return _cell(metrics.get("mae")), _cell(metrics.get("rmse")), _cell(spread)


def write_json(path: str | Path, results: Sequence[SetErrors], model: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Errors of every set, of all together, and averages over sets: {"model", "sets": [...], "all", "averages"}."""
    content = {
        "model": model,
        "sets": [r.metrics() for r in results],
        "all": total(results).metrics(),
        "averages": averages(results),
    }
    atomic_write(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def write_parity(path: str | Path, results: Sequence[SetErrors]) -> Path | None:
    """A parity plot of all sets together; energies relative to the mean of their set. None if there is no label."""
    panels = {}
    for quantity, unit in QUANTITIES.items():
        arrays = [r.pairs[quantity].arrays() for r in results]
        arrays = [(label, predicted) for label, predicted in arrays if len(label)]
        if not arrays:
            continue
        zero = [label.mean() if quantity == "energy" else 0.0 for label, _ in arrays]
        unit = unit.replace("A", "Å")
        title = f"energy − mean ({unit})" if quantity == "energy" else f"{quantity} ({unit})"
        label, predicted = (np.concatenate([pair[k] - z for pair, z in zip(arrays, zero, strict=True)]) for k in (0, 1))
        panels[title] = (label, predicted)
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
