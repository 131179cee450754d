"""Students on a GPU against the PyTorch reference and the CPU path.

The kernels run twice: on a GPU where there is one, and everywhere on an emulated one (csrc/cuda/emulation.h), from the
same source. In the emulated build chunks hold 16 centres and rows of the neighbour list start with 8 places, so that
systems of a few atoms are cut into chunks, outgrow their list, and use each size of tile.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from ctypes import byref, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpsim.data.frame import Batch, Frame
from dpsim.kernels import native
from dpsim.kernels import student as kernels
from dpsim.kernels.environment import environment_reference
from dpsim.kernels.student import NativeStudent, StudentResults, Workspace
from dpsim.models.student import Student
from dpsim.models.student_config import StudentConfig
from tests.student_files import Part, random_atoms, random_student, write_student

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "cuda-emulation"
ALL, NONE = (True, True, True), (False, False, False)


def opened(path: Path) -> ctypes.CDLL:
    """The library at `path`, with the signatures that the installed one has."""
    lib = ctypes.CDLL(str(path))
    lib.dpsim_last_error.restype = ctypes.c_char_p
    for name, (arguments, result) in native._PLAIN_SIGNATURES.items():
        function = getattr(lib, f"dpsim_{name}")
        function.argtypes, function.restype = arguments, result
    return lib


@pytest.fixture(scope="module")
def emulated() -> ctypes.CDLL:
    """The library with an emulated GPU; built once, then only what changed (build/ keeps it)."""
    if not shutil.which("cmake") or not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("the emulated GPU needs cmake and a C++ compiler")
    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-DCMAKE_BUILD_TYPE=Release", "-DDPSIM_CUDA_EMULATION=ON"]
    for command in (configure, ["cmake", "--build", str(BUILD), "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return opened(BUILD / "libdpsim.so")


@pytest.fixture(params=[pytest.param("emulated", marks=pytest.mark.slow), "gpu"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs a test on the emulated GPU and on a real one. Yields the name that Workspace knows it by."""
    if request.param == "emulated":
        lib = request.getfixturevalue("emulated")
        monkeypatch.setattr(native, "_open", lambda: (lib, ""))
        monkeypatch.setattr(kernels, "_library", lambda: lib)
    elif not native.capabilities().cuda_devices:
        pytest.skip("no GPU here, or the library was built without CUDA kernels")
    yield "cuda"


class Case:
    """A random student in a file, and its reference."""

    def __init__(self, folder: Path, **settings: Any):
        self.header, self.tensors = random_student(**settings)
        self.path = write_student(folder / f"{len(list(folder.iterdir()))}.dpsim", self.header, self.tensors)

    def native(self, precision: Any = "float64") -> NativeStudent:
        return NativeStudent(self.path, precision)

    def reference(
        self, types: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: tuple[bool, ...], precision: str
    ) -> dict[str, np.ndarray]:
        config = StudentConfig.model_validate({**self.header["config"], "precision": precision})
        student = Student(config)
        student.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(t)) for name, t in self.tensors.items()})
        frame = Frame(positions, types, student.type_map, cell if any(pbc) else 0 * cell, np.array(pbc))
        found = student(Batch.from_frames([frame], student.rcut), atom_virial=True)
        names = {"energy": 0, "virial": 0, "forces": ..., "atom_energy": ..., "atom_virial": ...}
        result = {name: getattr(found, name).detach().numpy()[at] for name, at in names.items()}
        return {**result, "below_range": np.array(student.below_range)}


def compute(student: NativeStudent, workspace: Workspace, *where: Any, skin: float = 0.5) -> StudentResults:
    return student.compute(workspace, *where, skin=skin, forces=True, virial=True, atom_virial=True)


def assert_close(found: StudentResults, expected: dict[str, np.ndarray] | StudentResults, atol: float) -> None:
    expected = expected if isinstance(expected, dict) else expected._asdict()
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=0, atol=atol, err_msg=name)


