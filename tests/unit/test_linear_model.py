"""Linear combinations of models: built, written, read, evaluated by everything that takes a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms

from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.calculators.committee import CommitteeCalculator
from dpsim.calculators.predictions import predict_file
from dpsim.data.frame import Batch, Frame
from dpsim.errors import ConfigError, ModelFileError, UnsupportedModelError
from dpsim.models.checkpoint import load_model, load_trainable, read_header, save_model
from dpsim.models.config import FittingConfig, ModelConfig
from dpsim.models.deepmd.files import model_tree, read_deepmd, write_deepmd
from dpsim.models.energy_model import EnergyModel
from dpsim.models.linear_model import LinearConfig, LinearModel
from dpsim.models.pair_table import PairPotential
from dpsim.models.pair_table_config import PairPotentialConfig
from dpsim.protocols.verify import verify

X = np.array([[0.0, 0, 0], [1.0, 0.2, 0], [0.3, 1.1, 0.4], [3.0, 1.0, 1.0]])
FRAME = Frame(X, np.array([0, 1, 1, 0]), ("O", "H"), np.zeros((3, 3)), np.zeros(3, bool))
DPA1 = {"type": "dpa1", "rcut": 4.0, "sel": 30, "neuron": [4, 8], "axis_neuron": 2, "attn_layer": 0}


def network(seed: int, type_map: tuple[str, ...] = ("O", "H"), descriptor: Any = None, **fitting: Any) -> EnergyModel:
    config = ModelConfig(
        type_map=list(type_map),
        descriptor=descriptor or DPA1,
        fitting=FittingConfig(neuron=[8], **fitting),
        precision="float64",
    )
    model = EnergyModel(config, seed=seed)
    with torch.no_grad():
        for member in model.descriptor.members:
            member.dstd.fill_(0.3)
        model.energy_bias.copy_(torch.arange(len(type_map)) - 3.0)
    return model.eval()


def table() -> PairPotential:
    return PairPotential(PairPotentialConfig(type_map=["H", "C", "O"], rcut=5.0))


def energy(model: Any, frame: Frame = FRAME) -> float:
    return float(model(Batch.from_frames([frame.with_type_map(model.type_map)], model.rcut)).energy[0])


@pytest.fixture
def combination() -> LinearModel:
    return LinearModel.of([network(1), table(), network(2, ("C", "H", "O"))], [0.3, 1.2, -1.0])


def test_weights(combination: LinearModel) -> None:
    parts = [energy(member) for member in combination.members]
    assert combination.type_map == ("O", "H")
    assert combination.rcut == 5.0
    assert energy(combination) == pytest.approx(0.3 * parts[0] + 1.2 * parts[1] - parts[2], rel=1e-12)
    for weights, expected in (("sum", sum(parts)), ("mean", sum(parts) / 3)):
        model = LinearModel.of(list(combination.members), weights)  # type: ignore[arg-type]
        assert energy(model) == pytest.approx(expected, rel=1e-12)


def test_model_file(combination: LinearModel, tmp_path: Path) -> None:
    combination.energy_bias.copy_(torch.tensor([0.5, 0.25]))
    save_model(tmp_path / "m.dpsim", combination)
    again = load_model(tmp_path / "m.dpsim")
    assert isinstance(again, LinearModel)
    assert energy(again) == energy(combination)
    assert read_header(tmp_path / "m.dpsim")["kind"] == "linear"
    assert energy(load_model(tmp_path / "m.dpsim", precision="float32")) == pytest.approx(energy(combination), rel=1e-5)
    save_model(tmp_path / "t.dpsim", table())
    assert energy(load_model(tmp_path / "t.dpsim")) == energy(table())
    for name in ("m.dpsim", "t.dpsim"):
        with pytest.raises(ModelFileError, match="expected an ordinary one, of a descriptor and a net"):
            load_trainable(tmp_path / name)


def test_excluded_types(combination: LinearModel) -> None:
    config = combination.config
    without = LinearModel(config.model_copy(update={"pair_exclude_types": [(0, 1)], "atom_exclude_types": [1]}))
    without.load_state_dict(combination.state_dict())
    found = without(Batch.from_frames([FRAME], 5.0)).atom_energy
    oxygens = Frame(X[[0, 3]], np.array([0, 0]), ("O", "H"), np.zeros((3, 3)), np.zeros(3, bool))
    assert found[1:3].tolist() == [0.0, 0.0]
    assert float(found.sum()) == pytest.approx(energy(combination, oxygens), rel=1e-12)


def test_everything_takes_it(combination: LinearModel, tmp_path: Path) -> None:
    save_model(tmp_path / "m.dpsim", combination)
    atoms, expected = Atoms("OHHO", X), energy(combination)
    for calculator in (
        DPCalculator(combination),
        DPCalculator(tmp_path / "m.dpsim"),
        CommitteeCalculator([combination, tmp_path / "m.dpsim"]),
    ):
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(expected, rel=1e-12)
        assert np.abs(atoms.get_forces().sum(0)).max() < 1e-10
    ase.io.write(tmp_path / "in.extxyz", Atoms("OHHO", X))
    predict_file(tmp_path / "m.dpsim", tmp_path / "in.extxyz", tmp_path / "out.extxyz")
    assert ase.io.read(tmp_path / "out.extxyz").info["dpsim_energy"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_every_engine_agrees(combination: LinearModel) -> None:
    found = verify(combination, Atoms("OHHO", X, cell=np.eye(3) * 11, pbc=True))
    assert {row.verdict for row in found.rows} <= {"PASS", "absent"}, found.rows


def test_parameters_go_to_the_members_that_take_them() -> None:
    model = LinearModel.of([network(1, numb_fparam=2), network(2)])
    assert model.numb_fparam == 2
    with_q = Frame(*(FRAME.positions, FRAME.types, FRAME.type_map, FRAME.cell, FRAME.pbc), fparam=np.array([1.0, 2.0]))
    assert energy(model, with_q) == pytest.approx(sum(energy(m, with_q) for m in model.members), rel=1e-12)


def test_round_trip_through_deepmd_files(tmp_path: Path) -> None:
    model = LinearModel.of([network(1), network(2)], [0.3, 1.2])
    for name in ("m.dp", "m.yaml"):
        write_deepmd(tmp_path / name, model)
        again = read_deepmd(tmp_path / name)
        assert isinstance(again, LinearModel)
        assert energy(again) == pytest.approx(energy(model), rel=1e-12)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert model_tree(model)["model"]["type"] == "linear_ener"
    descriptor = {"type": "se_e2_a", "rcut": 4.0, "sel": [4, 4], "neuron": [4, 8], "axis_neuron": 2}
    with pytest.raises(UnsupportedModelError, match="combines a descriptor se_e2_a"):
        model_tree(LinearModel.of([network(1, descriptor=descriptor)]))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weights": [1.0]}, r"`weights` is \[1.0\]; expected a number for each of 3 members"),
        ({"type_map": ["O", "N"]}, r"`members.0.type_map` is .*expected \['N'\] in it too"),
        ({"type_map": ["O", "O"]}, "expected every element once"),
        ({"atom_exclude_types": [2]}, "indices from 0 to 1"),
    ],
)
def test_settings_are_checked(combination: LinearModel, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LinearConfig.model_validate(combination.config.model_dump() | changes)


def test_members_are_models(combination: LinearModel) -> None:
    with pytest.raises(ConfigError, match="`models` has a LinearModel; expected models and pair potentials"):
        LinearModel.of([combination])
