"""Students through every calculator: natively and by PyTorch, one structure after another and many at once."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from student_files import Part, random_student, write_student

from dpsim.calculators import evaluator
from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.calculators.base import ModelCalculator, calculator_of, evaluate_frames
from dpsim.calculators.student import StudentCalculator
from dpsim.data.frame import Batch, Frame
from dpsim.errors import ConfigError, DataError, ElementError, SimulationError
from dpsim.kernels import native, student
from dpsim.kernels.student import NativeStudent, Workspace
from dpsim.models.checkpoint import load_model, model_bytes
from dpsim.models.student import Student
from dpsim.protocols.provenance import student_of
from test_ase_calculator import as_frame, liquid

needs_library = pytest.mark.skipif(native.capabilities().path is None, reason="the native library is not built")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An angular and a radial part, float64, O and H."""
    parts = (Part(rcut=4.0), Part(kind="radial", rcut=3.0, width=6))
    return write_student(tmp_path_factory.mktemp("student") / "s.dpsim", *random_student(parts, r_min=0.5))


@pytest.fixture(scope="module")
def model(file: Path) -> Student:
    loaded = load_model(file)
    assert isinstance(loaded, Student)
    return loaded


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def forget() -> None:
        native._open.cache_clear()
        native.library.cache_clear()

    monkeypatch.setattr(native, "library_path", lambda: tmp_path / "libdpsim.so")
    forget()
    yield
    monkeypatch.undo()
    forget()


# --- the binding -----------------------------------------------------------------------------------------------------
@needs_library
def test_the_binding_says_what_it_holds(file: Path, model: Student) -> None:
    for source in (file, str(file), model_bytes(model)):
        opened = NativeStudent(source)
        assert opened.type_map == model.type_map and opened.precision == "float64"
        assert opened.rcut == model.rcut and opened.r_min == model.config.r_min
    assert NativeStudent(file, "float32").precision == "float32"


@needs_library
def test_copies_and_pickles_of_the_binding(file: Path, model: Student) -> None:
    atoms = liquid(3)
    types = as_frame(atoms, model.type_map).types
    arguments = types, atoms.positions, atoms.cell.array, atoms.pbc
    for opened in (NativeStudent(file, "float32"), NativeStudent(model_bytes(model))):
        expected = opened.compute(Workspace(1), *arguments).forces
        for other in (copy.deepcopy(opened), pickle.loads(pickle.dumps(opened))):
            np.testing.assert_array_equal(other.compute(Workspace(1), *arguments).forces, expected)
    workspace = pickle.loads(pickle.dumps(Workspace(2)))
    opened.compute(workspace, *arguments)
    opened.compute(workspace, *arguments)
    assert workspace.n_rebuilds == 1 and workspace.n_bytes > 0
    assert copy.deepcopy(workspace).n_rebuilds == 0


@needs_library
def test_threads_with_workspaces_of_their_own_share_a_student(file: Path, model: Student) -> None:
    opened = NativeStudent(file)
    structures = [liquid(n, seed=n) for n in (2, 4, 6, 8)]
    frames = [as_frame(atoms, model.type_map) for atoms in structures]
    alone = [opened.compute(Workspace(1), f.types, f.positions, f.cell, f.pbc).forces for f in frames]
    wrong: list[int] = []
    shared = Workspace(1)  # legal too: they wait for each other

    def work(k: int) -> None:
        f, own = frames[k], Workspace(1)
        for workspace in [own, shared] * 20:
            found = opened.compute(workspace, f.types, f.positions, f.cell, f.pbc)
            if not np.allclose(found.forces, alone[k], atol=1e-12):
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


@needs_library
def test_refusals_of_the_binding(file: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.dpsim").write_bytes(b"not a student")
    for source in (tmp_path / "odd.dpsim", tmp_path / "none.dpsim", b"", b"x" * 100):
        with pytest.raises(native.NativeError, match="."):
            NativeStudent(source)
    with pytest.raises(ConfigError, match="precision"):
        NativeStudent(file, "half")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="device"):
        Workspace(device="meta")
    opened, workspace = NativeStudent(file), Workspace(1)
    for types, positions in (([0, 1], np.zeros((1, 3))), ([[0]], np.zeros((1, 3))), ([0], np.zeros((1, 2)))):
        with pytest.raises(ConfigError, match="shapes"):
            opened.compute(workspace, types, positions)
    with pytest.raises(native.NativeError):
        opened.compute(workspace, [7], np.zeros((1, 3)))
    with pytest.raises(native.NativeError):
        opened.compute(workspace, [0], np.full((1, 3), np.nan))
    with pytest.raises(native.NativeError):
        opened.compute(workspace, [0], np.zeros((1, 3)), np.zeros((3, 3)), (True, True, True))
    assert np.isfinite(opened.compute(workspace, [0], np.zeros((1, 3))).energy)  # usable after refusals


