"""The model deviation on paper, committees named by a comma wherever a model is, and `dpsim deviation`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read, write

from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.calculators.base import evaluate_frames
from dpsim.calculators.committee import CommitteeCalculator, ase_calculator
from dpsim.calculators.deviation import columns, model_deviation
from dpsim.calculators.members import Committee, committee_of, members_of, open_calculator, open_evaluator
from dpsim.calculators.predictions import predict_file
from dpsim.data.frame import Batch, Frame
from dpsim.engines.ase_engine import AseEngine, state_from_atoms
from dpsim.engines.base import RunControl, StageSettings
from dpsim.errors import ConfigError, DataError, ElementError
from dpsim.models.checkpoint import save_model
from dpsim.protocols.deviation_file import deviation_file
from dpsim.train.testing import check_model
from test_ase_calculator import liquid
from test_committee import model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, another that counts elements otherwise and sees less, and three structures with labels."""
    path = tmp_path_factory.mktemp("deviation")
    save_model(path / "a.dpsim", model(1))
    save_model(path / "b.dpsim", model(2))
    save_model(path / "c.dpsim", model(3, ("C", "H", "O"), rcut=3.0))
    frames = []
    for k in range(3):
        atoms = liquid(2, pbc=k < 2)
        atoms.rattle(0.05, seed=k)
        atoms.info["REF_energy"] = float(k)
        atoms.arrays["REF_forces"] = np.random.default_rng(k).normal(size=(len(atoms), 3))
        frames.append(atoms)
    write(path / "s.extxyz", frames)
    return path


def names(folder: Path, which: str = "abc") -> list[str]:
    return [str(folder / f"{name}.dpsim") for name in which]


def test_the_formulas_on_paper_against_labels_and_relative() -> None:
    forces = np.array([[[1.0, 0, 0], [0, 0, 0]], [[3.0, 0, 0], [0, 4.0, 0]]])
    virials = np.zeros((2, 3, 3))
    virials[0, 0, 0], virials[1, 0, 0] = 2.0, 10.0
    energies = np.array([1.0, 5.0])
    found = model_deviation(forces, virials, energies, relative_v=1.0)
    assert found["devi_e"] == 1.0  # std 2 of two atoms
    assert found["max_devi_v"] == pytest.approx(2.0 / (6.0 / 2 + 1.0))  # Eq. 72: |<W>| = 6 of two atoms
    label = Frame(
        np.zeros((2, 3)), np.zeros(2, dtype=int), ("H",), np.eye(3), np.ones(3, dtype=bool),
        energy=1.0, forces=np.array([[0.0, 0, 0], [0, 0, 3.0]]),
    )  # fmt: skip
    found = model_deviation(forces, virials, energies, relative=1.0, labels=label)
    first, second = np.sqrt((1 + 9) / 2), np.sqrt((9 + 16 + 9) / 2)
    np.testing.assert_allclose(found["devi_f"], [first / 1.0, second / 4.0])  # relative to the label
    assert found["devi_e"] == pytest.approx(np.sqrt(16 / 2) / 2)
    assert np.isnan(found["max_devi_v"])
    assert columns()[0] == "max_devi_v_eV_per_atom" and columns()[3] == "max_devi_f_eV_per_A"
    assert columns(True, False, True)[3:] == [f"{x}_error_f_relative" for x in ("max", "min", "avg")] + [
        "error_e_eV_per_atom"
    ]


def test_a_committee_is_named_as_a_model_is(folder: Path) -> None:
    text = ", ".join(names(folder))
    assert members_of(text) == names(folder)
    assert members_of("water-pbe0ts") == ["water-pbe0ts"]
    for wrong in ("a,", "a,a", ["a", "a"], []):
        with pytest.raises(ConfigError, match="different ones"):
            members_of(wrong)
    atoms = liquid(2)
    atoms.calc = ase_calculator(text)
    assert isinstance(atoms.calc, CommitteeCalculator) and len(atoms.calc.models) == 3
    energy = atoms.get_potential_energy()
    evaluator = open_evaluator(text, None, "cpu", 0.5, "a test")
    types = np.array([evaluator.type_map.index(s) for s in atoms.symbols])
    found = evaluator.evaluate(types, atoms.positions, atoms.cell.array, atoms.pbc)
    assert float(found.energy[0]) == pytest.approx(energy, abs=1e-10)
    assert isinstance(ase_calculator(names(folder)[0]), DPCalculator)


