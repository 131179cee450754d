"""dpsim/train/ranks.py: several processes take the step of one, and go on after one of them was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dpsim.errors import ConfigError
from dpsim.models import container
from dpsim.train.config import TrainConfig
from dpsim.train.progress import Silent
from dpsim.train.ranks import Ranks
from dpsim.train.rundir import with_batches
from dpsim.train.trainer import Trainer, train

ROOT = Path(__file__).parents[2]
GRADIENTS = """
import sys
from pathlib import Path
import torch
from dpsim.config import load_yaml
from dpsim.train.config import TrainConfig
from dpsim.train.progress import Silent
from dpsim.train.ranks import Ranks
from dpsim.train.trainer import Trainer

with Ranks.of_run("cpu") as ranks:
    trainer = Trainer(load_yaml(sys.argv[1], TrainConfig), Path(sys.argv[2]), False, Silent(), ranks)
    draws = trainer.batches.at(0)
    trainer.step(draws)
    assert ranks.agree("one" if ranks.main else "") and ranks.has_largest(ranks.rank) == (ranks.rank == 1)
    names = [name for name, _ in trainer.model.named_parameters()]
    gradients = {n: p.grad for n, p in zip(names, trainer.parameters, strict=True) if p.grad is not None}
    torch.save((len(draws), gradients), Path(sys.argv[2]) / f"{ranks.rank}.pt")
"""


@pytest.fixture
def settings(train_settings: dict[str, Any], lj_data: Path) -> dict[str, Any]:
    """Two tasks, one of them rarely drawn, and four batches a step."""
    del train_settings["data"]
    tasks = {
        name: {"train": [str(lj_data / "train" / name)], "batch_size": 2, "weight": weight}
        for name, weight in (("a", 1.0), ("b", 0.02))
    }
    tasks["a"]["validation"] = [str(lj_data / "validation")]
    model = {**train_settings["model"], "precision": "float64"}
    return {**train_settings, "model": model, "tasks": tasks, "batches_per_step": 4}


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_two_ranks_have_the_gradient_of_one(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    command = torchrun(str(tmp_path / "gradients.py"), str(tmp_path / "train.yaml"), str(tmp_path / "two"))
    subprocess.run(command, check=True, env=environment(), capture_output=True, timeout=300)
    one = Trainer(TrainConfig.model_validate(settings), tmp_path / "one", False, Silent())
    one.step(one.batches.at(0))
    gradients = {name: p.grad for name, p in one.model.named_parameters() if p.grad is not None}
    for rank in (0, 1):
        n, found = torch.load(tmp_path / f"two/{rank}.pt")
        assert n == 2 and found.keys() == gradients.keys()  # heads that nobody drew have none
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)
    assert not any("head.b" in name for name in gradients)


@pytest.mark.slow
def test_a_killed_rank_costs_steps_and_not_the_run(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"steps": 120, "checkpoint": {"every": 5}}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
    folder, began = tmp_path / "two", time.monotonic()
    command = torchrun("-m", "dpsim", "train", str(tmp_path / "train.yaml"), "-d", str(folder), "--resume")
    with open(tmp_path / "log", "w") as log:
        agent = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=log, stderr=subprocess.STDOUT)
    while agent.poll() is None and not (folder / "checkpoint/previous.ckpt").exists():
        assert time.monotonic() < began + 200
        time.sleep(0.01)
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert agent.wait(timeout=100) != 0, (tmp_path / "log").read_text()
    assert 0 < container.read(folder / "checkpoint/last.ckpt", "checkpoint")[0]["progress"]["step"] < 120
    # What two have begun one may finish: the batches of a step are the same.
    train(TrainConfig.model_validate(settings), folder, True, Silent())
    train(TrainConfig.model_validate(settings), tmp_path / "one", False, Silent())
    a, b = (container.read(f / "checkpoint/last.ckpt", "checkpoint")[1] for f in (folder, tmp_path / "one"))
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=1e-6, atol=1e-9)


def test_batches_per_step(settings: dict[str, Any]) -> None:
    settings.pop("batches_per_step")
    config = TrainConfig.model_validate(settings)
    assert with_batches(config, 1, {}).batches_per_step is None
    assert with_batches(config, 3, {}).batches_per_step == 3  # one for each process
    assert with_batches(config, 2, {"batches_per_step": 6}).batches_per_step == 6  # as in the run it continues
    for saved in ({"batches_per_step": 2}, {"batches_per_step": None}):
        with pytest.raises(ConfigError, match="at least 3, one for each process"):
            with_batches(config, 3, saved)


def test_without_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")  # of a cluster, or of another program
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with Ranks.of_run("cpu") as ranks:
        assert (ranks.rank, ranks.world, ranks.main) == (0, 1, True)
        assert ranks.agree("") == "" and ranks.agree("SIGINT") == "SIGINT" and ranks.has_largest(float("inf"))


def test_a_signal_at_another_rank_stops_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "sum", lambda self, values: values + 1)
    assert Ranks(0, 2).agree("") == "stopped by another process"
