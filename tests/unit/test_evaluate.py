"""dpsim/train/evaluate.py and testing.py: errors against loops over frames, and the files of `dpsim test`."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dpsim.config import validate
from dpsim.data.frame import Batch
from dpsim.data.readers import open_dataset
from dpsim.errors import ConfigError, DataError, ElementError
from dpsim.models.checkpoint import save_model
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.train.averages import log_weighted_average, weighted_average
from dpsim.train.config import LossConfig
from dpsim.train.energy_bias import fit_energy_bias, shift_energy_bias
from dpsim.train.evaluate import Pairs, Validator, all_frames, batches, evaluate, spread_frames
from dpsim.train.testing import SetsConfig, averages, check_model, check_sets, total


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


def test_averages_over_sets() -> None:
    """DPA-2's and DPA-3's (Eq. 1): DPA-3, Table S-3, liquid water and ices, DPA3-L12, prints 1.0 and 25.2."""
    assert weighted_average([1.0, 3.0], [1.0, 3.0]) == 2.5
    assert log_weighted_average([1.0, 8.0], [2.0, 1.0]) == pytest.approx(2.0)
    assert log_weighted_average([1.0, 1.4, 0.9, 0.7], [1, 1, 1, 1]) == pytest.approx(1.0, abs=0.05)
    assert log_weighted_average([41.9, 31.4, 19.8, 15.5], [1, 1, 1, 1]) == pytest.approx(25.2, abs=0.05)
    assert log_weighted_average([0.0, 4.0], [1.0, 1.0]) == 0.0
    assert log_weighted_average([0.0, 4.0], [0.0, 1.0]) == pytest.approx(4.0)


def test_the_energy_bias_is_fitted_to_label_minus_prediction(model: EnergyModel, lj_data: Path, tmp_path: Path) -> None:
    """Energies that are the model's own plus a constant per element are found again, outliers and all."""
    systems = open_dataset(_labelled_by(model, lj_data / "train" / "a", tmp_path, [0.25, -1.5]), model.type_map)
    fit = fit_energy_bias(model, systems)
    he, ne = (model.type_map.index(s) for s in ("He", "Ne"))
    assert 3 * (fit.shift[he] + fit.shift[ne]) == pytest.approx(3 * (0.25 - 1.5), abs=1e-9)  # one composition
    assert fit.shift[he] == pytest.approx(fit.shift[ne])  # minimum norm
    assert fit.shift[model.type_map.index("Ar")] == 0.0
    assert np.abs(fit.residual()).max() < 1e-9 and len(fit.sources) == 12
    before = model.energy_bias.clone()
    shift_energy_bias(model, fit.shift)
    np.testing.assert_allclose(model.energy_bias - before, fit.shift)
    (result,) = evaluate(model, [tmp_path / "data"])
    assert result.pairs["energy"].metrics()["rmse"] < 1e-6
    assert set(fit.by_element()) == {"He", "Ne"}


def _labelled_by(model: EnergyModel, source: Path, folder: Path, shift: list[float]) -> Path:
    """A copy of a system of He and Ne with the energies of a model, plus a constant per element."""
    shutil.copytree(source, folder / "data")
    (system,) = open_dataset(source)
    batch = Batch.from_frames([system.frame(k).with_type_map(model.type_map) for k in range(len(system))], model.rcut)
    energy = model(batch, forces=False, virial=False).energy.numpy() + 3 * sum(shift)
    np.save(folder / "data" / "set.000" / "energy.npy", energy)
    return folder / "data"


def test_a_table_of_sets(model: EnergyModel, lj_data: Path, make_system: Callable[..., Path], tmp_path: Path) -> None:
    save_model(tmp_path / "m.dpsim", model)
    other = EnergyModel(model.config, seed=2)
    save_model(tmp_path / "other.dpsim", other)
    make_system(tmp_path / "b", 2, seed=2, virial=False)
    a = str(lj_data / "validation")
    settings = {
        "model": str(tmp_path / "m.dpsim"),
        "sets": [
            {"data": a, "weight": 3.0, "energy_bias": str(lj_data / "train")},
            {"data": [str(tmp_path / "b"), a], "name": "two", "model": str(tmp_path / "other.dpsim")},
        ],
    }
    screen = Console(file=io.StringIO(), width=72)
    results = check_sets(validate(settings, SetsConfig), tmp_path / "out", screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "WARMSE" in text and "two" in text and "*" in text
    assert "…" not in text  # whole numbers, however narrow the terminal
    content = json.loads((tmp_path / "out/test.json").read_text())
    first, second = content["sets"]
    assert first["energy_bias_shift_eV"].keys() == {"Ne", "He"} and second["energy_bias_shift_eV"] is None
    assert [m["path"].rpartition("/")[2] for m in content["model"]] == ["m.dpsim", "other.dpsim"]
    assert second["n_frames"] == 7 and second["model"].endswith("other.dpsim")
    rmse = [s["forces"]["rmse"] for s in content["sets"]]
    assert content["averages"]["WARMSE"]["forces"]["rmse"] == pytest.approx((3 * rmse[0] + rmse[1]) / 4)
    assert content["averages"]["LWARMSE"]["forces"]["rmse"] == pytest.approx((rmse[0] ** 3 * rmse[1]) ** 0.25)
    assert averages(results) == content["averages"]
    assert first["energy"]["rmse"] < evaluate(model, [a])[0].pairs["energy"].metrics()["rmse"]


def test_tables_that_cannot_be_used(lj_data: Path) -> None:
    with pytest.raises(ConfigError, match="`model` is absent"):
        validate({"sets": [{"data": str(lj_data)}]}, SetsConfig)
    with pytest.raises(ConfigError, match="`weight` is 0 in all sets"):
        validate({"model": "m", "sets": [{"data": str(lj_data), "weight": 0}]}, SetsConfig)


def test_the_spread_that_composition_explains_is_told_apart(model: EnergyModel, lj_data: Path) -> None:
    (result,) = evaluate(model, [lj_data / "train"])
    energy = result.metrics()["energy"]  # one composition: nothing to explain
    assert energy["label_std_in_composition"] == pytest.approx(energy["label_std"])
    label = result.pairs["energy"].arrays()[0]
    result.fractions = [np.array([x, 1 - x, 0.0]) for x in label]  # energies linear in the composition
    assert result.metrics()["energy"]["label_std_in_composition"] < 1e-6