def test_the_mean_of_batches_and_frames(folder: Path) -> None:
    """Members with another cutoff see their own edges; frames may be counted in any way."""
    committee = open_calculator(names(folder))
    assert isinstance(committee, Committee) and committee.type_map == ("O", "H") and committee.rcut == 4.0
    atoms = read(folder / "s.extxyz", ":")
    frames = [
        Frame(a.positions, (a.numbers == 1).astype(int), ("O", "H"), a.cell.array * a.pbc.any(), a.pbc) for a in atoms
    ]
    alone = [list(evaluate_frames(open_calculator(name), frames)) for name in names(folder)]
    together = list(evaluate_frames(committee, frames))
    batch = committee.compute(Batch.from_frames(frames, committee.rcut))
    for k, found in enumerate(together):
        for quantity in ("energy", "forces", "virial", "atom_energy"):
            mean = torch.stack([getattr(one[k], quantity) for one in alone]).mean(dim=0)
            torch.testing.assert_close(getattr(found, quantity), mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(batch.energy, torch.cat([p.energy for p in together]), rtol=0, atol=1e-10)
    torch.testing.assert_close(batch.forces, torch.cat([p.forces for p in together]), rtol=0, atol=1e-10)
    for one, each in zip(zip(*alone, strict=True), committee.each(iter(frames)), strict=True):
        for a, b in zip(one, each, strict=True):
            torch.testing.assert_close(a.forces, b.forces)
    assert committee_of([model(1)]).type_map == ("O", "H")


def test_evaluate_and_test_take_committees(folder: Path, tmp_path: Path) -> None:
    text = ",".join(names(folder, "ab"))
    assert predict_file(text, folder / "s.extxyz", tmp_path / "p.extxyz") == 3
    for predicted, atoms in zip(read(tmp_path / "p.extxyz", ":"), read(folder / "s.extxyz", ":"), strict=True):
        atoms.calc = ase_calculator(text)
        assert predicted.info["dpsim_energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    (errors,) = check_model(text, [folder / "s.extxyz"], tmp_path)
    label, found = errors.pairs["forces"].arrays()
    atoms = read(folder / "s.extxyz", 0)
    atoms.calc = ase_calculator(text)
    np.testing.assert_allclose(found[:18], 1000 * atoms.get_forces().ravel(), atol=1e-6)
    paths = [m["path"] for m in json.loads((tmp_path / "test.json").read_text())["model"]]
    assert paths == names(folder, "ab")


def test_deviation_of_a_file(folder: Path, tmp_path: Path) -> None:
    found = deviation_file(names(folder), folder / "s.extxyz", tmp_path / "dev.csv")
    for k, atoms in enumerate(read(folder / "s.extxyz", ":")):
        atoms.calc = CommitteeCalculator(names(folder))
        atoms.get_forces()
        expected = [atoms.calc.results[f"{x}_devi_f"] for x in ("max", "min", "avg")]
        np.testing.assert_allclose(found.values[k, 3:6], expected, rtol=1e-8)
        assert np.isfinite(found.values[k, :3]).all() == (k < 2)  # a molecule has no virial
    with open(tmp_path / "dev.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:2] == ["frame", "max_devi_v_eV_per_atom"] and [row[0] for row in rows] == ["0", "1", "2"]
    real = deviation_file(names(folder, "a"), folder / "s.extxyz", label=True, relative=0.1)
    assert np.isnan(real.values[:, :3]).all() and np.isfinite(real.values[:, 3:]).all()
    assert real.names[3] == "max_error_f_relative"
    (tmp_path / "sets").mkdir()
    for name in ("x", "y"):
        (tmp_path / "sets" / f"{name}.extxyz").write_text((folder / "s.extxyz").read_text())
    both = deviation_file(names(folder), tmp_path / "sets")
    assert both.headings == ("system", "frame") and len(both.keys) == 6
    np.testing.assert_allclose(both.values[:3], found.values, rtol=1e-10)


def test_deviation_of_a_trajectory(folder: Path, tmp_path: Path) -> None:
    atoms = liquid(2)
    stage = StageSettings("nve", 6, 0.5, initial_temperature_K=300.0, trajectory_every=2)
    control = RunControl(0, "nve")
    AseEngine().run_stage(state_from_atoms(atoms), DPCalculator(model(1)), stage, tmp_path / "nve", control)
    found = deviation_file(names(folder), tmp_path / "nve")
    assert found.headings == ("step", "time_ps")
    assert found.keys == [(0, 0.0), (2, 0.001), (4, 0.002), (6, 0.003)]
    atoms.calc = CommitteeCalculator(names(folder))
    atoms.get_forces()
    assert found.values[0, 3] == pytest.approx(atoms.calc.results["max_devi_f"], rel=1e-4)
    again = deviation_file(names(folder), tmp_path / "nve" / "trajectory.trr")
    np.testing.assert_array_equal(again.values, found.values)


def test_refusals(folder: Path, tmp_path: Path) -> None:
    data = folder / "s.extxyz"
    with pytest.raises(ConfigError, match="two or more.*--label"):
        deviation_file(names(folder, "a"), data)
    with pytest.raises(ConfigError, match="different ones"):
        deviation_file(names(folder, "aa"), data)
    for setting in ({"relative": 0.0}, {"relative_v": -1.0}):
        with pytest.raises(ConfigError, match="relative.*> 0"):
            deviation_file(names(folder), data, **setting)  # type: ignore[arg-type]
    bare = read(data, 0)
    bare.calc, bare.info = None, {}
    del bare.arrays["REF_forces"]
    write(tmp_path / "bare.extxyz", bare)
    with pytest.raises(DataError, match="no labels"):
        deviation_file(names(folder), tmp_path / "bare.extxyz", label=True)
    bare.symbols[0] = "Fe"
    write(tmp_path / "iron.extxyz", bare)
    with pytest.raises(ElementError, match="Fe"):
        deviation_file(names(folder), tmp_path / "iron.extxyz")
    (tmp_path / "run" / "stages" / "01_nve").mkdir(parents=True)
    (tmp_path / "run" / "protocol.yaml").write_text("")
    with pytest.raises(DataError, match="folder of a run.*01_nve"):
        deviation_file(names(folder), tmp_path / "run")
