"""`dpsim learning-curve`: how the error falls with the number of frames, from scratch and fine-tuned.

Every run takes the same number of steps, whatever its frames: epochs x frames = steps x batch is one number for all
points, so that a difference between them is one of data, not of training. (`scratch.steps` may grant random weights
more: what is saved then is not training.) Both kinds have the same architecture: that of the file. Their frames are the
same ones, and those of a small size are among those of a larger one. The model with the lowest validation error is
tested; validation frames are on top of the frames that are counted.
Each run is a unit of dpsim/workers.py: after a kill, the same command continues every run where it was.
Source: Zhang et al., DPA-2, npj Comput. Mater. 10, 293 (2024), Fig. 3.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, field_validator, model_validator
from rich.console import Console
from rich.table import Table

from dpsim.analysis.data_saving import Curve, Saving, data_saving, plot_data_saving
from dpsim.config import FilePath, StrictModel
from dpsim.data.readers import open_dataset
from dpsim.errors import ConfigError, TrainingError
from dpsim.files import atomic_write
from dpsim.models.checkpoint import load_model
from dpsim.models.multi_task import heads_of
from dpsim.train.config import (
    EmaConfig,
    InitConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    WeightedPath,
)
from dpsim.train.evaluate import QUANTITIES, SetErrors, evaluate_systems
from dpsim.train.finetune import complete, start
from dpsim.train.progress import Silent
from dpsim.train.rundir import FREE
from dpsim.train.setup import open_data
from dpsim.workers import Outcome, Unit, WorkersConfig, run_units

Arm = Literal["scratch", "tuned"]
ARMS: tuple[Arm, Arm] = ("scratch", "tuned")


class ScratchConfig(StrictModel):
    """What the runs from scratch do differently: random weights want larger rates than trained ones."""

    optimizer: OptimizerConfig | None = Field(None, description="default: that of `train`")
    schedule: ScheduleConfig | None = Field(None, description="default: that of `train`")
    ema: EmaConfig | None = Field(None, description="default: that of `train`")
    steps: PositiveInt | None = Field(None, description="default: those of `train`")


class CurveConfig(StrictModel):
    """What `dpsim learning-curve` reads."""

    train: TrainConfig = Field(
        description="a run that fine-tunes: its `steps` are those of every run but for `scratch.steps`"
    )
    scratch: ScratchConfig = ScratchConfig()
    sizes: list[PositiveInt | Annotated[float, Field(gt=0, le=1)]] = Field(
        min_length=1, description="numbers of training frames; below or at 1.0: shares of all"
    )
    repeats: PositiveInt = Field(1, description="runs of each size, with other frames, weights and order")
    test: list[FilePath] = Field(min_length=1, description="data that the errors are of")
    test_frames: PositiveInt | None = Field(None, description="at most this many, evenly spread; default: all")
    workers: WorkersConfig = Field(WorkersConfig(), description="who does the runs; default: one after another, here")

    @field_validator("test", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _check(self) -> CurveConfig:
        if not isinstance(self.train.init_from, InitConfig) or self.train.data is None or self.train.init_from.replay:
            raise ValueError(
                "`train` needs `data` and the long form of `init_from`, without `replay`: one set, fine-tuned and from "
                "scratch. Write for example `init_from: {model: pretrained.dpsim}`."
            )
        return self


def learning_curve(config: CurveConfig, directory: str | Path, console: Console | None = None) -> dict[str, Any]:
    """Do every run that is not done yet, and write curve.json, curve.csv and curve.png.

    Returns: the content of curve.json.
    Raises: TrainingError at the end if runs failed, naming them; whatever `train` raises before the first one.
    """
    folder, console = Path(directory), console or Console(highlight=False)
    base = complete(config.train, {})
    frames = _sizes(config, base)
    units = list(_units(config, base, frames, folder))
    steps = str(base.steps) if config.scratch.steps is None else f"{base.steps} ({config.scratch.steps} from scratch)"
    console.print(f"{len(units)} runs of {steps} steps, on {', '.join(map(str, frames))} frames", highlight=False)
    points, failed = list[dict[str, Any]](), list[Outcome]()
    for outcome in run_units(train_and_test, units, config.workers):
        if outcome.failed:
            failed.append(outcome)
            console.print(f"{outcome.unit.folder.name}: {outcome.error}", style="red", markup=False)
            continue
        points.append(outcome.result)
        console.print(_line(outcome.unit.folder.name, outcome.result), highlight=False, markup=False)
        write_curve(folder, points, None)
    if not points:
        raise TrainingError(f"all {len(failed)} runs failed; the first: {failed[0].error}")
    content = write_curve(folder, points, _zero_shot(config, base))
    console.print(table(content))
    console.print(f"written to {folder / 'curve.json'}, curve.csv and curve.png", highlight=False)
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(units)} runs failed: {', '.join(o.unit.folder.name for o in failed)}; the figure "
            "lacks them. See error.txt in their folders; the same command tries them again."
        )
    return content


def check_curve(config: CurveConfig) -> None:
    """Whether every run could begin: data, sizes, test data. Raises DpsimError."""
    base = complete(config.train, {})
    open_data(base)
    _sizes(config, base)
    for path in config.test:
        open_dataset(path, base.model.type_map)


def _sizes(config: CurveConfig, base: TrainConfig) -> list[int]:
    """Numbers of frames, increasing. Raises ConfigError for more than there are."""
    assert base.data is not None  # checked by CurveConfig
    paths = [e.path if isinstance(e, WeightedPath) else e for e in base.data.train]
    total = sum(len(s) for p in paths for s in open_dataset(p, base.model.type_map))
    sizes = sorted({s if isinstance(s, int) else max(1, round(s * total)) for s in config.sizes})
    if sizes[-1] > total:
        raise ConfigError(f"`sizes` has {sizes[-1]}; expected at most the {total} frames of `train`. Lower it.")
    return sizes


def _units(config: CurveConfig, base: TrainConfig, sizes: Sequence[int], folder: Path) -> Iterator[Unit]:
    """One unit per size, arm and repeat, the small ones first."""
    for n in sizes:
        for arm in ARMS:
            for repeat in range(config.repeats):
                name = f"{arm}-{n}-{repeat}"
                run = run_config(config, base, arm, n, repeat).model_dump(mode="json")
                test = {"test": [str(p) for p in config.test], "test_frames": config.test_frames}
                point = {"arm": arm, "frames": n, "repeat": repeat}
                digest = _digest({**{k: v for k, v in run.items() if k not in FREE - {"validation"}}, **test})
                yield Unit(f"{name}:{digest}", folder / "runs" / name, {"config": run, **test, "point": point})


def _digest(settings: dict[str, Any]) -> str:
    """Of what changes a result, so that a result is never taken for one of other settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def run_config(config: CurveConfig, base: TrainConfig, arm: Arm, n: int, repeat: int) -> TrainConfig:
    """The training run of one point. Args: base: `train`, completed."""
    assert base.data is not None  # checked by CurveConfig
    data = base.data.model_copy(update={"frames": n, "frames_seed": base.data.frames_seed + repeat})
    update: dict[str, Any] = {"data": data, "seed": base.seed + repeat}
    if arm == "scratch":
        fitting = base.model.fitting.model_copy(update={"dim_case_embd": 0})
        update |= {"init_from": None, "model": base.model.model_copy(update={"fitting": fitting})}
        own = {name: getattr(config.scratch, name) for name in ScratchConfig.model_fields}
        update |= {name: value for name, value in own.items() if value is not None}
    return base.model_copy(update=update)


