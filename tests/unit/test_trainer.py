"""dpsim/train/trainer.py: it learns, stops in order, names bad frames, and a kill -9 at any moment changes nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dpsim.config import validate
from dpsim.data.frame import Batch
from dpsim.errors import ConfigError, DataError, TrainingError
from dpsim.models import container
from dpsim.models.checkpoint import load_model
from dpsim.train.config import TrainConfig
from dpsim.train.lcurve import COLUMNS, read_lcurve
from dpsim.train.progress import PlainReporter, Silent
from dpsim.train.setup import build_model, open_data
from dpsim.train.state import Progress
from dpsim.train.trainer import Trainer, train

ROOT = Path(__file__).parents[2]
CLOCK = {"ms_per_step", "elapsed_s"}  # columns that differ between two equal runs


def config_of(settings: dict[str, Any], **changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({**settings, **changes})


def run(settings: dict[str, Any], folder: Path, resume: bool = False, **changes: Any) -> Any:
    return train(config_of(settings, **changes), folder, resume, Silent())


def assert_same_run(a: Path, b: Path) -> None:
    """Every weight, moment, average and logged number of two finished runs is the same to the last bit."""
    (head_a, tensors_a), (head_b, tensors_b) = (
        container.read(p / "checkpoint/last.ckpt", "checkpoint") for p in (a, b)
    )
    assert tensors_a.keys() == tensors_b.keys()
    for name, tensor in tensors_a.items():
        assert torch.equal(tensor, tensors_b[name]), name
    for head in (head_a, head_b):
        head["progress"].pop("elapsed_s")
    assert head_a["progress"] == head_b["progress"]
    rows_a, rows_b = (
        [{k: v for k, v in r.items() if k not in CLOCK} for r in read_lcurve(p / "lcurve.csv")] for p in (a, b)
    )
    assert rows_a == rows_b
    for name in ("model-last.dpsim", "model-best.dpsim"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_it_learns(train_settings: dict[str, Any], tmp_path: Path) -> None:
    result = run(train_settings, tmp_path / "run", steps=300, schedule={"start_lr": 0.01, "stop_lr": 1e-4})
    assert result.finished and result.step == 300
    rows = read_lcurve(tmp_path / "run/lcurve.csv")
    assert rows[-1]["force_rmse_meV_per_A"] < 0.3 * rows[0]["force_rmse_meV_per_A"]
    assert rows[-1]["validation_force_rmse_meV_per_A"] < 0.3 * rows[0]["force_rmse_meV_per_A"]
    model = load_model(result.best_model)
    assert model.metadata["provenance"]["training"]["seed"] == 5
    systems = model.metadata["provenance"]["data"]["train"]
    assert [s["frames"] for s in systems] == [12, 8] and systems[0]["name"].endswith("/train/a")
    assert not any(str(tmp_path.parents[1]) in str(v) for s in systems for v in s.values())
    assert [r["step"] for r in rows] == sorted({r["step"] for r in rows})


OTHER_DESCRIPTORS: dict[str, dict[str, Any]] = {
    "se_e2_r": {"type": "se_e2_r", "rcut": 4.0, "neuron": [4, 8]},
    "hybrid": {
        "type": "hybrid",
        "list": [
            {"type": "se_e2_r", "rcut": 4.0, "neuron": [4, 8]},
            {"type": "se_e2_a", "rcut": 3.0, "neuron": [4, 8], "axis_neuron": 2, "sel": [1, 1]},
            {"type": "dpa1", "rcut": 4.0, "neuron": [4, 8], "axis_neuron": 2, "attn_layer": 0},
            {"type": "se_e3", "rcut": 3.0, "neuron": [4, 8]},
        ],
    },
    "dpa2": {
        "type": "dpa2",
        "repinit": {"rcut": 4.0, "neuron": [4, 8], "axis_neuron": 2},
        "three_body": {"rcut": 3.5},
        "repformer": {"rcut": 3.0, "nlayers": 2, "g1_dim": 8, "g2_dim": 4, "axis_neuron": 2},
    },
}
AUTO_SEL = {"se_e2_r": [[8, 8]], "hybrid": [[8, 8], [1, 1], 12, [4, 4]], "dpa2": [12, 8, 4]}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_DESCRIPTORS)
def test_other_descriptors_learn(train_settings: dict[str, Any], tmp_path: Path, name: str) -> None:
    model = {**train_settings["model"], "descriptor": OTHER_DESCRIPTORS[name], "precision": "float64"}
    result = run(train_settings, tmp_path, steps=200, schedule={"start_lr": 0.01, "stop_lr": 1e-4}, model=model)
    rows = read_lcurve(tmp_path / "lcurve.csv")
    assert rows[-1]["force_rmse_meV_per_A"] < 0.5 * rows[0]["force_rmse_meV_per_A"]
    trained = load_model(result.best_model)
    assert [d.sel for d in trained.config.descriptor.environments] == AUTO_SEL[name]


def test_each_descriptor_of_a_hybrid_has_its_statistics(train_settings: dict[str, Any]) -> None:
    config = config_of(train_settings, model={**train_settings["model"], "descriptor": OTHER_DESCRIPTORS["hybrid"]})
    model, stats = build_model(config, open_data(config))
    assert len(stats) == 4 and model.rcut == 4.0
    for part, of_part in zip(model.descriptor.members, stats, strict=True):
        np.testing.assert_array_equal(part.dstd, of_part.dstd.astype(np.float32))
    assert not np.array_equal(stats[0].dstd, stats[1].dstd)


def test_what_a_run_leaves(train_settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(train_settings, folder)
    assert {p.name for p in folder.iterdir()} == {
        ".lock", "train.yaml", "lcurve.csv", "checkpoint", "model-last.dpsim", "model-best.dpsim",
    }  # fmt: skip
    assert {p.name for p in (folder / "checkpoint").iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert (folder / "lcurve.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    steps = [int(r["step"]) for r in read_lcurve(folder / "lcurve.csv")]
    assert steps == sorted({*range(7, 60, 7), 20, 40, 60})
    from dpsim.config import load_yaml

    again = load_yaml(folder / "train.yaml", TrainConfig)
    assert again == config_of(train_settings)
    assert load_model(folder / "model-last.dpsim").config.descriptor.sel == [8, 8]


def test_one_seed_one_result(train_settings: dict[str, Any], tmp_path: Path) -> None:
    for name in "ab":
        run(train_settings, tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    run(train_settings, tmp_path / "c", seed=6)
    a, c = ((tmp_path / n / "model-last.dpsim").read_bytes() for n in "ac")
    assert a != c


VARIANTS: dict[str, dict[str, Any]] = {
    "adam": {},
    "soap": {"optimizer": {"type": "soap"}},
    "adamw, ema, huber, clip, warm-up": {
        "optimizer": {"type": "adamw", "weight_decay": 0.01, "gradient_clip": 1.0},
        "ema": {"decay": 0.9},
        "loss": {"kind": "huber"},
        "schedule": {"kind": "cosine", "warmup_steps": 10},
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_interrupted_and_resumed_is_the_same_run(
    train_settings: dict[str, Any], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**train_settings, **VARIANTS[name]}
    run(settings, tmp_path / "whole")
    original, died = Trainer.step, []

    def dies_at(step: int) -> None:
        def broken(self: Trainer, batch: Batch) -> float:
            if self.progress.step == step:
                died.append(step)
                raise KeyboardInterrupt
            return original(self, batch)

        monkeypatch.setattr(Trainer, "step", broken)
        with pytest.raises(KeyboardInterrupt):
            run(settings, tmp_path / "cut", resume=step > 3)

    for step in (3, 15, 33, 34, 59):
        dies_at(step)
    monkeypatch.setattr(Trainer, "step", original)
    assert died == [3, 15, 33, 34, 59]
    run(settings, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def start_process(settings: dict[str, Any], folder: Path, resume: bool) -> subprocess.Popen[bytes]:
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(settings))
    code = (
        "import sys; from dpsim.config import load_yaml; from dpsim.train.config import TrainConfig; "
        "from dpsim.train.trainer import train; "
        "train(load_yaml(sys.argv[1], TrainConfig), sys.argv[2], resume=sys.argv[3] == 'resume')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(file), str(folder), "resume" if resume else "new"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(train_settings: dict[str, Any], tmp_path: Path) -> None:
    """Kills, at random moments, a process that saves at every third step: many kills fall into the writing of files."""
    settings = {
        **train_settings, "steps": 150, "checkpoint": {"every": 3}, "validation": {"every": 5, "frames": 2},
        "ema": {"decay": 0.9},
    }  # fmt: skip
    run(settings, tmp_path / "whole")
    folder, rng, kills = tmp_path / "cut", random.Random(4), 0
    while True:
        process = start_process(settings, folder, resume=folder.exists())
        began = time.monotonic()
        while process.poll() is None and not (folder / "lcurve.csv").exists() and time.monotonic() < began + 120:
            time.sleep(0.01)
        before = steps_done(folder)
        while process.poll() is None and steps_done(folder) == before and time.monotonic() < began + 120:
            time.sleep(0.002)  # imports are over and steps are made
        if kills < 4 and process.poll() is None:
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=240)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors.decode()
        kills += 1
    assert kills >= 2
    assert_same_run(tmp_path / "whole", folder)


def steps_done(folder: Path) -> float:
    """The last step in lcurve.csv, -1 if there is none."""
    try:
        return max((r["step"] for r in read_lcurve(folder / "lcurve.csv")), default=-1)
    except FileNotFoundError:
        return -1


def test_a_damaged_checkpoint_falls_back_to_the_previous(train_settings: dict[str, Any], tmp_path: Path) -> None:
    run(train_settings, tmp_path / "whole")
    run(train_settings, tmp_path / "cut")
    last = tmp_path / "cut/checkpoint/last.ckpt"
    last.write_bytes(last.read_bytes()[:-10])
    run(train_settings, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    for path in last.parent.iterdir():
        path.write_bytes(b"junk")
    with pytest.raises(TrainingError, match="no whole checkpoint"):
        run(train_settings, tmp_path / "cut", resume=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_with_a_checkpoint(
    train_settings: dict[str, Any], tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(train_settings, tmp_path / "whole")
    original = Trainer.step

    def signalled(self: Trainer, batch: Batch) -> float:
        if self.progress.step == 29:
            os.kill(os.getpid(), number)
        return original(self, batch)

    handler = signal.getsignal(number)
    monkeypatch.setattr(Trainer, "step", signalled)
    result = run(train_settings, tmp_path / "cut")
    monkeypatch.undo()
    assert signal.getsignal(number) is handler
    assert (result.finished, result.reason, result.step) == (False, number.name, 30)
    header, _ = container.read(tmp_path / "cut/checkpoint/last.ckpt", "checkpoint")
    assert header["progress"]["step"] == 30
    assert run(train_settings, tmp_path / "cut", resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_time_limit(train_settings: dict[str, Any], tmp_path: Path) -> None:
    result = run(train_settings, tmp_path / "run", steps=10**6, time_limit="0.3 s")
    assert (result.finished, result.reason) == (False, "time_limit")


def test_a_folder_with_a_run_is_not_overwritten(train_settings: dict[str, Any], tmp_path: Path) -> None:
    run(train_settings, tmp_path / "run", steps=5)
    before = (tmp_path / "run/lcurve.csv").read_text()
    with pytest.raises(TrainingError, match="already holds a run.*--resume"):
        run(train_settings, tmp_path / "run", steps=5)
    assert (tmp_path / "run/lcurve.csv").read_text() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="is a file"):
        run(train_settings, tmp_path / "file")


def test_two_trainings_in_one_folder_are_refused(train_settings: dict[str, Any], tmp_path: Path) -> None:
    from dpsim.train.rundir import RunDirectory

    with RunDirectory(tmp_path / "run", resume=False), pytest.raises(TrainingError, match="in use"):
        run(train_settings, tmp_path / "run")


def test_resuming_with_another_configuration_is_refused(train_settings: dict[str, Any], tmp_path: Path) -> None:
    run(train_settings, tmp_path / "run", steps=5)
    with pytest.raises(ConfigError, match="`seed` is 6; expected 5"):
        run(train_settings, tmp_path / "run", resume=True, steps=5, seed=6)
    run(train_settings, tmp_path / "run", resume=True, steps=5, log_every=1)


def test_bad_labels_stop_training_and_are_named(
    make_system: Callable[..., Path], train_settings: dict[str, Any], tmp_path: Path
) -> None:
    bad = make_system(tmp_path / "data", 10, seed=1)
    energy = np.load(bad / "set.000/energy.npy")
    energy[7] += 3000.0
    np.save(bad / "set.000/energy.npy", energy)
    data = {"train": [str(bad)], "batch_size": 1}
    with pytest.raises(TrainingError) as caught:
        run(train_settings, tmp_path / "run", data=data, steps=500, loss={"energy": {"start": 1, "limit": 1}},
            explosion_factor=5, schedule={"start_lr": 0.02, "stop_lr": 0.01})  # fmt: skip
    message = str(caught.value)
    assert "set.000 frame 7" in message and "running median" in message
    report = json.loads((tmp_path / "run/failure.json").read_text())
    assert "set.000 frame 7" in report["frames"][0]["source"]
    import ase.io

    atoms = ase.io.read(tmp_path / "run/failure.extxyz", index=0)
    assert atoms.get_chemical_symbols() == ["He"] * 3 + ["Ne"] * 3
    assert (tmp_path / "run/checkpoint/last.ckpt").is_file()


def test_nan_stops_before_it_reaches_the_weights(
    train_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpsim.data.sampler import BatchSampler

    original = BatchSampler.batch

    def poisoned(self: BatchSampler, step: int) -> Batch:
        batch = original(self, step)
        if step == 30 and batch.forces is not None:
            batch.forces[-1] = float("nan")  # an atom of the second frame
        return batch

    monkeypatch.setattr(BatchSampler, "batch", poisoned)
    with pytest.raises(TrainingError, match="`loss` is nan.* at step 31") as caught:
        run(train_settings, tmp_path / "run")
    report = json.loads((tmp_path / "run/failure.json").read_text())
    assert report["frames"][0]["loss"] == "nan"
    assert report["frames"][1]["loss"] != "nan"
    assert report["frames"][0]["source"] in str(caught.value)
    monkeypatch.undo()
    run(train_settings, tmp_path / "whole")
    run(train_settings, tmp_path / "run", resume=True)
    (tmp_path / "run/failure.json").unlink()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_the_same_data_twice_is_refused(train_settings: dict[str, Any], lj_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="in both"):
        run(
            train_settings,
            tmp_path / "run",
            data={"train": [str(lj_data)], "validation": [str(lj_data / "validation")]},
        )


def test_weights_of_data_are_shares_of_the_draws(train_settings: dict[str, Any], lj_data: Path, tmp_path: Path) -> None:
    data = {
        "train": [{"path": str(lj_data / "train"), "weight": 3}, {"path": str(lj_data / "validation")}],
        "batch_size": 1,
    }
    trainer = Trainer(config_of(train_settings, data=data), tmp_path, False, Silent())
    np.testing.assert_allclose(trainer.tasks[0].sampler.probabilities, [0.75 * 12 / 20, 0.75 * 8 / 20, 0.25])


def test_ema_is_what_is_saved_and_validated(train_settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = Trainer(config_of(train_settings, ema={"decay": 0.5}), tmp_path, False, Silent())
    w0 = [p.detach().clone() for p in trainer.parameters]
    trainer.step(trainer.batches.at(0))
    assert trainer.ema is not None
    for start, now, mean in zip(w0, trainer.parameters, trainer.ema.weights.values(), strict=True):
        torch.testing.assert_close(mean, 0.5 * (start + now.detach()))
    before = [p.detach().clone() for p in trainer.parameters]
    with trainer.ema.applied():
        assert not torch.equal(trainer.parameters[0], before[0])
    assert all(torch.equal(a, b) for a, b in zip(trainer.parameters, before, strict=True))


def test_gradient_is_clipped_to_its_norm(train_settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = Trainer(config_of(train_settings, optimizer={"gradient_clip": 1e-3}), tmp_path, False, Silent())
    trainer.step(trainer.batches.at(0))
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in trainer.parameters if p.grad is not None]))
    assert trainer._last_norm > 1e-3
    assert float(norm) == pytest.approx(1e-3, rel=1e-5)


def test_without_validation_data(train_settings: dict[str, Any], lj_data: Path, tmp_path: Path) -> None:
    result = run(train_settings, tmp_path / "run", data={"train": [str(lj_data / "train")]})
    assert result.best_model is None and result.model.is_file()


def test_plain_progress_lines(
    train_settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config_of(train_settings), tmp_path / "run", reporter=PlainReporter())
    text = capsys.readouterr().out
    assert "20 training frames in 2 systems, 5 for validation" in text
    assert "E val" in text and "finished: 60 steps" in text


def test_tensorboard_events(train_settings: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    run(train_settings, tmp_path / "run", tensorboard=True)
    assert list((tmp_path / "run/tensorboard").glob("events.*"))


def test_progress_is_plain_data() -> None:
    from dataclasses import asdict

    progress = Progress(step=3, best_score=0.1, recent_losses=[1 / 3])
    assert Progress.from_plain(json.loads(json.dumps(asdict(progress)))) == progress


def test_more_neighbours_than_sel_are_said(tmp_path: Path, train_settings: dict[str, Any]) -> None:
    settings = {**train_settings, "steps": 1, "validation": {"every": 1}}
    settings["schedule"] = {"warmup_steps": 0}
    settings["model"] = {**settings["model"], "descriptor": {**settings["model"]["descriptor"], "sel": [1, 50]}}
    said: list[str] = []

    class Listener(PlainReporter):
        def say(self, text: str) -> None:
            said.append(text)

    train(validate(settings, TrainConfig), tmp_path / "run", reporter=Listener())
    assert any("He (sel 1) neighbours" in text and "Ne (sel" not in text for text in said)


def test_starts_from_a_model(tmp_path: Path, train_settings: dict[str, Any]) -> None:
    first = train(validate(train_settings, TrainConfig), tmp_path / "first", reporter=Silent())
    settings = {
        **train_settings,
        "steps": 1,
        "init_from": str(first.model),
        "schedule": {"start_lr": 1e-12, "stop_lr": 1e-12},
    }
    settings["model"] = load_model(first.model).config.model_dump(mode="json")
    second = train(validate(settings, TrainConfig), tmp_path / "second", reporter=Silent())
    for a, b in zip(load_model(first.model).parameters(), load_model(second.model).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    other = {**settings, "model": {**settings["model"], "fitting": {"neuron": [8, 4]}}}
    with pytest.raises(ConfigError, match="whose fitting differ"):
        train(validate(other, TrainConfig), tmp_path / "third", reporter=Silent())
