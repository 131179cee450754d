"""dpsim/train/finetune.py: a run that starts from a trained model, what it keeps, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpsim.config import validate
from dpsim.data.frame import Batch
from dpsim.data.readers import open_dataset
from dpsim.errors import ConfigError, DataError, ElementError, ModelFileError, TrainingError, UnsupportedModelError
from dpsim.models.checkpoint import load_model, load_trainable, read_header
from dpsim.models.code import without_code
from dpsim.models.energy_model import EnergyModel
from dpsim.train.config import TrainConfig
from dpsim.train.finetune import complete, freeze
from dpsim.train.progress import Silent
from dpsim.train.trainer import Trainer, TrainResult, train

DPA1 = {"type": "dpa1", "rcut": 4.0, "rcut_smth": 0.5, "sel": 12, "neuron": [4, 8], "axis_neuron": 2}


class Notes(Silent):
    """What a run said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def config_of(settings: dict[str, Any], **update: Any) -> TrainConfig:
    return validate({k: v for k, v in {**settings, **update}.items() if v is not None}, TrainConfig)


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    schedule = {"start_lr": 2e-3, "stop_lr": 1e-4}
    rare = {"log_every": 50, "validation": {"every": 50, "frames": 4}, "checkpoint": {"every": 50}}
    return {**rare, "schedule": schedule, "steps": 8, "threads": 1, "tensorboard": False, "seed": 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_system: Callable[..., Path]) -> Path:
    """old: the pre-training's; new: the same world with another zero of energy; new/validation."""
    root = tmp_path_factory.mktemp("data")
    make_system(root / "old", 40, seed=1)
    for name, n in (("new", 8), ("validation", 4)):
        energy = make_system(root / name, n, seed=2 + n) / "set.000" / "energy.npy"
        np.save(energy, np.load(energy) + 3 * (7.0 - 2.0))
    return root


