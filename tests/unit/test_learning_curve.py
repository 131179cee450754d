"""dpsim/train/learning_curve.py: every point is a run that is continued, and none is made twice."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dpsim.config import validate
from dpsim.errors import ConfigError, TrainingError
from dpsim.train.config import TrainConfig
from dpsim.train.finetune import complete
from dpsim.train.learning_curve import CurveConfig, _sizes, learning_curve, run_config
from dpsim.train.progress import Silent
from dpsim.train.trainer import train

DPA1 = {"type": "dpa1", "rcut": 4.0, "rcut_smth": 0.5, "sel": 12, "neuron": [4], "axis_neuron": 2}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, make_system: Callable[..., Path]) -> dict[str, Any]:
    """Plain data of a CurveConfig of two steps per run."""
    root = tmp_path_factory.mktemp("curve")
    sets = [str(make_system(root / name, 6, seed=k)) for k, name in enumerate(("train", "validation", "test"))]
    run = {"steps": 2, "log_every": 2, "threads": 1, "tensorboard": False, "validation": {"every": 2, "frames": 2}}
    run |= {"data": {"train": [sets[0]], "validation": [sets[1]], "batch_size": 2}}
    model = {"type_map": ["He", "Ne"], "descriptor": DPA1, "fitting": {"neuron": [4]}}
    file = train(validate({**run, "model": model}, TrainConfig), root / "pretrained", reporter=Silent()).model
    init = {"model": str(file), "override": ["virials", "learning_rate"]}
    return {"train": {**run, "init_from": init}, "sizes": [2, 1.0], "test": sets[2]}


def draw(settings: dict[str, Any], folder: Path) -> tuple[dict[str, Any], str]:
    screen = Console(file=io.StringIO(), width=150)
    content = learning_curve(validate(settings, CurveConfig), folder, screen)
    return content, screen.file.getvalue()  # type: ignore[attr-defined]


def test_points_table_and_figure_and_nothing_done_twice(settings: dict[str, Any], tmp_path: Path) -> None:
    content, text = draw({**settings, "sizes": [2]}, tmp_path)
    assert [(p["arm"], p["frames"]) for p in content["points"]] == [("scratch", 2), ("tuned", 2)]
    first = {f: f.stat().st_mtime_ns for f in tmp_path.glob("runs/*/result.json")}
    content, text = draw(settings, tmp_path)
    assert {f: f.stat().st_mtime_ns for f in first} == first
    assert json.loads((tmp_path / "curve.json").read_text()) == content
    points = content["points"]
    assert [(p["arm"], p["frames"], p["steps"]) for p in points] == [
        ("scratch", 2, 2), ("scratch", 6, 2), ("tuned", 2, 2), ("tuned", 6, 2)
    ]  # fmt: skip
    assert all(p["forces_rmse"] > 0 for p in points) and content["zero_shot"]["forces_rmse"] > 0
    assert set(content["data_saved"]) == {"energy", "forces", "virial"}
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["energy_rmse"]) for r in rows] == [p["energy_rmse"] for p in points]
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "data saved: energy" in text
    with pytest.raises(ConfigError, match="holds the result of the unit"):
        draw({**settings, "test_frames": 3}, tmp_path)


def test_a_run_that_was_stopped_goes_on(settings: dict[str, Any], tmp_path: Path) -> None:
    hurried = {**settings, "sizes": [2], "train": {**settings["train"], "time_limit": "1e-9 s"}}
    with pytest.raises(TrainingError, match=r"all 2 runs failed.*stopped at step 1 \(time_limit\)"):
        draw(hurried, tmp_path)
    steps = tmp_path / "runs" / "tuned-2-0" / "train" / "lcurve.csv"
    assert not steps.read_text().count("\n2,")
    content, _ = draw({**settings, "sizes": [2]}, tmp_path)
    assert len(content["points"]) == 2


def test_runs_differ_in_their_start_only(settings: dict[str, Any]) -> None:
    scratch = {"schedule": {"start_lr": 5e-3}}
    config = validate({**settings, "scratch": scratch, "repeats": 2, "sizes": [0.01, 3, 0.5]}, CurveConfig)
    base = complete(config.train, {})
    assert _sizes(config, base) == [1, 3]
    one, other = (run_config(config, base, arm, 3, 1) for arm in ("scratch", "tuned"))
    assert one.init_from is None and other.init_from == config.train.init_from
    assert one.model == other.model and one.data == other.data and one.data is not None
    assert (one.data.frames, one.data.frames_seed, one.seed, one.steps) == (3, 1, 1, 2)
    assert one.schedule.start_lr == 5e-3 and other.schedule.start_lr == 1e-3


def test_what_cannot_be_drawn(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the long form of `init_from`"):
        validate({**settings, "train": {**settings["train"], "init_from": "a.dpsim"}}, CurveConfig)
    config = validate({**settings, "sizes": [7]}, CurveConfig)
    with pytest.raises(ConfigError, match="`sizes` has 7; expected at most the 6 frames"):
        _sizes(config, complete(config.train, {}))
