"""The C interface of students through ctypes, as its tests call it."""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

import numpy as np
import pytest
from student_files import Part

from dpsim.kernels import native

needs_library = pytest.mark.skipif(native.capabilities().path is None, reason="the native library is not built")

OK, INVALID, UNSUPPORTED = 0, 1, 2
PARTS = (Part(rcut=3.5, n_intervals=60), Part(kind="radial", rcut=4.0, n_intervals=70, width=5, low_rank=True))


class Results(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("energy", "atom_energy", "forces", "virial", "atom_virial")] + [
        (name, c_int64) for name in ("below_range", "n_rebuilds")
    ]


class Info(ctypes.Structure):
    _fields_ = [("n_types", c_int32), ("precision", c_int32), ("rcut", c_double), ("r_min", c_double)]


def library() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(native.library_path()))
    lib.dpsim_last_error.restype = lib.dpsim_student_type_name.restype = c_char_p
    lib.dpsim_workspace_bytes.restype = c_int64
    lib.dpsim_student_open.argtypes = [c_char_p, c_int, POINTER(c_void_p)]
    lib.dpsim_student_from_memory.argtypes = [c_char_p, c_int64, c_int, POINTER(c_void_p)]
    lib.dpsim_student_info.argtypes = [c_void_p, POINTER(Info)]
    lib.dpsim_student_type_name.argtypes = [c_void_p, c_int]
    lib.dpsim_workspace_create.argtypes = [POINTER(native.Execution), POINTER(c_void_p)]
    lib.dpsim_workspace_create_cuda.argtypes = [c_int, POINTER(c_void_p)]
    for name in ("dpsim_student_close", "dpsim_workspace_free", "dpsim_workspace_bytes"):
        getattr(lib, name).argtypes = [c_void_p]
    lib.dpsim_student_compute.argtypes = [*[c_void_p] * 2, c_int64, *[c_void_p] * 4, c_double, POINTER(Results)]
    lib.dpsim_student_compute_neighbors.argtypes = [
        *[c_void_p] * 2, c_int64, c_int64, *[c_void_p] * 4, c_int, c_int32, POINTER(Results)
    ]  # fmt: skip
    return lib


LIB = library() if native.capabilities().path else None


def error() -> str:
    return LIB.dpsim_last_error().decode(errors="replace")


def open_bytes(content: bytes, precision: int = 0) -> tuple[int, c_void_p]:
    student = c_void_p()
    return LIB.dpsim_student_from_memory(content, len(content), precision, byref(student)), student


class Workspace:
    """A student and a workspace; results as arrays."""

    def __init__(self, path: Path, precision: int = 64, threads: int = 1, student: c_void_p | None = None):
        self.student, self.workspace = student or c_void_p(), c_void_p()
        if student is None:
            assert LIB.dpsim_student_open(str(path).encode(), precision, byref(self.student)) == OK, error()
        execution = native.Execution(threads, 0)
        assert LIB.dpsim_workspace_create(byref(execution), byref(self.workspace)) == OK, error()

    def results(self, n: int, n_forces: int) -> tuple[dict[str, np.ndarray], Results]:
        shapes = {"energy": 1, "atom_energy": n, "forces": (n_forces, 3), "virial": (3, 3), "atom_virial": (n, 3, 3)}
        arrays = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
        return arrays, Results(*(a.ctypes.data for a in arrays.values()), -1, -1)

    def compute(self, types, positions, cell=None, pbc=(0, 0, 0), skin=0.0):
        """Status and results of dpsim_student_compute."""
        types, positions = np.ascontiguousarray(types, np.int32), np.ascontiguousarray(positions, np.float64)
        cell = np.zeros((3, 3)) if cell is None else np.ascontiguousarray(cell, np.float64)
        pbc = np.ascontiguousarray(pbc, np.int32)
        arrays, results = self.results(len(types), len(types))
        pointers = [a.ctypes.data for a in (types, positions, cell, pbc)]
        status = LIB.dpsim_student_compute(self.student, self.workspace, len(types), *pointers, skin, byref(results))
        return status, arrays | {"below_range": results.below_range, "n_rebuilds": results.n_rebuilds}

    def compute_neighbors(self, n_local, types, positions, offsets, neighbors, changed=1, first_type=0):
        """Status and results of dpsim_student_compute_neighbors."""
        types, neighbors = (np.ascontiguousarray(a, np.int32) for a in (types, neighbors))
        positions, offsets = np.ascontiguousarray(positions, np.float64), np.ascontiguousarray(offsets, np.int64)
        arrays, results = self.results(n_local, len(types))
        pointers = [a.ctypes.data for a in (types, positions, offsets, neighbors)]
        status = LIB.dpsim_student_compute_neighbors(
            self.student, self.workspace, n_local, len(types), *pointers, changed, first_type, byref(results)
        )
        return status, arrays | {"below_range": results.below_range}


def assert_same(got, expected, tolerance=1e-10, names=("energy", "atom_energy", "forces", "virial", "atom_virial")):
    for name in names:
        np.testing.assert_allclose(got[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name)
