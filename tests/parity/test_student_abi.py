"""The C interface of students, called directly: what it refuses, and that neither list nor threads change results."""

import os
import shutil
import subprocess
import threading
from ctypes import byref, c_void_p
from pathlib import Path

import numpy as np
import pytest
from student_abi import (
    INVALID,
    LIB,
    OK,
    PARTS,
    UNSUPPORTED,
    Info,
    Results,
    Workspace,
    assert_same,
    error,
    needs_library,
)
from student_files import Part, random_atoms, random_student, write_student

from dpsim.kernels import native
from dpsim.neighbors import neighbor_list

pytestmark = needs_library
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_student(
        tmp_path_factory.mktemp("student") / "student.dpsim", *random_student(PARTS, core_distance=0.8)
    )


# ---- arguments -----------------------------------------------------------------------------------------------------


def test_null_pointers_and_negative_sizes_are_refused(path):
    w, results = Workspace(path), Results()
    n, good = 2, [np.zeros(2, np.int32), np.array([[0.0, 0, 0], [2, 0, 0]]), np.eye(3) * 9.0, np.ones(3, np.int32)]

    def call(student=w.student, workspace=w.workspace, n=n, arrays=good, skin=0.0, out=results):
        pointers = [None if a is None else a.ctypes.data for a in arrays]
        return LIB.dpsim_student_compute(
            student, workspace, n, *pointers, skin, byref(out) if out is not None else None
        )

    assert call() == OK, error()  # all results NULL: nothing is wanted
    for k, name in enumerate(("types", "positions", "cell", "pbc")):
        assert call(arrays=[None if m == k else a for m, a in enumerate(good)]) == INVALID and name in error()
    for bad, name in (
        ({"student": None}, "student"),
        ({"workspace": None}, "workspace"),
        ({"out": None}, "results"),
        ({"n": -1}, "`n`"),
        ({"n": 2**62}, "`n`"),
        ({"skin": -0.1}, "skin"),
        ({"skin": float("nan")}, "skin"),
        ({"arrays": [*good[:3], np.array([1, 2, 0], np.int32)]}, "pbc"),
    ):
        assert call(**bad) == INVALID and name in error()
    assert LIB.dpsim_student_open(None, 0, byref(c_void_p())) == INVALID
    assert LIB.dpsim_student_open(b"x", 0, None) == INVALID
    assert LIB.dpsim_student_from_memory(None, 10, 0, byref(c_void_p())) == INVALID
    assert LIB.dpsim_student_from_memory(b"x", -1, 0, byref(c_void_p())) == INVALID
    assert LIB.dpsim_student_info(None, byref(Info())) == INVALID
    assert LIB.dpsim_student_info(w.student, None) == INVALID
    assert LIB.dpsim_workspace_create(None, None) == INVALID
    assert LIB.dpsim_workspace_create(byref(native.Execution(1, 77)), byref(c_void_p())) == UNSUPPORTED
    assert LIB.dpsim_workspace_bytes(None) == 0
    LIB.dpsim_student_close(None)
    LIB.dpsim_workspace_free(None)


def test_without_a_device_a_cuda_workspace_is_unsupported():
    if native.capabilities().cuda_devices:
        pytest.skip("there is a device")
    assert LIB.dpsim_workspace_create_cuda(0, byref(c_void_p())) == UNSUPPORTED and error()


def test_atoms_that_make_no_sense_are_refused_by_name(path):
    w = Workspace(path)
    types, positions, cell = random_atoms(20)
    assert w.compute(types, positions, cell, (1, 1, 1))[0] == OK
    for bad in (np.nan, np.inf, 1e9):
        broken = positions.copy()
        broken[7, 1] = bad
        assert w.compute(types, broken, cell, (1, 1, 1))[0] == INVALID and "positions[7]" in error()
    for bad in (-1, 2, 2**31 - 1):
        broken = types.copy()
        broken[3] = bad
        assert w.compute(broken, positions, cell, (1, 1, 1))[0] == INVALID and "types[3]" in error()
    for distance in (0.0, 1e-8):
        broken = positions.copy()
        broken[11] = broken[4] + cell[0] + [distance, 0, 0]
        for skin in (0.0, 1.0):
            assert w.compute(types, broken, cell, (1, 1, 1), skin)[0] == INVALID
            assert "overlapping atoms" in error() and " 4 " in error() and " 11 " in error()
    assert w.compute(types, broken)[0] == OK  # apart without the periodic image
    assert w.compute(types, positions, cell, (1, 1, 1))[0] == OK


