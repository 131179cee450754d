"""Parameters of frames and atoms: read, averaged, learned from, given to calculators, and asked for where they lack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
from dpsim.calculators.selection import without_parameters
from dpsim.data.frame import Batch, Frame
from dpsim.data.readers import open_system
from dpsim.data.statistics import parameter_statistics
from dpsim.errors import ConfigError, DataError
from dpsim.models.checkpoint import load_model, save_model
from dpsim.models.config import FittingConfig, ModelConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.protocols.runner import default_calculator
from dpsim.protocols.schema import Protocol
from dpsim.train.config import TrainConfig
from dpsim.train.evaluate import evaluate
from dpsim.train.progress import Silent
from dpsim.train.trainer import train
from systems_for_tests import random_arrays, write_hdf5, write_npy

DESCRIPTOR = {"type": "se_e2_r", "rcut": 4.0, "sel": [8, 8], "neuron": [4, 8]}
X = np.array([[0.0, 0, 0], [1.0, 0.2, 0], [0.3, 1.1, 0.4]])


def model_of(**fitting: Any) -> EnergyModel:
    config = ModelConfig(
        type_map=["O", "H"],
        descriptor=DESCRIPTOR,  # type: ignore[arg-type]
        fitting=FittingConfig(neuron=[8], **fitting),
        precision="float64",
    )
    return EnergyModel(config, seed=1)


def water(fparam: list[float] | None = None, aparam: list[float] | None = None) -> Frame:
    return Frame(
        *(X, np.array([0, 1, 1]), ("O", "H"), np.zeros((3, 3)), np.zeros(3, bool)),
        fparam=None if fparam is None else np.array(fparam),
        aparam=None if aparam is None else np.array(aparam)[:, None],
    )


def energies(model: EnergyModel, *frames: Frame) -> list[float]:
    return model(Batch.from_frames(frames, model.rcut)).energy.tolist()


# Data.


@pytest.mark.parametrize("form", ["npy", "hdf5"])
def test_deepmd_systems_carry_them(tmp_path: Path, form: str) -> None:
    values = {"fparam": np.arange(10.0).reshape(5, 2), "aparam": np.arange(20.0).reshape(5, 4)}
    arrays = random_arrays() | values
    if form == "npy":
        system = open_system(write_npy(tmp_path / "s", arrays, sets=2))
    else:
        system = open_system(write_hdf5(tmp_path / "s.hdf5", "a", arrays))
    frame = system.frame(3)
    assert frame.fparam.tolist() == [6.0, 7.0]
    assert frame.aparam.tolist() == [[12.0], [13.0], [14.0], [15.0]]


def test_padding_atoms_have_none(tmp_path: Path) -> None:
    arrays = random_arrays() | {
        "real_atom_types": np.array([[0, 1, 1, -1]] * 5),
        "aparam": np.arange(40.0).reshape(5, 8),
    }
    frame = open_system(write_npy(tmp_path / "s", arrays)).frame(0)
    assert frame.aparam.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


def test_extxyz_carries_them(tmp_path: Path) -> None:
    for info in (300.0, [300.0, 2.0]):
        atoms = Atoms("OHH", X, info={"fparam": info})
        atoms.set_array("aparam", np.array([1.0, 2.0, 3.0]))
        ase.io.write(tmp_path / "a.extxyz", atoms)
        frame = open_system(tmp_path / "a.extxyz").frame(0)
        assert frame.fparam.tolist() == np.ravel(info).tolist()
        assert frame.aparam.tolist() == [[1.0], [2.0], [3.0]]


def test_odd_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="aparam.npy` has shape .*expected a multiple of 4"):
        open_system(write_npy(tmp_path / "s", random_arrays() | {"aparam": np.ones((5, 6))}))
    with pytest.raises(DataError, match=r"fparam.npy` has shape \(3, 1\); expected \(5, 1\)"):
        open_system(write_npy(tmp_path / "t", random_arrays() | {"fparam": np.ones((3, 1))}))


def test_statistics(tmp_path: Path) -> None:
    fparam = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [4.0, 5.0], [5.0, 5.0]])
    system = open_system(write_npy(tmp_path / "s", random_arrays() | {"fparam": fparam}))
    found = parameter_statistics([system], "fparam", 2)
    np.testing.assert_allclose(found.avg, [3.0, 5.0])
    np.testing.assert_allclose(found.std, [np.sqrt(2), 1e-2])  # not below 1e-2
    with pytest.raises(DataError, match="frame 0: `fparam` is 2 numbers; expected 3 numbers for each frame"):
        parameter_statistics([system], "fparam", 3)
    with pytest.raises(DataError, match="`aparam` is absent; expected 1 numbers for each atom"):
        parameter_statistics([system], "aparam", 1)


# The model.


def test_input_of_the_net() -> None:
    """[D, (q - avg) inv_std, (p - avg) inv_std, c], written out."""
    model = model_of(numb_fparam=2, numb_aparam=1, dim_case_embd=3)
    fitting = model.fitting
    fitting.fparam_avg.copy_(torch.tensor([1.0, 2.0]))
    fitting.fparam_inv_std.copy_(torch.tensor([0.5, 2.0]))
    fitting.aparam_avg.fill_(0.1)
    fitting.set_case(1)
    f = water([3.0, 4.0], [0.1, 0.2, 0.3])
    bare = model_of()
    bare.descriptor.load_state_dict(model.descriptor.state_dict())
    from dpsim.models.graph import Graph

    batch = Batch.from_frames([f], 4.0)
    d = bare.descriptor(Graph.from_batch(batch, batch.edge_vectors(), 2)[0])
    rows = [[1.0, 4.0, p, 0.0, 1.0, 0.0] for p in (0.0, 0.1, 0.2)]
    x = torch.cat([d, torch.tensor(rows, dtype=torch.float64)], 1)
    expected = fitting.nets[0](x[:1]).sum() + fitting.nets[1](x[1:]).sum()
    assert energies(model, f) == pytest.approx([float(expected)], abs=1e-12)


def test_each_frame_and_atom_has_its_own() -> None:
    model = model_of(numb_fparam=1, numb_aparam=1)
    frames = [water([1.0], [0.0, 1.0, 2.0]), water([2.0], [0.0, 1.0, 2.0]), water([1.0], [2.0, 1.0, 0.0])]
    together = energies(model, *frames)
    assert together == pytest.approx([energies(model, f)[0] for f in frames], abs=1e-12)
    assert len({round(e, 6) for e in together}) == 3


def test_what_is_absent_is_asked_for() -> None:
    model = model_of(numb_fparam=2)
    with pytest.raises(DataError, match="`fparam` is absent; expected 2 numbers for each frame"):
        energies(model, water())
    with pytest.raises(DataError, match="`fparam` is absent"):
        energies(model, water([1.0, 2.0]), water())
    with pytest.raises(DataError, match=r"`fparam` is of shape \(1, 1\); expected 2 numbers"):
        energies(model, water([1.0]))
    with pytest.raises(DataError, match="carry parameters of"):
        energies(model, water([1.0]), water([1.0, 2.0]))
    with pytest.raises(DataError, match="`aparam` is absent; expected 1 numbers for each atom"):
        energies(model_of(numb_aparam=1), water())


def test_default() -> None:
    model = model_of(numb_fparam=2, default_fparam=[1.0, 3.0])
    there, absent = energies(model, water([1.0, 3.0]), water([2.0, 3.0])), energies(model, water(), water([2.0, 3.0]))
    assert there == absent
    assert energies(model, water()) == pytest.approx(there[:1], abs=1e-12)
    with pytest.raises(ValueError, match="`default_fparam` is .*expected `numb_fparam` = 1 numbers"):
        FittingConfig(numb_fparam=1, default_fparam=[1.0, 3.0])


def test_case_of_another_number() -> None:
    with pytest.raises(ConfigError, match="`case` is 3; expected a number below"):
        model_of(dim_case_embd=3).fitting.set_case(3)


def test_model_file(tmp_path: Path) -> None:
    model = model_of(numb_fparam=1, numb_aparam=1, dim_case_embd=2)
    model.fitting.set_case(1)
    model.fitting.fparam_avg.fill_(0.3)
    save_model(tmp_path / "m.dpsim", model)
    again = load_model(tmp_path / "m.dpsim")
    assert (again.numb_fparam, again.numb_aparam) == (1, 1)
    f = water([1.0], [0.0, 1.0, 2.0])
    assert energies(again, f) == energies(model, f)


# Training, testing, evaluating.


@pytest.mark.slow
def test_training_learns_from_them(
    make_system: Callable[..., Path], train_settings: dict[str, Any], tmp_path: Path
) -> None:
    """Energies that depend on a parameter alone, E = E_0 + q, are learned from it."""
    rng = np.random.default_rng(3)
    for name, n in (("train", 12), ("validation", 5)):
        folder = make_system(tmp_path / name / "a", n, 1 if name == "train" else 2)
        q = rng.uniform(-1, 1, (n, 1))
        np.save(folder / "set.000" / "fparam.npy", 300 + 20 * q)
        np.save(folder / "set.000" / "energy.npy", np.load(folder / "set.000" / "energy.npy") + q[:, 0])
    settings = train_settings | {
        "data": {"train": [str(tmp_path / "train")], "validation": [str(tmp_path / "validation")]},
        "loss": {"energy": {"start": 1.0, "limit": 1.0}, "forces": {"start": 1.0, "limit": 1.0}},
        "schedule": {"start_lr": 0.01, "stop_lr": 1e-3},
        "steps": 300,
    }
    errors = {}
    for k in (0, 1):
        changed = {**settings["model"], "fitting": {**settings["model"].get("fitting", {}), "numb_fparam": k}}
        result = train(
            TrainConfig.model_validate({**settings, "model": changed}), tmp_path / f"run{k}", reporter=Silent()
        )
        model = load_model(result.model)
        errors[k] = evaluate(model, [tmp_path / "validation"])[0].metrics()["energy"]["rmse"]
    assert errors[1] < 0.3 * errors[0]
    np.testing.assert_allclose(
        model.fitting.fparam_avg, np.load(tmp_path / "train/a/set.000/fparam.npy").mean(), rtol=1e-6
    )


def test_data_that_lack_them_stop_before_training(train_settings: dict[str, Any], tmp_path: Path) -> None:
    changed = {**train_settings["model"], "fitting": {"neuron": [8], "numb_fparam": 2}}
    with pytest.raises(DataError, match=r"set.000 frame \d+: `fparam` is absent; expected 2 numbers for each frame"):
        train(TrainConfig.model_validate({**train_settings, "model": changed}), tmp_path / "run", reporter=Silent())


def test_evaluate_reads_them(tmp_path: Path) -> None:
    model = model_of(numb_fparam=1, numb_aparam=1)
    atoms = Atoms("OHH", X, info={"fparam": 2.0})
    atoms.set_array("aparam", np.array([0.0, 1.0, 2.0]))
    ase.io.write(tmp_path / "in.extxyz", atoms)
    predict_file(model, tmp_path / "in.extxyz", tmp_path / "out.extxyz")
    found = ase.io.read(tmp_path / "out.extxyz").info["dpsim_energy"]
    assert found == pytest.approx(energies(model, water([2.0], [0.0, 1.0, 2.0]))[0], abs=1e-10)


# Calculators.


def energy_of(calculator: Any, atoms: Atoms) -> float:
    atoms.calc = calculator
    return float(atoms.get_potential_energy())


def test_calculator_takes_constants_or_what_the_atoms_carry() -> None:
    model = model_of(numb_fparam=2, numb_aparam=1)
    expected = energies(model, water([1.0, 2.0], [0.0, 1.0, 2.0]))[0]
    atoms = Atoms("OHH", X)
    aparam = np.array([0.0, 1.0, 2.0])
    assert energy_of(DPCalculator(model, fparam=[1.0, 2.0], aparam=aparam), atoms) == pytest.approx(expected)
    assert energy_of(DPCalculator(model, fparam=[1.0, 2.0], aparam=aparam[:, None]), atoms) == pytest.approx(expected)
    atoms.set_array("charges_of_mine", aparam)
    assert energy_of(DPCalculator(model, fparam=[1.0, 2.0], aparam="charges_of_mine"), atoms) == pytest.approx(expected)
    atoms.info["fparam"] = [1.0, 2.0]
    atoms.set_array("aparam", aparam)
    assert energy_of(DPCalculator(model), atoms) == pytest.approx(expected)
    committee = CommitteeCalculator([model, model_of(numb_fparam=2, numb_aparam=1)])
    assert energy_of(committee, atoms) == pytest.approx(expected)


def test_a_changed_parameter_is_noticed() -> None:
    model = model_of(numb_fparam=1)
    atoms = Atoms("OHH", X, info={"fparam": 1.0}, calculator=DPCalculator(model))
    first = atoms.get_potential_energy()
    atoms.info["fparam"] = 2.0
    assert atoms.get_potential_energy() == pytest.approx(energies(model, water([2.0]))[0])
    assert atoms.get_potential_energy() != first


def test_calculator_refuses() -> None:
    model, atoms = model_of(numb_fparam=1, numb_aparam=1), Atoms("OHH", X)
    for arguments, says in (
        ({"aparam": [0, 0, 0]}, "`fparam` is absent; expected 1 numbers for each frame"),
        ({"fparam": ["hot"]}, "`fparam` is .*expected finite numbers of the frame"),
        ({"fparam": [1.0], "aparam": [0.0, 1.0]}, "`aparam` is .*expected finite numbers for each of 3 atoms"),
        ({"fparam": [1.0], "aparam": "mine"}, "`aparam` is 'mine'; expected the name of an array of the atoms"),
    ):
        with pytest.raises(DataError, match=says):
            energy_of(DPCalculator(model, **arguments), atoms)


def test_other_programs_give_none() -> None:
    with pytest.raises(ConfigError, match="takes 2 numbers `fparam`, which OpenMM does not give"):
        without_parameters(model_of(numb_fparam=2), "OpenMM")
    assert without_parameters(model := model_of(numb_fparam=1, default_fparam=[1.0]), "OpenMM") is model


def test_a_protocol_gives_constants(tmp_path: Path) -> None:
    save_model(tmp_path / "m.dpsim", model_of(numb_fparam=1))
    plain = {
        "name": "a",
        "model": str(tmp_path / "m.dpsim"),
        "structure": {"file": str(tmp_path / "a.extxyz")},
        "stages": [{"type": "minimise"}],
    }
    calculator = default_calculator(Protocol.model_validate(plain | {"fparam": [1.0]}), None)
    assert energy_of(calculator, Atoms("OHH", X)) == pytest.approx(energies(model_of(numb_fparam=1), water([1.0]))[0])
    with pytest.raises(ConfigError, match="takes 1 numbers `fparam`, which the protocol does not give"):
        default_calculator(Protocol.model_validate(plain), None)
    with pytest.raises(ConfigError, match=r"`fparam` is \[1.0, 2.0\]; expected 1 numbers"):
        default_calculator(Protocol.model_validate(plain | {"fparam": [1.0, 2.0]}), None)


def test_models_without_them_ignore_those_of_atoms_and_refuse_others() -> None:
    model = model_of()
    with pytest.raises(ConfigError, match="expected none, as the model takes none"):
        DPCalculator(model, fparam=[1.0])
    atoms = Atoms("OHH", X, info={"fparam": "anything"})
    assert energy_of(DPCalculator(model), atoms) == pytest.approx(
        energies(model, replace(water([1.0]), aparam=None))[0]
    )