@pytest.fixture(scope="module")
def pretrained(settings: dict[str, Any], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = {"type_map": ["He", "Ne", "Ar"], "descriptor": DPA1, "fitting": {"neuron": [8]}}
    sets, schedule = {"train": [str(data / "old")], "batch_size": 4}, {"start_lr": 2e-2, "stop_lr": 1e-4}
    config = config_of(settings, model=model, data=sets, schedule=schedule, steps=50)
    return train(config, tmp_path_factory.mktemp("pretrained"), reporter=Silent()).model


@pytest.fixture(scope="module")
def two_heads(settings: dict[str, Any], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = {"type_map": ["He", "Ne"], "descriptor": DPA1, "fitting": {"neuron": [8]}}
    tasks = {"a": {"train": [str(data / "old")]}, "b": {"train": [str(data / "validation")]}}
    config = config_of(settings, model=model, tasks=tasks)
    return train(config, tmp_path_factory.mktemp("two"), reporter=Silent()).model


def tune(
    settings: dict[str, Any], root: Path, folder: Path, init: dict[str, Any], **update: Any
) -> tuple[TrainResult, Notes]:
    notes = Notes()
    sets = {"train": [str(root / "new")], "validation": [str(root / "validation")], "batch_size": 4}
    config = config_of(settings, init_from=init, **{"data": sets, **update})
    return train(config, folder, reporter=notes), notes


def test_from_a_file_to_a_better_model(settings: dict[str, Any], data: Path, pretrained: Path, tmp_path: Path) -> None:
    result, notes = tune(settings, data, tmp_path / "run", {"model": str(pretrained)}, steps=30)
    old, new = load_trainable(pretrained), load_trainable(result.model)
    assert new.config == old.config  # `model` is the file's
    torch.testing.assert_close(new.descriptor.dstd, old.descriptor.dstd)
    record = read_header(result.model)["provenance"]["fine_tuning"]
    assert record["from"] == "model-last.dpsim" and record["sha256"] == old.metadata["sha256"]
    shift = record["energy_bias_shift_eV"]
    assert set(shift) == {"He", "Ne"} and 3 * sum(shift.values()) == pytest.approx(15.0, abs=0.3)
    before, after = record["zero_shot"], record["after"]
    assert before["energy_rmse_meV_per_atom"] < 100  # of 2500 without the shift
    assert after["force_rmse_meV_per_A"] < before["force_rmse_meV_per_A"]
    assert any(line.startswith("zero-shot: energy") for line in notes.lines)
    told = next(line for line in notes.lines if line.startswith("fine-tuned: energy"))
    assert f"{before['force_rmse_meV_per_A']:.4g} -> {after['force_rmse_meV_per_A']:.4g} meV/A" in told
    assert told.endswith("on 4 validation frames")


def test_the_first_checkpoint_is_the_zero_shot_model(
    settings: dict[str, Any], data: Path, pretrained: Path, tmp_path: Path
) -> None:
    """The best model is never worse than what one started with; and a resumed run goes on bit by bit."""
    init = {"model": str(pretrained), "trial_steps": 3}
    whole, _ = tune(settings, data, tmp_path / "whole", init, steps=6, checkpoint={"every": 2})
    assert whole.best_model is not None
    sets = {"train": [str(data / "new")], "validation": [str(data / "validation")], "batch_size": 4}
    config = config_of(settings, init_from=init, data=sets, steps=6, checkpoint={"every": 2})
    trainer = Trainer(complete(config, {}), tmp_path / "broken", False, Silent())
    step, steps_done = trainer.step, []

    def interrupted(draws: Any) -> float:
        if len(steps_done) == 3:
            raise KeyboardInterrupt
        steps_done.append(0)
        return step(draws)

    trainer.step = interrupted  # type: ignore[method-assign]
    (tmp_path / "broken" / "checkpoint").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    resumed = train(config, tmp_path / "broken", resume=True, reporter=Silent())
    one, other = (load_model(r.model).state_dict() for r in (whole, resumed))
    assert all(torch.equal(one[k], other[k]) for k in one)
    records = [read_header(r.model)["provenance"]["fine_tuning"] for r in (whole, resumed)]
    assert records[0] == records[1]


@pytest.mark.parametrize("part", ["descriptor", "fitting"])
def test_frozen_parts_stay(settings: dict[str, Any], data: Path, pretrained: Path, tmp_path: Path, part: str) -> None:
    result, _ = tune(settings, data, tmp_path / "run", {"model": str(pretrained), "freeze": [part]})
    old, new = (load_trainable(path).state_dict() for path in (pretrained, result.model))
    changed = {k for k in old if not torch.equal(old[k], new[k])}
    other = "fitting" if part == "descriptor" else "descriptor"
    assert changed and all(k.startswith((other, "energy_bias")) for k in changed)


def test_what_cannot_be_frozen(pretrained: Path) -> None:
    model = load_trainable(pretrained)
    with pytest.raises(ConfigError, match=r"`freeze` has 'descripter'.*Did you mean `descriptor`"):
        freeze(model, ["descripter"])
    with pytest.raises(ConfigError, match="which is all of the model"):
        freeze(model, ["descriptor", "fitting"])


def test_a_fresh_head(settings: dict[str, Any], data: Path, two_heads: Path, tmp_path: Path) -> None:
    """The descriptor is the file's, whichever head is named; the net is another, of the widths that are asked for."""
    init = {"model": str(two_heads), "head": "fresh", "freeze": ["descriptor"]}
    model = {"type_map": ["He", "Ne"], "descriptor": DPA1 | {"sel": "auto"}, "fitting": {"neuron": [12, 12]}}
    result, _ = tune(settings, data, tmp_path / "run", init, model=model)
    old, new = load_trainable(two_heads, head="a"), load_trainable(result.model)
    assert new.config.fitting.neuron == [12, 12]
    assert all(torch.equal(x, new.descriptor.state_dict()[k]) for k, x in old.descriptor.state_dict().items())


def test_elements_are_restricted(settings: dict[str, Any], data: Path, pretrained: Path, tmp_path: Path) -> None:
    model = {"type_map": ["Ne", "He"], "descriptor": DPA1, "fitting": {"neuron": [8]}}
    result, _ = tune(settings, data, tmp_path / "run", {"model": str(pretrained)}, model=model)
    assert load_model(result.model).type_map == ("Ne", "He")


@pytest.mark.parametrize("symbol", ["Ar", "Xe"])
def test_elements_never_seen(
    settings: dict[str, Any], data: Path, pretrained: Path, tmp_path: Path, symbol: str
) -> None:
    """Ar is in the model's type_map, but was not in its data; Xe is not in it at all. Overridden, both are learned."""
    system = shutil.copytree(data / "new", tmp_path / "new")
    (system / "type_map.raw").write_text(f"He\n{symbol}\n")
    sets = {"train": [str(system)]}
    with pytest.raises(ElementError, match=rf"`data` has {symbol}, which .* never saw; expected elements among He"):
        tune(settings, data, tmp_path / "run", {"model": str(pretrained)}, data=sets)
    init = {"model": str(pretrained), "override": ["elements"], "trial_steps": 2}
    result, notes = tune(settings, data, tmp_path / "over", init, data=sets, steps=2)
    assert symbol in load_model(result.model).type_map
    assert any("`elements` is overridden" in line for line in notes.lines)


def test_files_that_do_not_say_what_they_saw(
    settings: dict[str, Any], data: Path, pretrained: Path, tmp_path: Path
) -> None:
    from dpsim.models.checkpoint import save_model

    save_model(tmp_path / "old.dpsim", load_trainable(pretrained), {})
    _, notes = tune(settings, data, tmp_path / "run", {"model": str(tmp_path / "old.dpsim")})
    assert any("does not say which elements it learned from" in line for line in notes.lines)


def test_unknown_heads(settings: dict[str, Any], data: Path, pretrained: Path, two_heads: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"`head` is 'aa'; .* has a, b; expected one of them. Did you mean `a`\?"):
        tune(settings, data, tmp_path / "1", {"model": f"{two_heads}:aa"})
    with pytest.raises(ModelFileError, match="`head` is absent"):
        tune(settings, data, tmp_path / "2", {"model": str(two_heads)})
    with pytest.raises(ModelFileError, match="holds one model"):
        tune(settings, data, tmp_path / "3", {"model": f"{pretrained}:a"})


def changed(source: Path, folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    shutil.copytree(source, folder)
    array = folder / "set.000" / f"{name}.npy"
    np.save(array, change(np.load(array)))
    return folder


def test_labels_that_cannot_be(settings: dict[str, Any], data: Path, pretrained: Path, tmp_path: Path) -> None:
    bad = changed(data / "new", tmp_path / "energy", "energy", lambda e: e + np.eye(8)[3] * 40.0)
    with pytest.raises(
        DataError, match=r"`energy` of 1 of 8 frames cannot belong .*set.000 frame 3 \(\+6\.\d+ eV/atom\)"
    ):
        tune(settings, data, tmp_path / "1", {"model": str(pretrained)}, data={"train": [str(bad)]})
    bad = changed(data / "new", tmp_path / "virial", "virial", lambda w: -w)
    with pytest.raises(DataError, match="`virial` has the wrong sign"):
        tune(settings, data, tmp_path / "2", {"model": str(pretrained)}, data={"train": [str(bad)]})


def test_a_rate_that_destroys_the_start(settings: dict[str, Any], data: Path, pretrained: Path, tmp_path: Path) -> None:
    """Of data that the model knows to 1 meV/A: its own forces."""
    model = load_trainable(pretrained)
    (system,) = open_dataset(data / "new")
    frames = [system.frame(k).with_type_map(model.type_map) for k in range(len(system))]
    forces = model(Batch.from_frames(frames, model.rcut), virial=False).forces.numpy().reshape(len(system), -1)
    noise = np.random.default_rng(1).normal(0, 1e-3, forces.shape)
    known = {"train": [str(changed(data / "new", tmp_path / "known", "force", lambda _: forces + noise))]}
    schedule = {"start_lr": 1.0, "stop_lr": 1e-2}
    init = {"model": str(pretrained), "trial_steps": 3, "override": ["virials"]}
    with pytest.raises(TrainingError, match=r"after 3 steps the loss .*`schedule.start_lr` = 1 destroys the start"):
        tune(settings, data, tmp_path / "1", init, schedule=schedule, data=known)
    init["override"] = ["learning_rate", "virials"]
    _, notes = tune(settings, data, tmp_path / "2", init, schedule=schedule, data=known)
    assert any("`learning_rate` is overridden" in line for line in notes.lines)


def test_replay(settings: dict[str, Any], data: Path, two_heads: Path, tmp_path: Path) -> None:
    """The new data beside the old: one model of two heads, the old one's start and bias kept."""
    replay = {"tasks": {"a": {"train": [str(data / "old")]}}, "share": 0.25, "name": "new"}
    result, notes = tune(settings, data, tmp_path / "run", {"model": f"{two_heads}:a", "replay": replay})
    header = read_header(result.model)
    assert header["heads"] == ["new", "a"]
    old, kept, new = (
        load_trainable(f"{two_heads}:a"),
        load_model(f"{result.model}:a"),
        load_model(f"{result.model}:new"),
    )
    torch.testing.assert_close(kept.energy_bias, old.energy_bias)
    assert float((new.energy_bias - old.energy_bias).abs().max()) > 1
    assert set(header["provenance"]["fine_tuning"]["zero_shot"]) == {"new"}
    assert any(line.startswith("zero-shot (new): ") for line in notes.lines)
    config = complete(config_of(settings, init_from={"model": f"{two_heads}:a", "replay": replay},
                                data={"train": [str(data / "new")]}), {})  # fmt: skip
    weights = {name: task.weight for name, task in config.tasks.items()}
    assert weights["a"] / sum(weights.values()) == pytest.approx(0.25)


def test_replay_of_a_file_with_one_model(
    settings: dict[str, Any], data: Path, pretrained: Path, tmp_path: Path
) -> None:
    replay = {"tasks": {"old": {"train": [str(data / "old")]}}}
    result, _ = tune(settings, data, tmp_path / "run", {"model": str(pretrained), "replay": replay}, steps=2)
    assert read_header(result.model)["heads"] == ["downstream", "old"]


def test_replay_of_encoded_heads(settings: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """Each gets a fitting net of its own, with the energies that it had."""
    model = {"type_map": ["He", "Ne"], "descriptor": DPA1, "fitting": {"neuron": [8]}}
    tasks = {"a": {"train": [str(data / "old")]}, "b": {"train": [str(data / "validation")]}}
    source = train(config_of(settings, model=model, tasks=tasks, heads="encoded"), tmp_path / "two", reporter=Silent())
    replay = {"tasks": {name: {"train": [str(data / "old")]} for name in tasks}}
    changes = {"steps": 1, "schedule": {"start_lr": 1e-12, "stop_lr": 1e-13}}
    result, _ = tune(settings, data, tmp_path / "run", {"model": f"{source.model}:a", "replay": replay}, **changes)
    assert read_header(result.model)["heads"] == ["downstream", "a", "b"]
    (system,) = open_dataset(data / "old")
    for head in "ab":
        old, new = load_trainable(f"{source.model}:{head}"), load_model(f"{result.model}:{head}")
        assert old.config.fitting.dim_case_embd == 2 and new.config.fitting.dim_case_embd == 0
        batch = Batch.from_frames([system.frame(0).with_type_map(old.type_map)], old.rcut)
        torch.testing.assert_close(new(batch).energy, old(batch).energy, rtol=0.0, atol=1e-5)
    encoded = {"data": None, "tasks": {"a": tasks["a"], "c": tasks["b"]}, "heads": "encoded"}
    with pytest.raises(ConfigError, match="`heads` is encoded; expected separate"):
        tune(settings, data, tmp_path / "2", {"model": f"{source.model}:a"}, **encoded)
    wide = old.config.fitting.model_copy(update={"neuron": [old.fitting.nets[0][0].n_in]})
    with pytest.raises(UnsupportedModelError, match="its first layer has a residual"):
        without_code(EnergyModel(old.config.model_copy(update={"fitting": wide}), seed=0))


def test_a_part_of_the_frames(settings: dict[str, Any], data: Path, pretrained: Path, tmp_path: Path) -> None:
    sets = {"train": [str(data / "new")], "frames": 3}
    result, _ = tune(settings, data, tmp_path / "run", {"model": str(pretrained)}, data=sets, steps=2)
    (described,) = read_header(result.model)["provenance"]["data"]["train"]
    assert described["frames"] == 3


def test_settings_that_contradict(settings: dict[str, Any], data: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`model` is missing"):
        config_of(settings, data={"train": [str(data / "new")]})
    model = {"type_map": ["He", "Ne"], "descriptor": {**DPA1, "rcut": 3.0}, "fitting": {"neuron": [8]}}
    with pytest.raises(ConfigError, match="whose descriptor differ from `model`"):
        tune(settings, data, tmp_path / "1", {"model": str(pretrained)}, model=model)
    replay = {"tasks": {"downstream": {"train": [str(data / "old")]}}}
    with pytest.raises(ConfigError, match="to learn under a name of its own"):
        tune(settings, data, tmp_path / "2", {"model": str(pretrained), "replay": replay})