def test_cells_that_make_no_sense_are_refused(path):
    w = Workspace(path)
    types, positions, _ = random_atoms(8)
    for cell in (
        np.zeros((3, 3)),
        np.diag([9.0, 9.0, 0.0]),
        np.array([[9.0, 0, 0], [18, 0, 0], [0, 0, 9]]),
        np.full((3, 3), np.nan),
        np.eye(3) * 1e30,
        np.eye(3) * 1e-3,
        np.diag([1e-7, 1e7, 1e7]),
    ):
        assert w.compute(types, positions, cell, (1, 1, 1))[0] == INVALID and "cell" in error()
    assert w.compute(types, positions, np.diag([9.0, 9.0, np.nan]), (1, 1, 0))[0] == OK  # an ignored row
    assert w.compute(np.zeros(1200), np.random.default_rng(0).random((1200, 3)) * 0.01)[0] in (OK, INVALID)


def test_no_atoms_have_no_energy(path):
    w = Workspace(path)
    status, got = w.compute(np.zeros(0), np.zeros((0, 3)), np.eye(3), (1, 1, 1))
    assert status == OK and got["energy"] == 0 and (got["virial"] == 0).all()
    status, got = w.compute_neighbors(0, [0, 1], np.zeros((2, 3)), [0], [])
    assert status == OK and got["energy"] == 0 and (got["forces"] == 0).all()


# ---- right answers -------------------------------------------------------------------------------------------------