@needs_library
def test_a_workspace_on_a_device_that_is_not_there() -> None:
    if native.capabilities().cuda_devices:
        pytest.skip("there is one")
    assert not student.usable("cuda")
    with pytest.raises(native.NativeError):
        Workspace(device="cuda")


# --- frames ----------------------------------------------------------------------------------------------------------
def mixed() -> list[Atoms]:
    slab = liquid(4, pbc=(True, True, False))
    return [liquid(8), molecule("H2O"), liquid(2, seed=3), slab, Atoms("O"), liquid(1, np.eye(3) * 3.1)]


@needs_library
def test_batches_and_frames_equal_the_reference(model: Student) -> None:
    calculator, reference = calculator_of(model), ModelCalculator(model)
    assert isinstance(calculator, StudentCalculator)
    frames = [as_frame(atoms, model.type_map) for atoms in mixed()]
    batch = Batch.from_frames(frames, model.rcut)
    found, expected = (x.compute(batch, atom_virial=True) for x in (calculator, reference))
    for name in ("energy", "atom_energy", "forces", "virial", "atom_virial"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-11, atol=1e-10)
    some = calculator.compute(batch, forces=False, virial=False)
    assert some.forces is None and some.virial is None and torch.equal(some.energy, found.energy)
    start = 0
    for k, prediction in enumerate(evaluate_frames(model, frames)):  # no edges in Python
        n = len(frames[k].types)
        assert float(prediction.energy[0]) == pytest.approx(float(expected.energy[k]), rel=1e-12)
        torch.testing.assert_close(prediction.forces, expected.forces[start : start + n], rtol=1e-10, atol=1e-10)
        start += n


@needs_library
def test_no_atoms(model: Student) -> None:
    none = Atoms(cell=np.eye(3) * 5, pbc=True)
    frame = Frame(none.positions, np.zeros(0, int), model.type_map, none.cell.array, none.pbc)
    (prediction,) = evaluate_frames(model, [frame])
    assert float(prediction.energy[0]) == 0.0 and prediction.forces.shape == (0, 3)
    none.calc = DPCalculator(model)
    assert none.get_potential_energy() == 0.0 and none.get_forces().shape == (0, 3)
    np.testing.assert_array_equal(none.get_stress(), np.zeros(6))


@needs_library
def test_results_that_are_not_finite_and_overlaps_name_the_atoms(file: Path) -> None:
    broken = load_model(file)
    broken.get_buffer("fitting.1.1.idt").fill_(1e308)  # of hydrogen: sums overflow
    broken.get_buffer("fitting.1.out.weight").fill_(10.0)
    atoms = liquid(2)
    atoms.calc = DPCalculator(broken)
    with pytest.raises(SimulationError, match="force of atom 1 is not finite"):
        atoms.get_potential_energy()
    overlap = Atoms("OH", np.zeros((2, 3)))
    overlap.calc = DPCalculator(file)
    with pytest.raises(SimulationError, match="overlapping atoms: 0 and 1"):
        overlap.get_forces()


