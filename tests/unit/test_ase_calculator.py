"""DPCalculator: ASE's conventions, physics by finite differences, history independence, refusals."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.stress import voigt_6_to_full_3x3_stress

from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.calculators.base import ModelCalculator, evaluate_frames
from dpsim.data.frame import Batch, Frame, Prediction
from dpsim.errors import ConfigError, DataError, ElementError, SimulationError
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel

WATER = Path(__file__).parents[2] / "../shared/data/water_pbe0ts/test/O64H128"


def small_model(precision: str = "float64", kind: str = "se_e2_a") -> EnergyModel:
    """A random Deep Potential of O and H with a 4 A cutoff."""
    sel = {"se_e2_a": [20, 40], "dpa1": 60}[kind]
    extra = {"attn_layer": 1, "attn": 8} if kind == "dpa1" else {}
    config = ModelConfig.model_validate(
        {
            "type_map": ["O", "H"],
            "descriptor": {
                "type": kind, "rcut": 4.0, "rcut_smth": 1.0, "neuron": [4, 8], "axis_neuron": 4, "sel": sel, **extra,
            },
            "fitting": {"neuron": [12, 12]},
            "precision": precision,
        }
    )  # fmt: skip
    return EnergyModel(config, seed=3)


class Springs(torch.nn.Module):
    """A pair potential with an EnergyModel's interface: E_i = sum_j 0.01 (r_c^2 - r^2)^2, repulsive."""

    type_map = ("O", "H")
    dtype = torch.float64

    def __init__(self, rcut: float = 3.0, poison: int | None = None):
        super().__init__()
        self.rcut = rcut
        self.poison = poison
        self.calls: list[tuple[bool, bool, bool]] = []

    def forward(self, batch, *, forces=True, virial=True, atom_virial=False, create_graph=False):
        self.calls.append((forces, virial, atom_virial))
        derivatives = forces or virial or atom_virial
        vec = batch.edge_vectors().requires_grad_(derivatives)
        pair = 0.01 * (self.rcut**2 - (vec * vec).sum(1)) ** 2
        energy = torch.zeros(batch.n_atoms, dtype=torch.float64).index_add(0, batch.center, pair)
        if self.poison is not None:
            energy[self.poison] = float("nan")
        total = torch.zeros(batch.n_frames, dtype=torch.float64).index_add(0, batch.frame_index, energy)
        out = Prediction(energy=total.detach(), atom_energy=energy.detach())
        if derivatives:
            (g,) = torch.autograd.grad(energy.sum(), vec)
            n = batch.n_atoms
            out.forces = g.new_zeros(n, 3).index_add(0, batch.center, g).index_add(0, batch.neighbor, -g)
            w = -g[:, :, None] * vec.detach()[:, None, :]
            if atom_virial:
                out.atom_virial = g.new_zeros(n, 3, 3).index_add(0, batch.center, w)
            out.virial = g.new_zeros(batch.n_frames, 3, 3).index_add(0, batch.frame_index[batch.center], w)
        return out


def liquid(n: int = 8, cell: np.ndarray | None = None, pbc=True, seed: int = 0) -> Atoms:
    """n jittered H2O molecules in a small, skewed cell."""
    rng = np.random.default_rng(seed)
    cell = np.array([[6.2, 0.3, 0.0], [0.4, 6.1, 0.2], [0.1, -0.3, 6.3]]) if cell is None else cell
    grid = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)][:n]) / 2
    atoms = Atoms(cell=cell, pbc=pbc)
    for corner in grid:
        water = molecule("H2O")
        water.rotate(rng.uniform(0, 360), rng.normal(size=3))
        water.translate(corner @ cell)
        atoms += water
    atoms.positions += rng.normal(scale=0.05, size=(len(atoms), 3))
    return atoms


@pytest.fixture(params=["se_e2_a", "dpa1"])
def calculator(request) -> DPCalculator:
    return DPCalculator(small_model(kind=request.param))


# --- physics ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pbc", [True, (True, True, False), False])
def test_forces_are_minus_the_gradient(calculator, pbc):
    atoms = liquid(3, pbc=pbc)
    atoms.calc = calculator
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-7)


@pytest.mark.parametrize("pbc", [True, (True, True, False), False])
def test_stress_is_the_strain_derivative(calculator, pbc):
    atoms = liquid(4, pbc=pbc)
    atoms.calc = calculator
    numerical = calculate_numerical_stress(atoms, eps=1e-5)
    assert np.abs(numerical).max() > 1e-6
    np.testing.assert_allclose(atoms.get_stress(), numerical, atol=1e-9)


