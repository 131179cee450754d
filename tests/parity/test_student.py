"""The gate for students: native kernels against the uncompressed model, against their reference, and against physics.

Errors beside float64 have two sources, the table (its step, chosen by `compress`) and rounding. Both are bounded here,
on every instruction set of the machine, on water from the bundled model, a made-up alloy of four elements, a small
triclinic cell with neighbours in many images, and a molecule.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read

from dpsim import load_model
from dpsim.analysis.dynamics import DriftResult, energy_drift
from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.calculators.base import calculator_of
from dpsim.data.frame import Batch, Frame, Prediction
from dpsim.distill.compress import compress
from dpsim.engines.ase_engine import AseEngine, state_from_atoms
from dpsim.engines.base import RunControl, StageSettings
from dpsim.engines.output import THERMO, read_thermo
from dpsim.kernels import native
from dpsim.kernels.student import NativeStudent, StudentResults, Workspace
from dpsim.models.checkpoint import model_bytes
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.models.student import Student

WATER = Path(__file__).parents[2] / "examples/water/water.extxyz"
SCALAR, BEST = 1, {"scalar": 1, "AVX2": 2, "AVX-512": 3}.get(native.capabilities().isa, 0)
CASES = ["water", "alloy", "triclinic", "molecule"]

pytestmark = pytest.mark.skipif(native.capabilities().path is None, reason="the native library is not built")


@dataclass(frozen=True)
class Case:
    """A structure, its teacher in float64, what that says of it, and students in either precision."""

    frame: Frame
    teacher: EnergyModel
    exact: Prediction
    students: dict[str, Student]

    def native(self, precision: str) -> NativeStudent:
        return NativeStudent(model_bytes(self.students[precision]))


def random_model(elements: list[str], rcut: float, seed: int, scale: float) -> EnergyModel:
    """A model with random weights; `scale` multiplies its energies, to give forces of about 1 eV/A."""
    config = {
        "type_map": elements,
        "descriptor": {
            "type": "se_e2_a", "rcut": rcut, "rcut_smth": 1.0, "neuron": [8, 16], "axis_neuron": 4,
            "sel": [60] * len(elements),
        },
        "fitting": {"neuron": [24, 24]},
        "precision": "float64",
    }  # fmt: skip
    model = EnergyModel(ModelConfig.model_validate(config), seed=seed)
    model.descriptor.dstd.copy_(model.descriptor.dstd * torch.tensor([0.015, 0.01, 0.01, 0.01]))
    for net in model.fitting.nets:
        net[-1].weight.data *= scale
    model.energy_bias.copy_(torch.linspace(-90, -300, len(elements), dtype=torch.float64))
    return model.requires_grad_(False)


def structure(name: str) -> tuple[EnergyModel, Atoms]:
    """The teacher and the atoms of a case."""
    random = np.random.default_rng(4)
    if name == "water":
        return load_model("water-pbe0ts", precision="float64").requires_grad_(False), read(WATER)
    if name == "alloy":
        elements = ["Cu", "Ni", "Al", "Ti"]
        atoms = bulk("Cu", cubic=True).repeat(3)
        atoms.symbols[:] = random.choice(elements, len(atoms))
        model = random_model(elements, 5.0, seed=2, scale=3)
    elif name == "triclinic":
        atoms = Atoms("OHHOHH", cell=[[4.1, 0.2, 0.0], [-1.3, 3.9, 0.4], [0.6, -0.8, 4.4]], pbc=True)
        atoms.set_scaled_positions([[k / 6, (k * k / 6) % 1, (k * 5 / 6 + 0.3) % 1] for k in range(6)])
        model = random_model(["O", "H"], 5.0, seed=3, scale=1)
    else:
        atoms = molecule("CH3CH2OH")
        model = random_model(["H", "C", "O"], 6.0, seed=5, scale=1)
    atoms.positions += random.normal(scale=0.08, size=(len(atoms), 3))
    return model, atoms


def as_frame(atoms: Atoms, type_map: tuple[str, ...]) -> Frame:
    types = np.array([type_map.index(s) for s in atoms.get_chemical_symbols()])
    return Frame(atoms.positions, types, type_map, atoms.cell.array, np.array(atoms.pbc))


@cache
def case(name: str) -> Case:
    """Compressed on a small cutting of the structure, so that the errors on the whole are no fit.

    The student in float64 has a table as fine as float64 allows; that in float32 has the same but for water, where it
    is what `compress` makes by default.
    """
    teacher, atoms = structure(name)
    frame = as_frame(atoms, teacher.type_map)
    near = np.argsort(np.linalg.norm(atoms.positions - atoms.positions[0], axis=1))[:24]
    cutting = as_frame(Atoms(atoms[near].symbols, atoms.positions[near]), teacher.type_map)
    fine, _ = compress(teacher, [cutting], tolerance=1e-10, r_min=0.7, precision="float64")
    fast = compress(teacher, [cutting])[0] if name == "water" else in_precision(fine, "float32")
    exact = teacher(Batch.from_frames([frame], teacher.rcut), atom_virial=True)
    return Case(frame, teacher, exact, {"float32": fast, "float64": fine})


def in_precision(student: Student, precision: str) -> Student:
    other = Student(student.config.model_copy(update={"precision": precision}))
    other.load_state_dict(student.state_dict())
    return other


def compute(student: NativeStudent, frame: Frame, threads: int = 1, isa: int = 0, **wanted: bool) -> StudentResults:
    wanted = {"forces": True, "virial": True, "atom_virial": True} | wanted
    return student.compute(
        Workspace(threads, isa), frame.types, frame.positions, frame.cell, frame.pbc, skin=0.5, **wanted
    )


def moved(frame: Frame, displacement: np.ndarray, strain: np.ndarray | None = None) -> Frame:
    """The frame with displaced atoms, then strained: x -> x (1 + strain)."""
    deformation = np.eye(3) if strain is None else np.eye(3) + strain
    positions = (frame.positions + displacement) @ deformation
    return Frame(positions, frame.types, frame.type_map, frame.cell @ deformation, frame.pbc)


# --- against the uncompressed model ----------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa", range(SCALAR, BEST + 1))
@pytest.mark.parametrize("name", CASES)
def test_float32_agrees_with_the_teacher(name: str, isa: int, threads: int) -> None:
    c = case(name)
    found = compute(c.native("float32"), c.frame, threads, isa)
    n = c.frame.n_atoms
    deviation = found.forces - c.exact.forces.numpy()
    assert np.sqrt(np.mean(c.exact.forces.numpy() ** 2)) > 0.5  # eV/A: nothing is compared with zero
    assert abs(found.energy - float(c.exact.energy[0])) / n < 3e-7  # one number: three times its usual size
    assert np.sqrt(np.mean(deviation**2)) < 5e-6
    assert np.abs(deviation).max() < 3e-5
    np.testing.assert_allclose(found.virial, c.exact.virial[0].numpy(), atol=2e-6 * n)


@pytest.mark.parametrize("isa", range(SCALAR, BEST + 1))
@pytest.mark.parametrize("name", CASES)
def test_float32_energies_of_several_structures(name: str, isa: int) -> None:
    """rms over displaced copies, against the student in float64, which equals the teacher to 1e-10 (below)."""
    c = case(name)
    random = np.random.default_rng(0)
    deviations = []
    for _ in range(8):
        copy = moved(c.frame, random.normal(scale=0.05, size=c.frame.positions.shape))
        found, exact = (compute(c.native(p), copy, 1, isa, forces=False).energy for p in ("float32", "float64"))
        deviations.append((found - exact) / c.frame.n_atoms)
    # Without fused multiply-add every step of a sum is rounded twice.
    assert np.sqrt(np.mean(np.square(deviations))) < (2e-7 if isa == SCALAR else 1e-7)


@pytest.mark.parametrize("isa", range(SCALAR, BEST + 1))
@pytest.mark.parametrize("name", CASES)
def test_float64_agrees_with_the_teacher_up_to_the_table(name: str, isa: int) -> None:
    c = case(name)
    found = compute(c.native("float64"), c.frame, 2, isa)
    assert found.energy / c.frame.n_atoms == pytest.approx(float(c.exact.energy[0]) / c.frame.n_atoms, abs=1e-10)
    np.testing.assert_allclose(found.forces, c.exact.forces.numpy(), atol=2e-9)
    np.testing.assert_allclose(found.atom_energy, c.exact.atom_energy.numpy(), atol=1e-9)
    np.testing.assert_allclose(found.virial, c.exact.virial[0].numpy(), atol=1e-9 * c.frame.n_atoms)
    np.testing.assert_allclose(found.atom_virial, c.exact.atom_virial.numpy(), atol=1e-8)


# --- against the reference -------------------------------------------------------------------------------------------
def reference(student: Student, frame: Frame) -> Prediction:
    return student(Batch.from_frames([frame], student.rcut), atom_virial=True)


@pytest.mark.parametrize("isa", range(SCALAR, BEST + 1))
@pytest.mark.parametrize("name", CASES)
def test_native_equals_the_reference_to_rounding(name: str, isa: int) -> None:
    """In float64 to 1e-12 of the largest number; in float32 at most twice the rounding error of the reference."""
    c = case(name)
    exact = reference(c.students["float64"], c.frame)
    found = compute(c.native("float64"), c.frame, 2, isa)
    for quantity in ("atom_energy", "forces", "atom_virial"):
        expected = getattr(exact, quantity).numpy()
        np.testing.assert_allclose(getattr(found, quantity), expected, atol=3e-12 * np.abs(expected).max())

    exact = reference(in_precision(c.students["float32"], "float64"), c.frame)
    rounded, found = reference(c.students["float32"], c.frame), compute(c.native("float32"), c.frame, 2, isa)
    for quantity in ("forces", "atom_virial"):
        expected = getattr(exact, quantity).numpy()
        error, allowed = (
            np.sqrt(np.mean((np.asarray(getattr(x, quantity)) - expected) ** 2)) for x in (found, rounded)
        )
        assert error <= 2 * allowed + 1e-9, f"{quantity}: {error:.2e} against {allowed:.2e} of the reference"


# --- against physics -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["triclinic", "molecule"])
def test_forces_and_virial_are_derivatives_of_the_energy(name: str) -> None:
    c = case(name)
    student, frame = c.native("float64"), c.frame
    found = compute(student, frame)
    random = np.random.default_rng(0)

    def slope(displacement: np.ndarray, strain: np.ndarray | None = None) -> float:
        h = 1e-4
        e = [
            compute(student, moved(frame, s * h * displacement, None if strain is None else s * h * strain)).energy
            for s in (-2, -1, 1, 2)
        ]
        return (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * h)  # error O(h^4)

    for _ in range(3):
        direction = random.normal(size=(frame.n_atoms, 3))
        assert slope(direction) == pytest.approx(-np.sum(found.forces * direction), abs=2e-8)
    for a in range(3):
        for b in range(3):
            strain = np.zeros((3, 3))
            strain[b, a] = 1.0  # x_a gains x_b: force component a, along b
            assert slope(0 * frame.positions, strain) == pytest.approx(-found.virial[a, b], abs=1e-7)
    np.testing.assert_allclose(found.atom_virial.sum(axis=0), found.virial, atol=1e-12)
    np.testing.assert_allclose(found.forces.sum(axis=0), 0, atol=1e-12)


def test_hessian_vector_product_of_the_reference_is_the_slope_of_native_forces() -> None:
    c = case("triclinic")
    student = in_precision(c.students["float64"], "float64").set_second_order()
    batch = Batch.from_frames([c.frame], student.rcut)
    direction = np.random.default_rng(1).normal(size=(c.frame.n_atoms, 3))
    batch.positions.requires_grad_()
    forces = student(batch, virial=False).forces
    (product,) = torch.autograd.grad((forces * torch.from_numpy(direction)).sum(), batch.positions)
    h = 1e-4
    f = [compute(c.native("float64"), moved(c.frame, s * h * direction)).forces for s in (-2, -1, 1, 2)]
    slope = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)
    assert np.abs(slope).max() > 0.1
    np.testing.assert_allclose(slope, product.numpy(), atol=1e-6)  # Hessians are symmetric


def test_energy_is_conserved_as_by_the_uncompressed_model(tmp_path: Path) -> None:
    """The same NVE run with both, in float32: the same drift within its error, and no more fluctuation."""
    c = case("water")
    atoms = read(WATER)
    small = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    stage = StageSettings("nve", 120, timestep_fs=0.5, initial_temperature_K=300.0, thermo_every=1)

    def run(model: EnergyModel | Student, name: str) -> DriftResult:
        control = RunControl(seed=1, name="nve", checkpoint_seconds=1e9)
        calculator = DPCalculator(model, precision="float32")
        AseEngine().run_stage(state_from_atoms(small), calculator, stage, tmp_path / name, control)
        thermo = read_thermo(tmp_path / name / THERMO)
        return energy_drift(thermo["time_ps"], thermo["total_energy_eV"], len(small))

    student, teacher = run(c.students["float32"], "student"), run(c.teacher, "teacher")
    assert abs(student.drift - teacher.drift) < 3 * np.hypot(student.error, teacher.error)
    assert student.fluctuation < 1.02 * teacher.fluctuation + 1e-4  # meV/atom


# --- where the table ends --------------------------------------------------------------------------------------------
def test_pairs_below_the_table_are_counted_and_the_energy_goes_on_smoothly() -> None:
    c = case("molecule")
    student = c.native("float64")
    r_min = student.r_min
    types = np.array([student.type_map.index(s) for s in "HOC"])

    def at(r: float) -> StudentResults:
        return student.compute(Workspace(1), types, [[0, 0, 0], [r, 0, 0], [0.2, 2.0, 0.3]], virial=False)

    assert at(1.01 * r_min).below_range == 0
    assert at(0.99 * r_min).below_range == 2
    h = 1e-5 * r_min
    below, above = at(r_min - h), at(r_min + h)
    slope = (above.energy - below.energy) / (2 * h)
    assert slope == pytest.approx(-0.5 * (above.forces + below.forces)[1, 0], rel=1e-6)
    np.testing.assert_allclose(above.forces, below.forces, atol=1e-2 * np.abs(above.forces).max())
    for r in (1e-3, 0.3):
        assert np.isfinite(at(r).forces).all()
    with pytest.raises(native.NativeError, match="overlapping atoms: 0 and 1"):
        at(1e-9)


def test_a_warning_says_once_how_many_pairs_are_too_near() -> None:
    c = case("molecule")
    atoms = Atoms("OH2", [[0, 0, 0], [0.5, 0, 0], [0, 1.0, 0]])
    atoms.calc = DPCalculator(c.students["float32"])
    with pytest.warns(RuntimeWarning, match=r"2 pairs are nearer than 0\.7 A.*knows nothing there"):
        atoms.get_forces()
    assert atoms.calc.below_range == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.positions[1, 0] = 0.52
        atoms.get_forces()
    assert atoms.calc.below_range == 2
    atoms.positions[1, 0] = 1.0
    atoms.get_forces()
    assert atoms.calc.below_range == 0


def test_an_imported_hybrid_shares_one_neighbor_list() -> None:
    """DeePMD-kit fills the slots of each part from one list of the nearest neighbours, longer than the part's own."""
    parts = [
        {"type": "se_e2_a", "rcut": 5.0, "rcut_smth": 1.0, "sel": [2, 3, 2], "neuron": [4, 8], "axis_neuron": 3},
        {"type": "se_e2_r", "rcut": 4.0, "rcut_smth": 1.0, "sel": [4, 1, 4], "neuron": [4, 8]},
    ]
    config = ModelConfig.model_validate(
        {
            "type_map": ["O", "H", "C"],
            "precision": "float64",
            "deepmd_conventions": True,
            "descriptor": {"type": "hybrid", "list": parts},
            "fitting": {"neuron": [10, 10]},
        }
    )
    rng = np.random.default_rng(1)
    cell = np.array([[7.0, 0.3, 0.0], [0.7, 7.5, -0.4], [0.2, -0.6, 8.0]])
    grid = np.stack(np.meshgrid(*[np.arange(3) / 3] * 3, indexing="ij"), -1).reshape(-1, 3)
    positions = (grid + rng.uniform(-0.05, 0.05, grid.shape)) @ cell
    frame = Frame(positions, rng.integers(0, 3, len(grid)), ("O", "H", "C"), cell, np.ones(3, bool))
    teacher = EnergyModel(config, seed=1)
    batch = Batch.from_frames([frame], teacher.rcut)
    student, _ = compress(teacher, frames=[frame], tolerance=1e-8, precision="float64")
    assert [part.n_listed for part in student.config.parts] == [11, 11]  # of each element, what the greedier part wants
    expected, found = teacher(batch), calculator_of(student).compute(batch)
    assert float((found.energy - expected.energy).abs()) < 1e-10
    assert float((found.forces - expected.forces).abs().max()) < 1e-8