# --- ASE -------------------------------------------------------------------------------------------------------------
@needs_library
def test_ase_results_equal_the_reference_without_python_lists(model: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    structures = [a for a in mixed() if a.cell.rank == 3]
    expected = []
    for atoms in structures:
        batch = Batch.from_frames([as_frame(atoms, model.type_map)], model.rcut)
        expected.append(model(batch, atom_virial=True))

    def refuse(*_: object) -> None:
        raise AssertionError("a neighbour list was built in Python")

    monkeypatch.setattr("dpsim.neighbors.neighbor_list", refuse)
    calculator = DPCalculator(model)
    for atoms, p in zip(structures, expected, strict=True):
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(float(p.energy[0]), rel=1e-12)
        np.testing.assert_allclose(atoms.get_forces(), p.forces.numpy(), atol=1e-10)
        np.testing.assert_allclose(atoms.get_stress(voigt=False), -p.virial[0].numpy() / atoms.get_volume(), atol=1e-11)
        np.testing.assert_allclose(atoms.get_stresses().sum(axis=0), atoms.get_stress(), atol=1e-12)


@needs_library
@pytest.mark.parametrize("skin", [0.0, 0.5, 2.0])
def test_a_walk_on_a_kept_list_equals_fresh_calculators_but_for_rounding(model: Student, skin: float) -> None:
    atoms = liquid(6)
    atoms.calc = DPCalculator(model, skin=skin)
    rng = np.random.default_rng(5)
    for step in range(12):
        atoms.positions += rng.normal(scale=0.06, size=(len(atoms), 3))
        if step == 6:
            atoms.set_cell(atoms.cell * 1.01, scale_atoms=True)
        if step == 8:
            atoms.wrap()
        fresh = atoms.copy()
        fresh.calc = DPCalculator(model)
        np.testing.assert_allclose(atoms.get_forces(), fresh.get_forces(), atol=1e-11)
        assert atoms.get_potential_energy() == pytest.approx(fresh.get_potential_energy(), rel=1e-13)


@needs_library
def test_the_memory_makes_another_calculator_agree_bit_by_bit(model: Student) -> None:
    """In float32, after a walk: with the memory, by pickle, by copy; and an empty one is a fresh start."""
    rng = np.random.default_rng(6)
    atoms = liquid(8)
    atoms.calc = DPCalculator(model, precision="float32", skin=1.0)
    for _ in range(5):
        atoms.positions += rng.normal(scale=0.05, size=(len(atoms), 3))
        atoms.get_forces()
    memory = atoms.calc.memory()
    other = DPCalculator(model, precision="float32", skin=1.0)
    other.recall(memory)
    for calculator in (other, copy.deepcopy(atoms.calc), pickle.loads(pickle.dumps(atoms.calc))):
        for key, value in memory.items():
            np.testing.assert_array_equal(calculator.memory()[key], value)
        again = atoms.copy()
        again.calc = calculator
        np.testing.assert_array_equal(again.get_forces(), atoms.get_forces())
        assert again.get_potential_energy() == atoms.get_potential_energy()
    fresh = atoms.copy()
    fresh.calc = DPCalculator(model, precision="float32", skin=1.0)
    atoms.calc.recall({})
    assert not atoms.calc.memory()
    np.testing.assert_array_equal(atoms.get_forces(), fresh.get_forces())


@needs_library
def test_precision_and_refusals(model: Student, file: Path) -> None:
    atoms = liquid(4)
    atoms.calc = DPCalculator(file, precision="float32")
    low = atoms.get_forces()
    assert atoms.calc.model.dtype == torch.float32 and model.dtype == torch.float64
    atoms.calc = DPCalculator(model)
    assert atoms.calc.model is model
    np.testing.assert_allclose(low, atoms.get_forces(), atol=1e-4)
    assert np.abs(low - atoms.get_forces()).max() > 0
    sodium = Atoms("Na")
    sodium.calc = DPCalculator(model)
    with pytest.raises(ElementError, match="Na"):
        sodium.get_potential_energy()
    atoms.positions[4, 1] = np.nan
    with pytest.raises(DataError, match=r"positions.*\[4\]"):
        atoms.get_forces()


def test_without_the_library_pytorch_serves_after_one_warning(model: Student, no_library: None) -> None:
    atoms = liquid(4)
    with pytest.warns(RuntimeWarning, match="Slower PyTorch code"):
        atoms.calc = DPCalculator(model)
    assert isinstance(atoms.calc._evaluator, evaluator.ModelEvaluator)
    batch = Batch.from_frames([as_frame(atoms, model.type_map)], model.rcut)
    np.testing.assert_allclose(atoms.get_forces(), model(batch).forces.numpy(), atol=1e-10)
    assert atoms.calc.memory() == {}
    with pytest.raises(native.NativeError, match="native library is missing"):
        NativeStudent(b"")


# --- where it came from ----------------------------------------------------------------------------------------------
def test_provenance_of_students(tmp_path: Path) -> None:
    assert student_of("water-pbe0ts") == {} and student_of("no such model") == {}
    header, tensors = random_student()
    assert student_of(str(write_student(tmp_path / "a.dpsim", header, tensors))) == {"student of": "unknown"}
    errors = {"force_rms": 2e-6, "force_max": 1e-5, "energy_max": 1e-8}
    header["provenance"] = {
        "teacher": {"name": "water-pbe0ts", "sha256": "abc"},
        "compression": {"errors": {"float32": errors}, "n_frames": 3, "made_up": False},
    }
    facts = student_of(str(write_student(tmp_path / "b.dpsim", header, tensors)))
    assert facts["student of"] == "water-pbe0ts, abc"
    assert facts["errors against it"].startswith("forces 2.0e-06 rms, 1.0e-05 at most eV/A")