PADDED = {"slots": "per_type", "sel": (60, 70)}
STUDENTS: dict[str, dict[str, Any]] = {
    "full rank": {},
    "low rank": {"parts": (Part(low_rank=True, axis=16),)},
    "wide": {"parts": (Part(width=37, axis=6),)},
    "radial": {"parts": (Part(kind="radial", width=34),)},
    "two parts": {"parts": (Part(), Part(kind="radial", rcut=3.0, low_rank=True, width=5))},
    "three types": {"parts": (Part(low_rank=True, width=17, axis=20),), "n_types": 3},
    "padded": {"parts": (Part(**PADDED),)},
    "padded, shared": {"parts": (Part(slots="shared", sel=(130,)), Part(kind="radial", **PADDED))},
    "excluded, counted": {"parts": (Part(**PADDED, excluded=((0, 1), (1, 0)), excluded_counted=True),)},
    "excluded": {"parts": (Part(slots="shared", sel=(130,), excluded=((0, 0),)), Part())},
    "pair_exclude_types": {"pair_exclude_types": ((0, 1),), "core_distance": 2.0},
    "atom_exclude_types": {"atom_exclude_types": (1,), "core_distance": 2.0},
    "below the table": {"r_min": 1.6, "parts": (Part(protection=0.3),)},
    "doubling layer": {"hidden": (10, 20, 20), "activation": "gelu"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_every_kind_of_student(device: str, tmp_path: Path, name: str) -> None:
    case = Case(tmp_path, **STUDENTS[name])
    n_types = len(case.header["type_map"])
    types, positions, cell = random_atoms(20, n_types=n_types, skewed=True)
    where = (types, positions, cell, ALL)
    exact = case.reference(*where, "float64")
    found = compute(case.native(), Workspace(device=device), *where)
    assert np.abs(exact["forces"]).max() > 0.05
    assert_close(found, exact, 1e-9)
    assert_close(found, compute(case.native(), Workspace(1), *where), 1e-9)
    rounded = case.reference(*where, "float32")
    found = compute(case.native("float32"), Workspace(device=device), *where)
    for quantity in ("forces", "atom_virial", "atom_energy"):
        error, allowed = (np.abs(x - exact[quantity]).max() for x in (getattr(found, quantity), rounded[quantity]))
        assert error <= 2 * allowed + 1e-6, quantity


@pytest.mark.parametrize("activation", ["relu", "relu6", "softplus", "sigmoid", "silu", "linear"])
def test_every_activation(device: str, tmp_path: Path, activation: str) -> None:
    case = Case(tmp_path, activation=activation)
    types, positions, cell = random_atoms(3)
    where = (types, positions, cell, NONE)
    assert_close(compute(case.native(), Workspace(device=device), *where), case.reference(*where, "float64"), 1e-9)


@pytest.mark.parametrize("pbc", [ALL, (True, False, True), (False, True, False), NONE])
@pytest.mark.parametrize("n", [1, 3, 14])
def test_every_kind_of_cell(device: str, tmp_path: Path, n: int, pbc: tuple[bool, ...]) -> None:
    """Cells far smaller than the cutoff, skewed and left-handed, atoms anywhere."""
    case = Case(tmp_path)
    types, positions, cell = random_atoms(n, skewed=True, volume_per_atom=9)
    cell = cell[[1, 0, 2]]
    positions = positions + (np.random.default_rng(1).integers(-3, 4, (n, 3)) * np.array(pbc)) @ cell
    where = (types, positions, cell, pbc)
    assert_close(compute(case.native(), Workspace(device=device), *where), case.reference(*where, "float64"), 1e-9)


def test_a_walk_through_rebuilds(device: str, tmp_path: Path) -> None:
    """Positions and cell change; the list is kept as long as it holds; a new workspace says the same every time."""
    case = Case(tmp_path)
    student, workspace = case.native(), Workspace(device=device)
    random = np.random.default_rng(2)
    types, positions, cell = random_atoms(18, skewed=True)
    for step in range(16):
        found = compute(student, workspace, types, positions, cell, ALL, skin=0.8)
        assert_close(found, case.reference(types, positions, cell, ALL, "float64"), 1e-9)
        again = compute(student, workspace, types, positions, cell, ALL, skin=0.8)
        assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
        assert not np.any(np.abs(found.forces.sum(axis=0)) > 1e-13)  # integers of opposite sign
        strain = np.eye(3) + random.normal(scale=4e-3, size=(3, 3)) * (step % 3 == 0)
        cell, positions = cell @ strain, (positions + random.normal(scale=0.07, size=positions.shape)) @ strain
        if step == 7:
            positions[3] += cell[1]  # wrapped differently: the same system
    assert 3 <= workspace.n_rebuilds <= 12


def test_systems_of_any_size_one_after_another(device: str, tmp_path: Path) -> None:
    """Rows, images, chunks grow as needed; students and precisions take turns; no atoms are no error."""
    case, other = Case(tmp_path), Case(tmp_path, parts=(Part(rcut=5.0, width=12),), n_types=1, seed=1)
    larger = Case(tmp_path, parts=(Part(width=40, axis=20), Part(kind="radial")), n_types=3, hidden=(40, 40), seed=2)
    workspace = Workspace(device=device)
    empty = compute(case.native(), workspace, np.zeros(0), np.zeros((0, 3)), None, NONE)
    assert empty.energy == 0 and not empty.virial.any()
    for n, volume, student, reference in (
        (5, 60.0, case.native(), case),
        (40, 8.0, case.native(), case),
        (9, 4.0, other.native(), other),
        (2, 300.0, case.native("float32"), case),
        (33, 20.0, case.native(), case),
        (33, 20.0, larger.native(), larger),  # the same atoms
        (33, 20.0, case.native(), case),
    ):
        types, positions, cell = random_atoms(n, min(2, len(student.type_map)), volume, closest=1.2)
        atol = 1e-9 if student.precision == "float64" else 3e-6
        found = compute(student, workspace, types, positions, cell, ALL)
        assert_close(found, reference.reference(types, positions, cell, ALL, "float64"), atol)
    assert workspace.n_bytes > 0


def test_two_far_groups_and_a_dense_one(device: str, tmp_path: Path) -> None:
    """A huge box of open boundaries: bins are limited, and many atoms share one."""
    case = Case(tmp_path)
    types, positions, cell = random_atoms(27, closest=1.2)
    positions[20:] += [3e5, -2e5, 1e6]
    where = (types, positions, cell, NONE)
    assert_close(compute(case.native(), Workspace(device=device), *where), case.reference(*where, "float64"), 1e-9)


def test_memory_is_bounded_by_chunks(device: str, tmp_path: Path) -> None:
    case = Case(tmp_path, parts=(Part(width=32, axis=16),), hidden=(64, 64))
    n_bytes = []
    for n in (64, 125):
        workspace = Workspace(device=device)
        types, positions, cell = random_atoms(n)
        compute(case.native("float32"), workspace, types, positions, cell, ALL)
        n_bytes.append(workspace.n_bytes)
    if str(BUILD) in kernels._library()._name:  # chunks of 16; on a GPU all of it is one chunk
        assert (n_bytes[1] - n_bytes[0]) / 61 < 6000


# --- an engine's list -------------------------------------------------------------------------------------------------
def ghosts_and_list(positions: np.ndarray, cell: np.ndarray, cutoff: float) -> tuple[np.ndarray, ...]:
    """owner (n_all,), shift (n_all, 3), offsets and neighbours of a periodic system whose images are ghosts."""
    reach = 1 + int(np.ceil(cutoff / np.linalg.svd(cell)[1].min()))
    shifts = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    shifts = shifts[np.argsort(np.abs(shifts).sum(1), kind="stable")]  # the atoms themselves first
    owner, shift = np.tile(np.arange(len(positions)), len(shifts)), np.repeat(shifts, len(positions), axis=0)
    distance = np.linalg.norm((positions[owner] + shift @ cell)[None] - positions[:, None], axis=2)
    near = distance < cutoff
    kept = near.any(axis=0) | (np.arange(len(owner)) < len(positions))
    near = near[:, kept]
    near[np.arange(len(positions)), np.arange(len(positions))] = False
    offsets = np.concatenate([[0], np.cumsum(near.sum(axis=1))])
    return owner[kept], shift[kept], offsets.astype(np.int64), near.nonzero()[1].astype(np.int32)


def test_an_engines_list_with_ghosts(device: str, tmp_path: Path) -> None:
    case = Case(tmp_path, parts=(Part(slots="shared", sel=(130,)), Part(low_rank=True, rcut=3.5)), core_distance=1.6)
    student, workspace = case.native(), Workspace(device=device)
    lib = kernels._library()
    function = lib.dpsim_student_compute_neighbors
    function.argtypes = [c_void_p, c_void_p, c_int64, c_int64, *[c_void_p] * 4, c_int, c_int32, c_void_p]
    types, positions, cell = random_atoms(18, skewed=True)
    owner, shift, offsets, neighbors = ghosts_and_list(positions, cell, student.rcut + 0.4)
    n, n_all = len(types), len(owner)
    all_types = types[owner].astype(np.int32)
    for changed in (1, 0):
        x = np.ascontiguousarray(positions[owner] + shift @ cell)
        out = {k: np.full(s, np.nan) for k, s in (("atom_energy", n), ("forces", (n_all, 3)), ("virial", (3, 3)))}
        results = kernels._Results(None, *(out[k].ctypes.data for k in out), None)
        where = [a.ctypes.data for a in (all_types, x, offsets, neighbors)]
        if not changed:
            where[2:] = [None, None]
        native.check(function(student._handle, workspace._handle, n, n_all, *where, changed, types[0], byref(results)))
        forces = np.zeros((n, 3))
        np.add.at(forces, owner, out["forces"])
        exact = case.reference(types, positions, cell, ALL, "float64")
        np.testing.assert_allclose(forces, exact["forces"], atol=1e-9)
        np.testing.assert_allclose(out["atom_energy"], exact["atom_energy"], atol=1e-12)
        np.testing.assert_allclose(out["virial"], exact["virial"], atol=1e-11)
        positions = positions + np.random.default_rng(0).normal(scale=0.05, size=positions.shape)
    assert_close(compute(student, workspace, types, positions, cell, ALL), compute(student, Workspace(1), types,
                 positions, cell, ALL), 1e-9)  # fmt: skip


# --- refusals ---------------------------------------------------------------------------------------------------------
def test_what_a_gpu_refuses(device: str, tmp_path: Path) -> None:
    case = Case(tmp_path, parts=(Part(slots="per_type", sel=(4, 4)),))
    plain = Case(tmp_path).native()
    workspace = Workspace(device=device)
    types, positions, cell = random_atoms(12)
    with pytest.raises(native.NativeError, match=r"more neighbours than the `sel`.*Use the CPU"):
        compute(case.native(), workspace, types, positions, cell, ALL)
    overlapping = np.array(positions)
    overlapping[5] = overlapping[2]
    with pytest.raises(native.NativeError, match="overlapping atoms"):
        compute(plain, workspace, types, overlapping, cell, ALL)
    with pytest.raises(native.NativeError, match="images of them"):
        compute(plain, workspace, types, positions, 1e-4 * np.eye(3), ALL)
    with pytest.raises(native.NativeError, match=r"`device` is 99|no CUDA device"):
        Workspace(device="cuda:99")
    found = compute(plain, workspace, types, positions, cell, ALL)  # none of which spoils the workspace
    assert_close(found, compute(plain, Workspace(1), types, positions, cell, ALL), 1e-9)


# --- the other kernel -------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["f32", "f64"])
def test_environment_of_edges_on_the_emulated_gpu(emulated: ctypes.CDLL, suffix: str) -> None:
    """Device memory is the host's there. On a real GPU test_environment.py runs it."""
    dtype = torch.float32 if suffix == "f32" else torch.float64
    edge_vec = torch.randn(300, 3, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 2
    env, w = torch.full((300, 4), torch.nan, dtype=dtype), torch.full((300,), torch.nan, dtype=dtype)
    function = getattr(emulated, f"dpsim_environment_cuda_{suffix}")
    function.argtypes = native._SIGNATURES["environment_cuda"]
    addresses = [None if t is None else t.data_ptr() for t in (env, w, None, None)]
    assert function(300, edge_vec.data_ptr(), 4.0, 1.0, 0.1, *addresses, None) == 0
    expected = environment_reference(edge_vec.double(), 4.0, 1.0, 0.1)
    for found, exact in zip((env, w), expected, strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=1e-5 if suffix == "f32" else 1e-12, atol=1e-6)
