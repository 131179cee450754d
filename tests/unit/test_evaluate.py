"""dpsim/train/evaluate.py and testing.py: errors against loops over frames, and the files of `dpsim test`."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dpsim.data.frame import Batch
from dpsim.data.readers import open_dataset
from dpsim.errors import DataError, ElementError
from dpsim.models.checkpoint import save_model
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.train.config import LossConfig
from dpsim.train.evaluate import Pairs, Validator, all_frames, batches, evaluate, spread_frames
from dpsim.train.testing import check_model, total


@pytest.fixture
def model() -> EnergyModel:
    config = ModelConfig.model_validate(
        {
            "type_map": ["Ne", "Ar", "He"],  # another order than the data's
            "descriptor": {"type": "se_e2_a", "sel": [8, 8, 8], "rcut": 4.0, "neuron": [4, 8], "axis_neuron": 2},
            "fitting": {"neuron": [8]},
            "precision": "float64",
        }
    )
    return EnergyModel(config, seed=1)


def test_errors_equal_those_of_a_loop_over_frames(model: EnergyModel, lj_data: Path) -> None:
    (result,) = evaluate(model, [lj_data / "train"])
    de, df, dw = [], [], []
    for system in open_dataset(lj_data / "train"):
        for k in range(len(system)):
            frame = system.frame(k).with_type_map(model.type_map)
            p = model(Batch.from_frames([frame], model.rcut))
            de.append(1000 * (p.energy[0].item() - frame.energy) / 6)
            df.append(1000 * (p.forces.numpy() - frame.forces))
            dw.append(1000 * (p.virial[0].numpy() - frame.virial) / 6)
    assert result.n_frames == 20
    for name, errors in {"energy": de, "forces": df, "virial": dw}.items():
        metrics = result.pairs[name].metrics()
        flat = np.ravel(errors)
        assert metrics["n"] == flat.size
        assert metrics["rmse"] == pytest.approx(math.sqrt(np.mean(flat**2)))
        assert metrics["mae"] == pytest.approx(np.mean(np.abs(flat)))
        assert metrics["max"] == pytest.approx(np.max(np.abs(flat)))


def test_validator_agrees_with_evaluate(model: EnergyModel, lj_data: Path) -> None:
    systems = open_dataset(lj_data / "validation")
    validator = Validator(systems, 100, LossConfig())
    score, errors = validator(model)
    assert validator(model)[0] == score  # from the cache: the same
    (result,) = evaluate(model, [lj_data / "validation"])
    rmse = [1000 * x for x in errors.rmse()]
    assert rmse == pytest.approx([result.pairs[q].metrics()["rmse"] for q in ("energy", "forces", "virial")])
    e, f, w = errors.rmse()
    assert score == pytest.approx(6 * e * e + f * f + 6 * w * w)


def test_frames_are_spread_evenly_and_batched_whole(model: EnergyModel, lj_data: Path) -> None:
    systems = open_dataset(lj_data / "train")
    assert spread_frames(systems, 100) == all_frames(systems)
    picks = spread_frames(systems, 5)
    assert picks[0] == (0, 0) and picks[-1] == (1, 7) and len(set(picks)) == 5
    sizes = [b.n_frames for b in batches(systems, all_frames(systems), model)]
    assert sum(sizes) == 20


def test_sets_without_some_labels(model: EnergyModel, make_system: Callable[..., Path], tmp_path: Path) -> None:
    make_system(tmp_path / "a", 3, seed=1, virial=False)
    make_system(tmp_path / "b", 2, seed=2)
    results = evaluate(model, [tmp_path / "a", tmp_path / "b"])
    assert results[0].pairs["virial"].metrics() == {"n": 0}
    assert total(results).pairs["virial"].metrics()["n"] == 18
    assert total(results).metrics()["forces"]["n"] == 5 * 18


def test_table_json_and_plot(model: EnergyModel, lj_data: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "m.dpsim", model)
    screen = Console(file=io.StringIO(), width=160)
    sets = [lj_data / "train", lj_data / "validation"]
    check_model(tmp_path / "m.dpsim", sets, output=tmp_path / "out", console=screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "RMSE" in text and "validation" in text and "all" in text
    content = json.loads((tmp_path / "out/test.json").read_text())
    assert [s["n_frames"] for s in content["sets"]] == [20, 5]
    assert content["all"]["forces"]["unit"] == "meV/A"
    assert len(content["model"]["sha256"]) == 64
    assert (tmp_path / "out/parity.png").read_bytes()[:4] == b"\x89PNG"


def test_unknown_elements_and_missing_data(model: EnergyModel, lj_data: Path, tmp_path: Path) -> None:
    config = model.config.model_copy(update={"type_map": ["Ne", "Ar", "Kr"]})
    with pytest.raises(ElementError, match="He"):
        evaluate(EnergyModel(config), [lj_data / "train"])
    with pytest.raises(DataError, match="does not exist"):
        evaluate(model, [tmp_path / "nothing"])


def test_metrics_of_known_numbers() -> None:
    pairs = Pairs()
    pairs.add(np.array([1.0, 3.0]), np.array([2.0, 1.0]))
    assert pairs.metrics() == {"n": 2, "mae": 1.5, "rmse": math.sqrt(2.5), "max": 2.0, "label_std": 1.0}