def train_and_test(
    folder: Path, config: dict[str, Any], test: list[str], test_frames: int | None, point: dict[str, Any]
) -> dict[str, Any]:
    """One point: train in a folder, from where the run there was, and test the best model. Plain data for JSON."""
    from dpsim.train.trainer import train

    settings = TrainConfig.model_validate(config)
    result = train(settings, Path(folder) / "train", resume=True, reporter=Silent())
    if not result.finished:
        if result.reason.startswith("SIG"):
            raise KeyboardInterrupt
        raise TrainingError(f"stopped at step {result.step} ({result.reason}); the same command continues it.")
    model = load_model(result.best_model or result.model, device=settings.device)
    systems = [s for path in test for s in open_dataset(path, model.type_map)]
    errors = evaluate_systems(model, systems, "test", test_frames)
    return {**point, "steps": result.step, **_rmse(errors)}


def _rmse(errors: SetErrors) -> dict[str, float]:
    """RMSE and MAE of the quantities with labels: energy_rmse (meV/atom), ..."""
    metrics = {q: errors.pairs[q].metrics() for q in QUANTITIES}
    return {f"{q}_{key}": float(m[key]) for q, m in metrics.items() if m["n"] for key in ("rmse", "mae")}


def _zero_shot(config: CurveConfig, base: TrainConfig) -> dict[str, float]:
    """Test errors of the model before any step, its energy bias fitted to the training frames."""
    assert base.data is not None and isinstance(base.init_from, InitConfig)  # checked by CurveConfig
    if base.init_from.head == "fresh":
        return {}
    paths = [e.path if isinstance(e, WeightedPath) else e for e in base.data.train]
    trainable, _ = start(base, {"": [s for p in paths for s in open_dataset(p, base.model.type_map)]})
    model = heads_of(trainable)[""]
    systems = [s for path in config.test for s in open_dataset(path, model.type_map)]
    return _rmse(evaluate_systems(model, systems, "test", config.test_frames))


