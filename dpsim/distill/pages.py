"""The report of a distillation: what every round found, how the student learned, and what may be expected of it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dpsim.analysis.figures import BLUE, GREEN, GREY, RED, YELLOW, figure
from dpsim.analysis.report import Figure, Section, Table
from dpsim.distill.card import render_card
from dpsim.distill.run import RoundRecord, Run
from dpsim.protocols.provenance import hardware, version

_BINS = 40
_CLASSES = (("accurate", GREEN), ("candidate", YELLOW), ("failed", RED), ("missing", GREY))


def rounds_sections(run: Run, records: Sequence[RoundRecord]) -> list[Section]:
    """How frames were judged, round by round, and what the student learned."""
    folder = run.folder / "figures"
    sections = [_rounds_table(records)]
    if any(r.judged for r in records):
        figures = [
            Figure(plot_deviations(folder / "deviations.png", run, records), _DEVIATIONS),
            Figure(plot_fractions(folder / "fractions.png", run, records), _FRACTIONS),
        ]
        sections.append(Section("How wrong the student was", figures=figures))
    curves = learning_curves(run)
    if curves:
        plot = Figure(plot_learning(folder / "learning.png", curves), _LEARNING)
        sections.append(Section("What the student learned", figures=[plot], table=_training_table(curves)))
    return sections


_DEVIATIONS = (
    "Deviations of the explored frames. Dashed: the trust levels; below the first a frame is accurate, above the "
    "second it has failed, between them it is a candidate for a label."
)
_FRACTIONS = "What the frames of each round are; the condition that is worst decides when the rounds are over (line)."
_LEARNING = "Force error of the student while it trained, round after round: on its own data, and on frames held out."


def _rounds_table(records: Sequence[RoundRecord]) -> Section:
    rows: list[list[str | float | int | None]] = []
    for r in records:
        for name, c in r.counts.items():
            judged = [c.accurate, c.candidate, c.failed] if r.judged else [None, None, None]
            percent = 100 * c.fraction_accurate if r.judged else None
            rows.append([r.number, r.driver, name, *judged, c.missing, c.set_aside, percent, c.chosen])
    header = ["round", "driver", "condition", "accurate", "candidates", "failed", "missing", "set aside", "% accurate"]
    text = (
        "Missing frames were never reached, because their walker exploded or its driver failed; they count as failed. "
        "Frames set aside are those that the teacher could not label. Every frame, its deviation and why it was chosen "
        "or not is in `rounds/NN/select/deviations.csv`."
    )
    return Section("The rounds", text, table=Table([*header, "chosen"], rows))


def plot_deviations(path: Path, run: Run, records: Sequence[RoundRecord]) -> Path:
    """Histograms of the deviations, a row for each judged round."""
    seen = {r.number: deviations(run, r.number) for r in records if r.judged}
    finite = [x[np.isfinite(x) & (x > 0)] for x in seen.values()]
    low, high = run.config.select.trust
    ends = np.concatenate([np.concatenate(finite), [low or high, high]])
    bins = np.geomspace(0.8 * ends.min(), 1.25 * ends.max(), _BINS)
    shown = list(seen)[-8:]
    with figure(path, len(shown), 1, height=0.8 + 1.0 * len(shown), sharex=True) as (_, axes):
        for ax, k in zip(axes[:, 0], shown, strict=True):
            ax.hist(seen[k][np.isfinite(seen[k])], bins=bins, color=BLUE, alpha=0.85)
            for level in (low, high):
                ax.axvline(level, color=RED, lw=1.0, ls=(0, (4, 3)))
            ax.set_ylabel("frames")
            ax.set_title(f"round {k}")
            ax.set_xscale("log")
        axes[-1, 0].set_xlabel("deviation of forces (eV/Å)")
    return path


def plot_fractions(path: Path, run: Run, records: Sequence[RoundRecord]) -> Path:
    """Stacked bars of the classes, a bar for each judged round, and the line that ends the rounds."""
    judged = [r for r in records if r.judged]
    x = np.arange(len(judged))
    with figure(path, 1, 1, height=3.0) as (_, axes):
        ax = axes[0, 0]
        bottom = np.zeros(len(judged))
        total = np.array([max(1, sum(getattr(c, n) for c in r.counts.values() for n, _ in _CLASSES)) for r in judged])
        for name, color in _CLASSES:
            height = np.array([sum(getattr(c, name) for c in r.counts.values()) for r in judged]) / total
            ax.bar(x, height, 0.7, bottom=bottom, color=color, label=name)
            bottom = bottom + height
        ax.plot(x, [r.accurate for r in judged], "o-", color="black", ms=3.5, label="worst condition")
        ax.axhline(run.config.converged.accurate, color="black", lw=0.8, ls=(0, (4, 3)))
        ax.set_xticks(x, [str(r.number) for r in judged])
        ax.set_xlabel("round")
        ax.set_ylabel("fraction of frames")
        ax.set_ylim(0, 1.02)
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return path


@dataclass(frozen=True)
class Curve:
    """The learning curve of one training: step and force errors (meV/A), NaN where there is none."""

    name: str
    step: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    energy: np.ndarray


def learning_curves(run: Run) -> list[Curve]:
    """Those of the first student, in the order of the trainings."""
    folders = [
        run.folder / "start/train",
        *sorted(run.folder.glob("rounds/*/train")),
        *sorted(run.folder.glob("final/*/train")),
    ]
    curves = []
    for folder in folders:
        path = folder / "00" / "lcurve.csv"
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            names = (
                "step",
                "force_rmse_meV_per_A",
                "validation_force_rmse_meV_per_A",
                "validation_energy_rmse_meV_per_atom",
            )
            columns = [np.array([_number(row.get(name)) for row in rows]) for name in names]
            stage, number = folder.relative_to(run.folder).parts[:2]
            curves.append(Curve(f"round {int(number)}" if stage == "rounds" else stage, *columns))
    return curves


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def plot_learning(path: Path, curves: Sequence[Curve]) -> Path:
    """Force errors over the steps of all trainings, one after another."""
    with figure(path, 1, 1, height=3.2) as (_, axes):
        ax, begin = axes[0, 0], 0.0
        for k, curve in enumerate(curves):
            has = np.isfinite(curve.validation)
            ax.plot(begin + curve.step, curve.train, color=BLUE, lw=1.0, label="" if k else "own data")
            ax.plot(
                begin + curve.step[has], curve.validation[has], "o-", color=RED, ms=3, label="" if k else "held out"
            )
            begin += float(curve.step[-1]) if len(curve.step) else 0.0
            ax.axvline(begin, color=GREY, lw=0.6, ls=(0, (4, 3)))
        ax.set_yscale("log")
        for axis in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            axis("{x:g}")
        ax.set_xlabel("training step, all rounds")
        ax.set_ylabel("force RMSE (meV/Å)")
        ax.legend()
    return path


def _training_table(curves: Sequence[Curve]) -> Table:
    rows: list[list[str | float | int | None]] = [
        [c.name, int(c.step[-1]), _last(c.train), _last(c.validation), _last(c.energy)] for c in curves if len(c.step)
    ]
    header = [
        "training",
        "steps",
        "forces, own data (meV/Å)",
        "forces, held out (meV/Å)",
        "energy, held out (meV/atom)",
    ]
    return Table(header, rows)


def _last(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else None


def deviations(run: Run, round_: int) -> np.ndarray:
    """All deviations of a round, eV/A, from its deviations.csv."""
    with (run.round_folder(round_) / "select" / "deviations.csv").open(encoding="utf-8") as file:
        return np.array([float(row["deviation_eV_per_A"]) for row in csv.DictReader(file) if row["deviation_eV_per_A"]])


def rounds_of_card(run: Run, records: Sequence[RoundRecord]) -> list[dict[str, Any]]:
    """A row for each round, for the model card: frames, and the force error on held-out frames after it, meV/A."""
    rows = []
    for r in records:
        totals = {
            n: sum(getattr(c, n) for c in r.counts.values()) for n in ("accurate", "candidate", "failed", "missing")
        }
        trained = run.round_folder(r.number) / "train" / "00" / "trained.json"
        metrics = json.loads(trained.read_bytes())["metrics"] if trained.exists() else {}
        error = metrics.get("validation_force_rmse_meV_per_A")
        rows.append(
            {"round": r.number, "driver": r.driver}
            | (totals if r.judged else {})
            | {"labelled": r.train + r.validation}
            | ({} if error is None else {"force_error_meV_per_A": round(error, 2)})
        )
    return rows


def card_section(card: Mapping[str, Any]) -> Section:
    """The model card as `dpsim show` prints it, without what the report has already."""
    console = Console(file=io.StringIO(), width=100, highlight=False, no_color=True)
    with console.capture() as shown:
        console.print(render_card({k: v for k, v in card.items() if k not in ("rounds", "acceptance")}))
    return Section("The model card", "It is in the model's file, with the results above.", code=shown.get())


def facts(run: Run, records: Sequence[RoundRecord]) -> dict[str, str]:
    """A few numbers for the top of the report."""
    last = next((r for r in reversed(records) if r.judged), None)
    shown = {"rounds": str(len(records)), "labels asked for": str(sum(r.asked for r in records))}
    shown["frames trained on"] = str(sum(r.train for r in records))
    if last is not None:
        shown["accurate in the last round"] = f"{100 * last.accurate:.1f} %"
    return shown | {"wall time of the rounds": f"{run.ledger.seconds:.0f} s"}


def origin_for_people(run: Run, origin: Mapping[str, Any]) -> dict[str, Any]:
    """How it was made, for the end of the report."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "dpsim": version("dpsim"),
        **{k: v for k, v in origin.items() if k != "rounds"},
        "seed": run.config.seed,
        "engine": run.config.explore.engine,
        "hardware": hardware(run.config.student.train.device),
        "wall time": f"{run.ledger.seconds:.0f} s for the rounds, all runs together",
    }
