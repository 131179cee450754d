"""Several data sets at once: the draws, the model of many heads, its file, and training, the same when resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpsim.config import dump_yaml, parse_yaml
from dpsim.data.frame import Batch
from dpsim.errors import ConfigError, DataError, ModelFileError
from dpsim.models import container
from dpsim.models.checkpoint import convert_model, load_model, read_header, save_model
from dpsim.models.energy_model import EnergyModel
from dpsim.models.multi_task import MultiTaskModel
from dpsim.train.config import TrainConfig
from dpsim.train.evaluate import evaluate
from dpsim.train.lcurve import COLUMNS, read_lcurve
from dpsim.train.progress import Silent
from dpsim.train.setup import open_data
from dpsim.train.tasks import Task
from dpsim.train.trainer import Trainer, train

BOTH = pytest.mark.parametrize("heads", ["separate", "encoded"])


@pytest.fixture(scope="session")
def argon(make_system: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of He and Ar, whose energies have another zero than those of `lj_data`."""
    root = tmp_path_factory.mktemp("argon")
    for name, n, seed in (("train", 10, 7), ("validation", 3, 8)):
        folder = make_system(root / name, n, seed)
        (folder / "type_map.raw").write_text("He\nAr\n")
        energy = folder / "set.000/energy.npy"
        np.save(energy, np.load(energy) - 600.0)
    return root


@pytest.fixture
def settings(train_settings: dict[str, Any], lj_data: Path, argon: Path) -> dict[str, Any]:
    """Two tasks with a common element, of unequal weight, loss and batches."""
    of_neon = {**train_settings.pop("data"), "weight": 3.0}
    of_argon = {"train": [str(argon / "train")], "validation": [str(argon / "validation")], "batch_size": "max:13"}
    tasks = {"neon": of_neon, "argon": {**of_argon, "loss": {"kind": "huber"}}}
    model = {**train_settings["model"], "type_map": ["He", "Ne", "Ar"]}
    return {**train_settings, "model": model, "tasks": tasks, "batches_per_step": 2}