def test_any_description_of_the_same_atoms_gives_the_same(path):
    w = Workspace(path)
    types, positions, cell = random_atoms(40, skewed=True)
    _, expected = w.compute(types, positions, cell, (1, 1, 1))
    random = np.random.default_rng(1)
    # other order
    order = random.permutation(len(types))
    _, got = w.compute(types[order], positions[order], cell, (1, 1, 1))
    for name in ("atom_energy", "forces", "atom_virial"):
        expected_there = expected[name][order]
        np.testing.assert_allclose(got[name], expected_there, rtol=1e-10, atol=1e-10)
    # unwrapped atoms, another basis of the lattice, left-handed
    away = positions + random.integers(-3, 4, (40, 3)) @ cell
    for same in (cell, cell[[1, 0, 2]], np.array([[1, 0, 0], [2, 1, 0], [-1, 1, 1]]) @ cell):
        assert_same(w.compute(types, away, same, (1, 1, 1))[1], expected, 1e-9)
    # a supercell: the small one is narrower than the cutoff
    small = random_atoms(4, volume_per_atom=9.0)
    assert np.linalg.norm(small[2], axis=1).max() < 4.0
    shifts = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    many = (small[1][None] + shifts @ small[2]).reshape(-1, 3)
    _, one = w.compute(*small, (1, 1, 1))
    _, all_of_them = w.compute(np.tile(small[0], 27), many, 3 * small[2], (1, 1, 1))
    np.testing.assert_allclose(all_of_them["energy"], 27 * one["energy"], rtol=1e-11)
    np.testing.assert_allclose(all_of_them["forces"][:4], one["forces"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(all_of_them["virial"], 27 * one["virial"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1e3, 1e6, 5e7])
def test_open_systems_and_enormous_cells_agree(path, size):
    """Two clusters far apart: the energies add up, in little memory."""
    w = Workspace(path)
    types, positions, _ = random_atoms(30)
    _, one = w.compute(types, positions)
    apart = np.concatenate([positions, positions[::-1] + np.array([0.9, 0.7, -0.6]) * size])
    both = np.concatenate([types, types[::-1]])
    tolerance = max(1e-9, 1e-13 * size)
    for cell, pbc in ((None, (0, 0, 0)), (np.eye(3) * 1.9 * size, (1, 1, 1)), (np.diag([1.9 * size, 0, 0]), (1, 0, 0))):
        status, got = w.compute(both, apart, cell, pbc)
        assert status == OK, error()
        np.testing.assert_allclose(got["energy"], 2 * one["energy"], rtol=tolerance)
        np.testing.assert_allclose(got["forces"][:30], one["forces"], rtol=tolerance, atol=100 * tolerance)
    assert LIB.dpsim_workspace_bytes(w.workspace) < 10e6


def test_the_list_is_kept_and_the_results_are_those_of_a_new_one(path):
    """A random walk with atoms wrapped, a cell that breathes and shears, and a drift of the whole system."""
    random = np.random.default_rng(3)
    types, positions, cell = random_atoms(60, volume_per_atom=9.0)
    fractional = positions @ np.linalg.inv(cell)
    velocities, drift, skin = random.normal(0, 0.004, (60, 3)), np.array([0.3, 0.0, -0.2]), 0.8
    kept, fresh = Workspace(path), Workspace(path)
    for pbc in ((1, 1, 1), (1, 0, 1), (0, 0, 0)):
        before = kept.compute(types, positions, cell, pbc, skin)[1]["n_rebuilds"]
        for step in range(40):
            strain = np.eye(3) + 0.0004 * step * np.array([[1.0, 0.2, 0], [0, -0.5, 0], [0.3, 0, 0.4]])
            present = cell @ strain
            x = (fractional + 0.5 * step * velocities) @ present + step * drift * np.array(pbc)
            wraps = np.where(np.array(pbc) == 1, random.integers(-1, 2, (60, 3)), 0)
            x = x + wraps @ present
            status, got = kept.compute(types, x, present, pbc, skin)
            assert status == OK, error()
            assert_same(got, fresh.compute(types, x, present, pbc)[1], 1e-9)
        assert 0 < got["n_rebuilds"] - before < 20
    # whatever else changes is noticed
    for other_types, other_pbc, other_skin in ((1 - types, pbc, skin), (types, (1, 1, 0), skin), (types, pbc, 0.2)):
        _, got = kept.compute(other_types, x, present, other_pbc, other_skin)
        assert_same(got, fresh.compute(other_types, x, present, other_pbc)[1], 1e-9)
    assert kept.compute(types[:-1], x[:-1], present, pbc, skin)[0] == OK


def test_ghosts_of_an_engine_give_what_periodicity_gives(path):
    w = Workspace(path)
    types, positions, cell = random_atoms(50, skewed=True)
    _, expected = w.compute(types, positions, cell, (1, 1, 1))
    i, j, shift = neighbor_list(positions, cell, np.ones(3, bool), 4.3)
    keys, place = np.unique(np.column_stack([j, shift])[(shift != 0).any(1)], axis=0, return_inverse=True)
    index = j.copy()
    index[(shift != 0).any(1)] = 50 + place.ravel()
    owner = np.concatenate([np.arange(50), keys[:, 0]])
    images = np.concatenate([positions, positions[keys[:, 0]] + keys[:, 1:] @ cell])
    offsets = np.searchsorted(i, np.arange(51))
    for changed in (1, 0):
        status, got = w.compute_neighbors(50, types[owner], images, offsets, index, changed, types[0])
        assert status == OK, error()
        got["forces"] = np.stack([np.bincount(owner, got["forces"][:, d], 50) for d in range(3)], 1)
        assert_same(got, expected, 1e-10)
    # refusals
    for broken in (-1, len(owner), 2**31 - 1, int(i[7])):
        bad = index.copy()
        bad[7] = broken
        assert w.compute_neighbors(50, types[owner], images, offsets, bad)[0] == INVALID and "neighbors" in error()
        assert w.compute_neighbors(50, types[owner], images, offsets, index, changed=0)[0] == INVALID  # no list then
    falling = offsets.copy()
    falling[3] = falling[2] - 1
    assert w.compute_neighbors(50, types[owner], images, falling, index)[0] == INVALID and "offsets" in error()
    assert w.compute_neighbors(50, types[owner], images, offsets, index, first_type=2)[0] == INVALID
    assert w.compute_neighbors(60, types[:50], images[:50], offsets, index)[0] == INVALID and "n_local" in error()
    assert w.compute(types, positions, cell, (1, 1, 1))[0] == OK
    assert w.compute_neighbors(50, types[owner], images, offsets, index, changed=0)[0] == INVALID


def test_threads_change_nothing_and_may_share_a_student(path):
    types, positions, cell = random_atoms(4000)
    one, two = Workspace(path), Workspace(path, threads=2)
    _, expected = one.compute(types, positions, cell, (1, 1, 1), 0.5)
    _, got = two.compute(types, positions, cell, (1, 1, 1), 0.5)
    assert_same(got, expected, 1e-9)
    outcomes = {}

    def work(k):
        workspace = Workspace(path, student=one.student)
        random = np.random.default_rng(k)
        worst = 0.0
        for _ in range(5):
            few = random_atoms(100, seed=k)
            _, first = workspace.compute(*few, (1, 1, 1), 0.3)
            moved = few[1] + random.normal(0, 1e-7, few[1].shape)
            worst = max(
                worst, abs(workspace.compute(few[0], moved, few[2], (1, 1, 1), 0.3)[1]["energy"] - first["energy"])
            )
        outcomes[k] = float(np.ravel(worst)[0])

    workers = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert set(outcomes) == {0, 1} and max(outcomes.values()) < 1e-3


def test_one_workspace_may_change_between_students(path, tmp_path):
    other = write_student(tmp_path / "other.dpsim", *random_student((Part(rcut=5.0, n_intervals=50),), seed=5))
    types, positions, cell = random_atoms(30)
    a, b = Workspace(path), Workspace(other, precision=32)
    expected = [w.compute(types, positions, cell, (1, 1, 1), 0.5)[1] for w in (a, b)]
    for student, want in [(a.student, expected[0]), (b.student, expected[1])] * 2:
        mixed = Workspace(path, student=student)
        mixed.workspace = a.workspace
        assert_same(mixed.compute(types, positions, cell, (1, 1, 1), 0.5)[1], want, 1e-6)


def test_pairs_that_are_no_neighbours_are_left_out(tmp_path):
    """With every pair excluded, atoms are alone whatever is around them."""
    student = random_student((Part(n_intervals=40),), pair_exclude_types=((0, 0), (0, 1), (1, 1)))
    w = Workspace(write_student(tmp_path / "s.dpsim", *student))
    types, positions, cell = random_atoms(30)
    _, got = w.compute(types, positions, cell, (1, 1, 1))
    alone = [w.compute([t], np.zeros((1, 3)))[1]["energy"][0] for t in range(2)]
    np.testing.assert_allclose(got["atom_energy"], np.array(alone)[types], rtol=1e-12)
    assert (got["forces"] == 0).all()


def test_pairs_below_the_tables_are_counted_and_finite(path):
    status, got = Workspace(path).compute([0, 1, 0], [[0.0, 0, 0], [0.3, 0, 0], [3.0, 0, 0]])
    assert status == OK and got["below_range"] == 2 and np.isfinite(got["forces"]).all()


# ---- sanitizers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """tests/native/student_sanitized.cpp, compiled with the library's sources."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("sanitized")
    flags = [
        "-std=c++17",
        "-O0",
        "-fopenmp",
        "-march=native",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    (folder / "probe.cpp").write_text("int main() {}")
    probe = [compiler, *flags, str(folder / "probe.cpp"), "-o", str(folder / "probe")]
    if subprocess.run(probe, capture_output=True).returncode or subprocess.run([folder / "probe"]).returncode:
        pytest.skip("the compiler has no sanitizers")
    names = ["cpu/student", "cpu/library", "student/json", "student/model", "student/neighbors"]
    sources = [ROOT / "tests/native/student_sanitized.cpp", *(ROOT / "csrc" / f"{name}.cpp" for name in names)]
    objects = [folder / f"{source.stem}.o" for source in sources]
    commands = [
        [compiler, *flags, f"-I{ROOT / 'csrc/include'}", "-c", str(source), "-o", str(target)]
        for source, target in zip(sources, objects, strict=True)
    ]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in running:
        _, messages = process.communicate()
        assert process.returncode == 0, messages
    subprocess.run([compiler, *flags, *map(str, objects), "-o", str(folder / "student_sanitized")], check=True)
    return folder / "student_sanitized"


@pytest.mark.slow
def test_nothing_is_read_or_written_out_of_bounds(sanitized, tmp_path):
    files = []
    for name, sel in (("roomy", (400, 300)), ("truncating", (9, 6))):
        parts = (
            Part(rcut=3.0, n_intervals=24, width=5, axis=3, slots="per_type", sel=sel),
            Part(kind="radial", rcut=3.5, n_intervals=29, width=3, low_rank=True, excluded=((0, 1),)),
        )
        student = random_student(parts, hidden=(6, 6), core_distance=0.9)
        files.append(write_student(tmp_path / f"{name}.dpsim", *student))
    done = subprocess.run([sanitized, *files], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