def test_a_compressed_repulsive_crystal_has_negative_stress():
    atoms = bulk("O", "fcc", a=3.1, cubic=True)
    atoms.calc = DPCalculator(Springs())
    assert (atoms.get_stress()[:3] < 0).all()  # tension is positive, so compression is negative
    # -dE/dV = pressure, for a cubic cell
    e = []
    for strain in (-1e-5, 1e-5):
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell * (1 + strain), scale_atoms=True)
        scaled.calc = DPCalculator(Springs())
        e.append((scaled.get_volume(), scaled.get_potential_energy()))
    pressure = -(e[1][1] - e[0][1]) / (e[1][0] - e[0][0])
    assert -atoms.get_stress()[:3].mean() == pytest.approx(pressure, rel=1e-6)


def test_stresses_and_energies_sum_to_the_total(calculator):
    atoms = liquid(5)
    atoms.calc = calculator
    np.testing.assert_allclose(atoms.get_stresses().sum(axis=0), atoms.get_stress(), atol=1e-12)
    assert atoms.get_stresses().shape == (len(atoms), 6)
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()


def test_translation_wrapping_permutation_and_supercell(calculator):
    atoms = liquid(6)
    atoms.calc = calculator
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()

    moved = atoms.copy()
    moved.positions += [13.7, -4.1, 2.2]
    moved.wrap()
    moved.calc = calculator
    assert moved.get_potential_energy() == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(moved.get_forces(), forces, atol=1e-11)

    order = np.random.default_rng(1).permutation(len(atoms))
    permuted = atoms[order]
    permuted.calc = calculator
    assert permuted.get_potential_energy() == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(permuted.get_forces(), forces[order], atol=1e-12)

    big = atoms.repeat((2, 1, 3))
    big.calc = calculator
    assert big.get_potential_energy() == pytest.approx(6 * energy, rel=1e-12)
    np.testing.assert_allclose(big.get_forces(), np.tile(forces, (6, 1)), atol=1e-11)
    np.testing.assert_allclose(big.get_stress(), stress, atol=1e-12)


def test_rotation(calculator):
    atoms = liquid(4)
    atoms.calc = calculator
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    turned = Atoms(atoms.numbers, atoms.positions @ rotation.T, cell=atoms.cell.array @ rotation.T, pbc=True)
    turned.calc = calculator
    assert turned.get_potential_energy() == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(turned.get_forces(), forces @ rotation.T, atol=1e-11)
    np.testing.assert_allclose(turned.get_stress(voigt=False), rotation @ stress @ rotation.T, atol=1e-12)


def test_a_molecule_equals_the_same_molecule_in_a_big_box(calculator):
    free = molecule("H2O")
    free.calc = calculator
    boxed = Atoms(free.numbers, free.positions, cell=np.eye(3) * 30, pbc=True)
    boxed.calc = calculator
    assert boxed.get_potential_energy() == pytest.approx(free.get_potential_energy(), rel=1e-14)
    np.testing.assert_array_equal(boxed.get_forces(), free.get_forces())


def test_minimise_then_nve_conserves_energy():
    atoms = liquid(4)
    atoms.calc = DPCalculator(Springs(), skin=0.3)
    start = atoms.get_potential_energy()
    assert BFGS(atoms, logfile=None).run(fmax=0.05, steps=200)
    assert atoms.get_potential_energy() < start
    atoms.set_momenta(
        np.random.default_rng(0).normal(size=(len(atoms), 3)) * np.sqrt(0.025 * atoms.get_masses())[:, None]
    )
    total = [atoms.get_total_energy()]
    dynamics = VelocityVerlet(atoms, timestep=0.25 * units.fs)
    dynamics.attach(lambda: total.append(atoms.get_total_energy()))
    dynamics.run(100)
    assert np.ptp(total) < 0.01 * atoms.get_kinetic_energy()


# --- ASE's conventions -----------------------------------------------------------------------------------------------
def test_only_what_is_asked_is_computed_and_results_are_reused():
    model = Springs()
    atoms = liquid(2)
    atoms.calc = DPCalculator(model)
    atoms.get_potential_energy()
    assert model.calls == [(False, False, False)]
    atoms.get_forces()
    atoms.get_stress()
    atoms.get_potential_energy()
    assert model.calls[1:] == [(True, True, False)]  # one backward pass serves forces and stress
    atoms.get_stresses()
    assert model.calls[2:] == [(True, True, True)]
    atoms.info["anything"] = 1
    atoms.set_initial_charges(np.ones(len(atoms)))
    assert not atoms.calc.calculation_required(atoms, ["energy", "forces", "stress", "stresses", "free_energy"])
    atoms.positions[0] += 1e-10
    assert atoms.calc.calculation_required(atoms, ["energy"])


def test_results_are_copies():
    atoms = liquid(2)
    atoms.calc = DPCalculator(Springs())
    atoms.get_forces()[:] = 0
    assert np.abs(atoms.get_forces()).max() > 0


