"""The committee: means of its members, the formulas of the model deviation, and ASE's manners."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces
from ase.io import read, write
from student_files import Part, random_student, write_student

from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.calculators.committee import CommitteeCalculator, model_deviation
from dpsim.errors import ConfigError, ElementError
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel
from test_ase_calculator import liquid


def model(seed: int, type_map: tuple[str, ...] = ("O", "H"), rcut: float = 4.0) -> EnergyModel:
    descriptor = {"type": "se_e2_a", "rcut": rcut, "sel": [20] * len(type_map), "neuron": [4, 8], "axis_neuron": 4}
    config = {"type_map": type_map, "descriptor": descriptor, "fitting": {"neuron": [8]}, "precision": "float64"}
    return EnergyModel(ModelConfig.model_validate(config), seed=seed)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list:
    """Two that share neighbours, one that counts elements otherwise, one with another cutoff, and a student."""
    file = tmp_path_factory.mktemp("committee") / "s.dpsim"
    write_student(file, *random_student((Part(rcut=4.0),), r_min=0.5))
    return [model(1), model(2), model(3, ("C", "H", "O")), model(4, rcut=3.0), file]


def test_means_and_deviations_are_those_of_the_members(members: list) -> None:
    atoms = liquid(4)
    alone = []
    for m in members:
        one = atoms.copy()
        one.calc = DPCalculator(m)
        alone.append((one.get_potential_energy(), one.get_forces(), one.get_stress(), one.get_potential_energies()))
    energy, forces, stress, energies = (np.array(x) for x in zip(*alone, strict=True))
    atoms.calc = CommitteeCalculator(members)
    for _ in range(2):  # a second structure: neighbour lists are kept
        assert atoms.get_potential_energy() == pytest.approx(energy.mean(), abs=1e-10)
        np.testing.assert_allclose(atoms.get_potential_energies(), energies.mean(axis=0), atol=1e-10)
        np.testing.assert_allclose(atoms.get_forces(), forces.mean(axis=0), atol=1e-10)
        np.testing.assert_allclose(atoms.get_stress(), stress.mean(axis=0), atol=1e-10)
        found = atoms.calc.results
        squares = [sum((f[i] - forces[:, i].mean(axis=0)) @ (f[i] - forces[:, i].mean(axis=0)) for f in forces)
                   for i in range(len(atoms))]  # fmt: skip
        by_hand = np.sqrt(np.array(squares) / len(members))  # Eq. 68
        np.testing.assert_allclose(found["devi_f"], by_hand, rtol=1e-9)
        assert found["max_devi_f"] == found["devi_f"].max() and found["min_devi_f"] == found["devi_f"].min()
        assert found["avg_devi_f"] == pytest.approx(by_hand.mean())
        # the members' virials, by ASE's Voigt order: those off the diagonal count twice
        spread = (stress * atoms.get_volume()).std(axis=0) / len(atoms)  # Eq. 69
        assert found["max_devi_v"] == pytest.approx(spread.max(), rel=1e-6)
        assert found["min_devi_v"] == pytest.approx(spread.min(), rel=1e-6)
        assert found["avg_devi_v"] == pytest.approx(np.sqrt((spread**2 @ [1, 1, 1, 2, 2, 2]) / 9), rel=1e-6)
        atoms.rattle(0.0)
        atoms.calc.reset()


def test_the_formulas_on_paper() -> None:
    forces = np.array([[[1.0, 0, 0], [0, 0, 0]], [[3.0, 0, 0], [0, 4.0, 0]]])
    virials = np.zeros((2, 3, 3))
    virials[0, 0, 0], virials[1, 0, 0] = 2.0, 10.0  # std 4, per atom 2
    found = model_deviation(forces, virials)
    np.testing.assert_allclose(found["devi_f"], [1.0, 2.0])
    assert (found["max_devi_f"], found["min_devi_f"], found["avg_devi_f"]) == (2.0, 1.0, 1.5)
    assert (found["max_devi_v"], found["min_devi_v"]) == (2.0, 0.0)
    assert found["avg_devi_v"] == pytest.approx(np.sqrt(4.0 / 9.0))
    relative = model_deviation(forces, relative=0.5)  # Eq. 71
    np.testing.assert_allclose(relative["devi_f"], [1.0 / 2.5, 2.0 / 2.5])
    assert "max_devi_v" not in relative
    assert model_deviation(np.zeros((2, 0, 3)))["max_devi_f"] == 0.0


def test_equal_members_do_not_deviate_and_forces_are_the_gradient(members: list) -> None:
    atoms = liquid(2, pbc=False)
    atoms.calc = CommitteeCalculator([members[0], members[0]])
    atoms.get_forces()
    assert atoms.calc.results["max_devi_f"] == 0.0
    atoms.calc = CommitteeCalculator(members)
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-6)


def test_it_is_a_calculator_as_any(members: list, tmp_path: Path) -> None:
    atoms = liquid(2)
    atoms.calc = CommitteeCalculator(members)
    assert atoms.calc.get_property("max_devi_f", atoms) > 0 and atoms.calc.get_property("devi_f").shape == (6,)
    assert len(atoms.calc.models) == len(members) and "CommitteeCalculator(" in repr(atoms.calc)
    forces, memory = atoms.get_forces(), atoms.calc.memory()
    assert any(name.startswith("4.") for name in memory)
    other = copy.deepcopy(atoms.calc)
    other.recall(memory)
    np.testing.assert_array_equal(other.get_forces(atoms), forces)
    write(tmp_path / "a.extxyz", atoms)
    np.testing.assert_allclose(read(tmp_path / "a.extxyz").get_forces(), forces, atol=1e-7)
    molecule = liquid(1, pbc=False)
    molecule.cell = None
    with pytest.raises(PropertyNotImplementedError):
        atoms.calc.get_property("max_devi_v", molecule)


def test_refusals(members: list) -> None:
    for wrong, message in (([members[0]], "two or more"), ("water-pbe0ts", "two or more")):
        with pytest.raises(ConfigError, match=message):
            CommitteeCalculator(wrong)
    with pytest.raises(ConfigError, match="common"):
        CommitteeCalculator([members[0], model(1, ("C", "N"))])
    with pytest.raises(ConfigError, match="relative"):
        CommitteeCalculator(members, relative=0.0)
    atoms = liquid(2)
    atoms.calc = CommitteeCalculator([members[0], model(1, ("C", "H"))])
    with pytest.raises(ElementError, match=r"\['O'\].*knows \['H'\]"):
        atoms.get_forces()