def trainer_of(settings: dict[str, Any], folder: Path, **changes: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(TrainConfig.model_validate({**settings, **changes}), folder, False, Silent())


def run(settings: dict[str, Any], folder: Path, resume: bool = False, **changes: Any) -> Any:
    return train(TrainConfig.model_validate({**settings, **changes}), folder, resume, Silent())


def gradient(trainer: Trainer) -> torch.Tensor:
    """Of all parameters, 0 where a step did not reach."""
    return torch.cat([(p.detach() * 0 if p.grad is None else p.grad).flatten() for p in trainer.parameters])


@BOTH
def test_every_head_learns_its_set(settings: dict[str, Any], lj_data: Path, argon: Path, tmp_path: Path, heads: str):
    settings |= {"schedule": {"start_lr": 0.01, "stop_lr": 1e-4}, "validation": {"every": 100, "frames": 10}}
    result = run(settings, tmp_path, steps=100, heads=heads)
    rows = read_lcurve(tmp_path / "lcurve.csv")
    for task in ("neon", "argon"):
        column = f"{task}/force_rmse_meV_per_A"
        seen = [row[column] for row in rows if column in row]
        assert seen[-1] < 0.5 * seen[0], task
    for task, data in (("neon", lj_data / "validation"), ("argon", argon / "validation")):
        (errors,) = evaluate(load_model(f"{result.model}:{task}"), [data])
        expected = rows[-1][f"{task}/validation_force_rmse_meV_per_A"]
        assert errors.metrics()["forces"]["rmse"] == pytest.approx(expected, rel=1e-4)
        assert errors.metrics()["energy"]["rmse"] < 500  # of energies 100 eV/atom apart


def test_the_best_model_has_the_lowest_weighted_mean_of_losses(settings: dict[str, Any], tmp_path: Path) -> None:
    run(settings, tmp_path, steps=40, validation={"every": 10, "frames": 3})
    header = (tmp_path / "lcurve.csv").read_text().splitlines()[0].split(",")
    assert tuple(header[: len(COLUMNS)]) == COLUMNS and len(header) == len(COLUMNS) + 2 * 7
    rows = [row for row in read_lcurve(tmp_path / "lcurve.csv") if "validation_loss" in row]
    for row in rows:
        mean = (3 * row["neon/validation_loss"] + row["argon/validation_loss"]) / 4
        assert row["validation_loss"] == pytest.approx(mean, rel=1e-6)
    best = read_header(tmp_path / "model-best.dpsim")["provenance"]["training"]["metrics"]["validation_loss"]
    assert best == pytest.approx(min(row["validation_loss"] for row in rows), rel=1e-6)


@BOTH
def test_what_heads_share(settings: dict[str, Any], tmp_path: Path, heads: str) -> None:
    model = trainer_of(settings, tmp_path, heads=heads).model
    assert isinstance(model, MultiTaskModel)
    neon, argon = model.heads.values()
    assert neon.descriptor is argon.descriptor and (neon.fitting.nets is argon.fitting.nets) == (heads == "encoded")
    names = [name for name, _ in model.named_parameters()]
    stored = model.state_dict()
    assert len(names) == len({id(p) for p in model.parameters()}) and set(names) <= stored.keys()
    assert len({t.data_ptr() for t in stored.values()}) == len(stored)
    if heads == "encoded":
        assert neon.fitting.case_embd.tolist() == [1, 0] and argon.fitting.case_embd.tolist() == [0, 1]
        assert {k for k in stored if k.startswith("head.")} == {
            f"head.{t}.{k}" for t in ("neon", "argon") for k in ("energy_bias", "fitting.case_embd")
        }


def test_bias_of_each_set_and_statistics_of_all(settings: dict[str, Any], tmp_path: Path) -> None:
    model = trainer_of(settings, tmp_path).model
    bias = {name: head.energy_bias.numpy() for name, head in model.heads.items()}
    # -5 eV and -105 eV an atom, shared alike by both elements: compositions do not vary
    np.testing.assert_allclose(bias["neon"][:2], -5.0, atol=0.1)
    np.testing.assert_allclose(bias["argon"][[0, 2]], -105.0, atol=0.1)
    assert bias["neon"][2] == bias["argon"][2] and bias["argon"][1] == bias["neon"][1]  # an element the set lacks
    assert model.config.model.descriptor.sel == [8, 8, 8]
    assert (model.descriptor.dstd != 0.1).all()  # every element was seen


def test_draws_follow_the_weights_and_nothing_else(settings: dict[str, Any], lj_data: Path, tmp_path: Path) -> None:
    batches = trainer_of(settings, tmp_path / "a").batches
    drawn = [[task.name for task, _ in map(batches.draw, (2 * step, 2 * step + 1))] for step in range(1000)]
    assert [task.name for task, _ in batches.at(321)] == drawn[321]
    share = np.mean([name == "neon" for of_step in drawn for name in of_step])
    assert share == pytest.approx(0.75, abs=0.03)
    numbers = [number for task, number in map(batches.draw, range(2000)) if task.name == "argon"]
    assert numbers == list(range(len(numbers)))  # each task goes through its own batches in order
    single = {k: v for k, v in settings.items() if k != "tasks"} | {"data": {**settings["tasks"]["neon"]}}
    single["data"].pop("weight")
    alone = trainer_of(single, tmp_path / "b").batches
    theirs = [batch for step in range(8) for task, batch in batches.at(step) if task.name == "neon"]
    ours = [batch for step in range(8) for _, batch in alone.at(step)]
    for a, b in zip(theirs, ours, strict=False):  # and they are those of a run of its own
        assert a.sources == b.sources and torch.equal(a.positions, b.positions)


def test_the_gradient_is_the_mean_over_the_batches_of_a_step(settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = trainer_of(settings, tmp_path, batches_per_step=5, model={**settings["model"], "precision": "float64"})
    trainer.optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
    draws = trainer.batches.at(0)
    draws = draws[:4] + [next(d for step in range(1, 99) for d in trainer.batches.at(step) if d[0].name != "neon")]
    value = trainer.step(draws)
    together, one_by_one, values = gradient(trainer), torch.zeros(1), []
    trainer.batches.n = 1
    for draw in draws:
        trainer.progress.step = 0
        values.append(trainer.step([draw]))
        one_by_one = one_by_one + gradient(trainer) / 5
    assert value == pytest.approx(np.mean(values), rel=1e-12)
    torch.testing.assert_close(together, one_by_one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "soap"])
def test_heads_that_are_not_drawn_do_not_change(settings: dict[str, Any], tmp_path: Path, optimizer: str) -> None:
    trainer = trainer_of(settings, tmp_path, optimizer={"type": optimizer, "weight_decay": 0.1})
    of_task: dict[str, tuple[Task, Batch]] = {}
    for step in range(20):
        of_task |= {task.name: (task, batch) for task, batch in trainer.batches.at(step)}
    for name in ("neon", "argon", "argon", "neon"):
        trainer.step([of_task[name]] * 2)
    heads = {name: list(head.fitting.parameters()) for name, head in trainer.model.heads.items()}

    def state(name: str) -> list[torch.Tensor]:
        moments = [v for p in heads[name] for v in trainer.optimizer.state[p].values() if isinstance(v, torch.Tensor)]
        return [t.detach().clone() for t in (*heads[name], *moments)]

    before = {name: state(name) for name in heads}
    trainer.step([of_task["neon"]] * 2)
    assert all(map(torch.equal, before["argon"], state("argon")))
    assert not all(map(torch.equal, before["neon"], state("neon")))


VARIANTS = [
    {"heads": "separate", "optimizer": {"type": "soap"}},
    {"heads": "encoded", "ema": {"decay": 0.9}, "batches_per_step": 3},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda v: v["heads"])
def test_interrupted_and_resumed_is_the_same_run(
    settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_trainer import assert_same_run

    settings = {**settings, "steps": 30, **changes}
    run(settings, tmp_path / "whole")
    original = Trainer.step

    def broken(self: Trainer, draws: Any) -> float:
        if self.progress.step == 17:
            raise KeyboardInterrupt
        return original(self, draws)

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "cut")
    monkeypatch.undo()
    assert run(settings, tmp_path / "cut", resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.fixture
def file(settings: dict[str, Any], tmp_path: Path) -> Path:
    """The file of a model of two heads."""
    return run(settings, tmp_path / "run", steps=3, heads="encoded").model


def test_a_head_is_a_model_like_any_other(file: Path, tmp_path: Path) -> None:
    model = load_model(f"{file}:argon")
    assert isinstance(model, EnergyModel) and model.config.fitting.dim_case_embd == 2
    header = read_header(file)
    assert header["kind"] == "multi_task" and header["heads"] == ["neon", "argon"]
    assert header["provenance"]["elements"] == {"neon": ["He", "Ne"], "argon": ["He", "Ar"]}
    own = read_header(f"{file}:argon")["provenance"]
    assert own["elements"] == {"": ["He", "Ar"]} and own["head"] == "argon"
    assert [s["frames"] for s in own["data"]["train"]] == [10]
    assert "validation_loss" in own["training"]["metrics"] and "neon/validation_loss" not in own["training"]["metrics"]
    convert_model(f"{file}:argon", tmp_path / "argon.dpsim")
    alone = load_model(tmp_path / "argon.dpsim")
    assert alone.metadata["kind"] == "model" and alone.metadata["provenance"]["head"] == "argon"
    for name, tensor in model.state_dict().items():
        assert torch.equal(alone.state_dict()[name], tensor), name
    assert load_model(f"{file}:neon", precision="float64").dtype == torch.float64


def test_a_head_is_asked_for_by_name(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="absent.*has neon, argon"):
        load_model(file)
    with pytest.raises(ModelFileError, match="'agron'.*Did you mean `argon`"):
        load_model(f"{file}:agron")
    save_model(tmp_path / "one.dpsim", load_model(f"{file}:neon"))
    with pytest.raises(ModelFileError, match="holds one model"):
        load_model(f"{tmp_path / 'one.dpsim'}:neon")


@pytest.mark.parametrize(
    "change", [{"heads": ["neon", "neon"]}, {"heads": ["neon", "a b"]}, {"heads": ["neon"]}, {"sharing": "separate"}]
)
def test_forged_heads_are_refused(file: Path, change: dict[str, Any]) -> None:
    header, tensors = container.read(file)
    header.pop("sha256")
    container.write(file, tensors, {**header, "config": {**header["config"], **change}})
    with pytest.raises(ModelFileError):
        load_model(f"{file}:neon")


def test_training_goes_on_from_the_heads_of_a_file(settings: dict[str, Any], file: Path, tmp_path: Path) -> None:
    trainer = trainer_of(settings, tmp_path / "next", heads="encoded", init_from=str(file))
    for name, head in trainer.model.heads.items():
        for key, tensor in load_model(f"{file}:{name}").state_dict().items():
            assert torch.equal(head.state_dict()[key], tensor), key


def test_the_configuration_reads_back(settings: dict[str, Any]) -> None:
    config = TrainConfig.model_validate(settings)
    assert parse_yaml(dump_yaml(config), TrainConfig) == config


def test_bad_input(settings: dict[str, Any], lj_data: Path, tmp_path: Path) -> None:
    tasks = settings["tasks"]
    for changes, message in (
        ({"data": {"train": ["x"]}}, "both or neither"),
        ({"tasks": {}}, "both or neither"),
        ({"tasks": {"a:b": tasks["neon"]}}, "tasks"),
        ({"tasks": {"neon": {**tasks["neon"], "weight": 0}}}, "weight"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_yaml(dump_yaml_of({**settings, **changes}), TrainConfig)
    overlap = {**tasks, "argon": {**tasks["argon"], "validation": [str(lj_data / "train")]}}
    with pytest.raises(DataError, match="both"):
        open_data(TrainConfig.model_validate({**settings, "tasks": overlap}))
    fitting = {**settings["model"]["fitting"], "dim_case_embd": 5}
    with pytest.raises(ConfigError, match="dim_case_embd.*expected 2"):
        run(settings, tmp_path / "run", heads="encoded", model={**settings["model"], "fitting": fitting})


def dump_yaml_of(settings: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(settings)