@pytest.mark.parametrize("change", ["positions", "numbers", "cell", "pbc", "add", "remove", "swap"])
def test_any_change_of_the_structure_gives_the_numbers_of_a_fresh_calculator(change):
    model = small_model()
    atoms = liquid(3)
    atoms.calc = DPCalculator(model)
    atoms.get_forces()
    if change == "positions":
        atoms.positions[2] += 0.3
    elif change == "numbers":
        atoms.numbers[0] = 1
    elif change == "cell":
        atoms.set_cell(atoms.cell * 1.02, scale_atoms=False)
    elif change == "pbc":
        atoms.pbc = (True, False, True)
    elif change == "add":
        atoms += Atoms("O", [[3.0, 3.0, 0.0]])
    elif change == "remove":
        del atoms[4]
    else:
        atoms.positions[[0, 1]] = atoms.positions[[1, 0]]
    fresh = atoms.copy()
    fresh.calc = DPCalculator(model)
    np.testing.assert_array_equal(atoms.get_forces(), fresh.get_forces())
    assert atoms.get_potential_energy() == fresh.get_potential_energy()
    np.testing.assert_array_equal(atoms.get_stress(), fresh.get_stress())


def test_one_calculator_serves_several_structures():
    model = small_model()
    shared = DPCalculator(model)
    a, b = liquid(3), liquid(5, seed=4)
    for _round in range(2):
        for atoms in (a, b):
            atoms.calc = shared
            own = atoms.copy()
            own.calc = DPCalculator(model)
            np.testing.assert_array_equal(atoms.get_forces(), own.get_forces())


@pytest.mark.parametrize("skin", [0.0, 0.5, 2.0])
def test_forces_do_not_depend_on_history(skin):
    """After a walk on a reused list, forces are bitwise those of a first call: float32, where order would show."""
    model = small_model("float32")
    atoms = liquid(6)
    atoms.calc = DPCalculator(model, skin=skin)
    rng = np.random.default_rng(5)
    for _step in range(12):
        atoms.positions += rng.normal(scale=0.06, size=(len(atoms), 3))
        if _step == 6:
            atoms.set_cell(atoms.cell * 1.01, scale_atoms=True)
        fresh = atoms.copy()
        fresh.calc = DPCalculator(model)
        np.testing.assert_array_equal(atoms.get_forces(), fresh.get_forces())
        assert atoms.get_potential_energy() == fresh.get_potential_energy()


def test_stress_needs_a_cell():
    atoms = molecule("H2O")
    atoms.calc = DPCalculator(Springs())
    for ask in (atoms.get_stress, atoms.get_stresses):
        with pytest.raises(PropertyNotImplementedError, match="three lattice vectors"):
            ask()
    atoms.calc.calculate(atoms, ["energy", "forces", "stress"])  # what is defined is given
    assert "stress" not in atoms.calc.results and "forces" in atoms.calc.results
    atoms.set_cell([8, 8, 8])
    atoms.get_stress()


def test_no_atoms_and_one_atom():
    model = small_model()
    none = Atoms(cell=np.eye(3) * 5, pbc=True)
    none.calc = DPCalculator(model)
    assert none.get_potential_energy() == 0.0
    assert none.get_forces().shape == (0, 3)
    np.testing.assert_array_equal(none.get_stress(), np.zeros(6))
    one = Atoms("O")
    one.calc = DPCalculator(model)
    assert np.isfinite(one.get_potential_energy())
    np.testing.assert_array_equal(one.get_forces(), np.zeros((1, 3)))
    crystal = Atoms("O", cell=np.eye(3) * 2.5, pbc=True)  # sees its own images
    crystal.calc = DPCalculator(model)
    np.testing.assert_allclose(crystal.get_forces(), 0, atol=1e-12)
    np.testing.assert_allclose(crystal.get_stress(), calculate_numerical_stress(crystal, eps=1e-5), atol=1e-9)


def test_copies_and_pickles_work_and_agree():
    atoms = liquid(3)
    atoms.calc = DPCalculator(small_model(), skin=0.7)
    forces = atoms.get_forces()
    for other in (copy.deepcopy(atoms.calc), pickle.loads(pickle.dumps(atoms.calc))):
        again = atoms.copy()
        again.calc = other
        np.testing.assert_array_equal(again.get_forces(), forces)
        assert other.parameters == atoms.calc.parameters
    assert atoms.calc.todict()["skin"] == 0.7 and "skin=0.7" in repr(atoms.calc)
    assert atoms.calc.name == "dpsim" and atoms.calc.model.type_map == ("O", "H")