def curves(points: Sequence[dict[str, Any]], arm: Arm, key: str) -> Curve:
    """Errors by number of frames, one per repeat, of the points that have this one."""
    found: dict[int, list[float]] = {}
    for p in sorted(points, key=lambda p: (p["frames"], p["repeat"])):
        if p["arm"] == arm and key in p:
            found.setdefault(p["frames"], []).append(p[key])
    return found


def savings(points: Sequence[dict[str, Any]]) -> dict[str, Saving]:
    """The saving in data of each quantity that both arms have."""
    pairs = {q: _pair(points, q) for q in QUANTITIES}
    return {q: data_saving(*pair) for q, pair in pairs.items() if all(pair)}


def _pair(points: Sequence[dict[str, Any]], quantity: str) -> tuple[Curve, Curve]:
    """RMSE from scratch and fine-tuned."""
    return curves(points, "scratch", f"{quantity}_rmse"), curves(points, "tuned", f"{quantity}_rmse")


def write_curve(folder: Path, points: Sequence[dict[str, Any]], zero_shot: dict[str, float] | None) -> dict[str, Any]:
    """curve.json and curve.csv, and when all is done (zero_shot is not None) curve.png; what the first holds."""
    points = sorted(points, key=lambda p: (p["arm"], p["frames"], p["repeat"]))
    found = savings(points)
    content: dict[str, Any] = {
        "units": dict(QUANTITIES),
        "points": points,
        "zero_shot": zero_shot or {},
        "data_saved": {q: {**vars(s), "text": str(s)} for q, s in found.items()},
    }
    atomic_write(folder / "curve.json", (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    text = io.StringIO()
    columns = list(dict.fromkeys(key for p in points for key in p))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    atomic_write(folder / "curve.csv", text.getvalue().encode())
    if zero_shot is not None:
        labels = {q: f"{q} ({unit.replace('A', 'Å')})" for q, unit in QUANTITIES.items()}
        panels = {labels[q]: _pair(points, q) for q in ("energy", "forces")}
        shown = {label: pair for label, pair in panels.items() if any(pair)}
        before = {labels[q]: zero_shot[f"{q}_rmse"] for q in QUANTITIES if f"{q}_rmse" in zero_shot}
        plot_data_saving(folder / "curve.png", shown, before)
    return content


def table(content: dict[str, Any]) -> Table:
    """Test RMSE by number of frames, from scratch beside fine-tuned."""
    points = content["points"]
    shown = [q for q in QUANTITIES if any(f"{q}_rmse" in p for p in points)]
    saved = ", ".join(f"{q} {s['text']}" for q, s in content["data_saved"].items())
    out = Table(title="Test RMSE", caption=f"data saved: {saved}" if saved else None, title_justify="left")
    out.add_column("frames", justify="right")
    for q in shown:
        out.add_column(f"{q}\n{QUANTITIES[q]}\nscratch", justify="right")
        out.add_column("\n\ntuned", justify="right")
    if content["zero_shot"]:
        out.add_row("0", *(c for q in shown for c in ("-", f"{content['zero_shot'].get(f'{q}_rmse', math.nan):.3g}")))
    for n in sorted({p["frames"] for p in points}):
        cells = [curves(points, arm, f"{q}_rmse").get(n, []) for q in shown for arm in ARMS]
        out.add_row(str(n), *(f"{math.exp(np.mean(np.log(c))):.3g}" if len(c) else "-" for c in cells))
    return out


def _line(key: str, point: dict[str, Any]) -> str:
    told = ", ".join(f"{q} {point[f'{q}_rmse']:.3g} {unit}" for q, unit in QUANTITIES.items() if f"{q}_rmse" in point)
    return f"{key}: {told}"