def test_precision_converts_a_model_without_touching_it():
    model = small_model("float64")
    atoms = liquid(4)
    atoms.calc = DPCalculator(model, precision="float32")
    assert atoms.calc.model.dtype == torch.float32 and model.dtype == torch.float64
    low = atoms.get_forces()
    atoms.calc = DPCalculator(model, precision="float64")
    assert atoms.calc.model is model
    assert low.dtype == np.float64
    np.testing.assert_allclose(low, atoms.get_forces(), atol=1e-5)


# --- refusals --------------------------------------------------------------------------------------------------------
def test_unknown_elements_are_refused_by_name():
    atoms = Atoms("NaClO", [[0, 0, 0], [0, 0, 2], [0, 2, 0]])
    atoms.calc = DPCalculator(Springs())
    with pytest.raises(ElementError, match=r"\['Cl', 'Na'\].*\['O', 'H'\]"):
        atoms.get_potential_energy()


def test_a_result_that_is_not_finite_names_the_atom():
    atoms = liquid(2)
    atoms.calc = DPCalculator(Springs(poison=3))
    with pytest.raises(SimulationError, match="O atom 3 at"):
        atoms.get_forces()
    with pytest.raises(SimulationError):  # nothing was cached
        atoms.get_potential_energy()


def test_positions_that_are_not_finite_are_refused():
    atoms = liquid(2)
    atoms.positions[4, 1] = np.nan
    atoms.calc = DPCalculator(Springs())
    with pytest.raises(DataError, match=r"positions.*\[4\]"):
        atoms.get_forces()


@pytest.mark.parametrize("settings", [{"skin": -1.0}, {"skin": float("nan")}, {"precision": "half"}])
def test_settings_are_checked(settings):
    with pytest.raises(ConfigError):
        DPCalculator(Springs(), **settings)
    with pytest.raises(ConfigError, match="fixed"):
        DPCalculator(Springs()).set(skin=2.0)


# --- many frames -----------------------------------------------------------------------------------------------------
def as_frame(atoms: Atoms, type_map: tuple[str, ...] = ("H", "O")) -> Frame:
    types = np.array([type_map.index(s) for s in atoms.get_chemical_symbols()])
    return Frame(atoms.positions, types, type_map, atoms.cell.array, atoms.pbc)


@pytest.mark.parametrize("batch_atoms", [1, 20, 10_000])
def test_evaluate_frames_in_batches_equals_one_by_one(batch_atoms):
    model = small_model()
    structures = [liquid(n, seed=n) for n in (1, 4, 2, 6)] + [molecule("H2O")]
    model_calls = ModelCalculator(model)
    predictions = list(evaluate_frames(model_calls, map(as_frame, structures), batch_atoms=batch_atoms))
    assert len(predictions) == len(structures)
    for atoms, prediction in zip(structures, predictions, strict=True):
        atoms.calc = DPCalculator(model)
        assert float(prediction.energy[0]) == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        np.testing.assert_allclose(prediction.forces.numpy(), atoms.get_forces(), atol=1e-11)
        if atoms.cell.rank == 3:
            stress = voigt_6_to_full_3x3_stress(atoms.get_stress())
            np.testing.assert_allclose(-prediction.virial[0].numpy() / atoms.get_volume(), stress, atol=1e-11)


def test_evaluate_frames_refusals():
    frame = as_frame(molecule("CO2"), ("C", "O"))
    with pytest.raises(ElementError, match="'C'"):
        next(evaluate_frames(Springs(), [frame]))
    with pytest.raises(ConfigError, match="batch_atoms"):
        next(evaluate_frames(Springs(), [], batch_atoms=0))
    with pytest.raises(SimulationError, match="O atom 0 of frame 1"):
        poisoned = ModelCalculator(Springs(poison=3))
        poisoned.compute(Batch.from_frames([as_frame(molecule("H2O"), ("O", "H"))] * 2, 3.0))


def test_real_water_against_finite_differences_along_the_forces():
    if not WATER.exists():
        pytest.skip(f"{WATER} is not here")
    coord = np.load(WATER / "set.000/coord.npy")[0].reshape(-1, 3)
    box = np.load(WATER / "set.000/box.npy")[0].reshape(3, 3)
    symbols = np.array(["O", "H"])[np.loadtxt(WATER / "type.raw", dtype=int)]
    atoms = Atoms(symbols, coord, cell=box, pbc=True)
    atoms.calc = DPCalculator(small_model())
    forces = atoms.get_forces()
    energies = []
    step = 1e-4 * forces / np.linalg.norm(forces)
    for sign in (-1, 1):
        shifted = atoms.copy()
        shifted.positions += sign * step
        shifted.calc = atoms.calc
        energies.append(shifted.get_potential_energy())
    assert -(energies[1] - energies[0]) / 2e-4 == pytest.approx(np.linalg.norm(forces), rel=1e-6)
