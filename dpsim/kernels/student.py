"""Students evaluated by the native kernels, the neighbour list included (docs/students.md has the equations).

    student = NativeStudent("water.dpsim")     # immutable: any number of threads may share one
    workspace = Workspace(threads=2)           # buffers and a neighbour list: one for every caller
    forces = student.compute(workspace, types, positions, cell, pbc).forces

The reference is dpsim/models/student.py; csrc/include/dpsim.h says what each call does. Unlike the other kernels
these keep something between calls: a workspace its neighbour list, so rounding depends on when that was built.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Sequence
from ctypes import Structure, byref, c_double, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dpsim.errors import ConfigError
from dpsim.kernels import native

Array = NDArray[np.float64]
_PRECISIONS = {None: 0, "float32": 32, "float64": 64}  # dpsim_precision


class StudentResults(NamedTuple):
    """What a student says of n atoms, in float64; None where not asked for.

    energy eV; atom_energy (n,) eV; forces (n, 3) eV/A; virial (3, 3) eV = -dE/d(strain), first index the force
    component; atom_virial (n, 3, 3) eV, the centres' shares. below_range: directed pairs nearer than r_min.
    """

    energy: float
    atom_energy: Array
    forces: Array | None
    virial: Array | None
    atom_virial: Array | None
    below_range: int


class _Info(Structure):
    """dpsim_student_info_t."""

    _fields_ = [("n_types", c_int32), ("precision", c_int32), ("rcut", c_double), ("r_min", c_double)]


class _Results(Structure):
    """dpsim_results: addresses of arrays, and two numbers that come back."""

    _fields_ = [
        *((name, c_void_p) for name in ("energy", "atom_energy", "forces", "virial", "atom_virial")),
        ("below_range", c_int64),
        ("n_rebuilds", c_int64),
    ]


class Workspace:
    """Where a student computes, on a CPU or a CUDA device, and what it remembers between calls: the neighbour list.

    One call at a time; threads that share one wait for each other, and structures that take turns in one cost each
    other the list. A copy or pickle has the same settings and an empty memory.

    Args: threads: CPU threads, default torch's; isa: instruction set (native.ISA_NAMES; 0: the best of this machine);
    device: "cpu", "cuda" or "cuda:1".
    Raises: NativeError where this machine or library cannot.
    """

    def __init__(self, threads: int | None = None, isa: int = 0, device: str | torch.device = "cpu"):
        self._settings = (threads, isa, str(device))
        self._lock = threading.Lock()
        self._out = _Results()
        self._handle = c_void_p()
        lib = _library()
        where = torch.device(device)
        if where.type == "cpu":
            execution = native.Execution(threads or torch.get_num_threads(), isa)
            native.check(lib.dpsim_workspace_create(byref(execution), byref(self._handle)))
        elif where.type == "cuda":
            native.check(lib.dpsim_workspace_create_cuda(where.index or 0, byref(self._handle)))
        else:
            raise ConfigError(f"`device` is {device}; expected cpu or cuda. Choose one of them.")
        weakref.finalize(self, lib.dpsim_workspace_free, self._handle)

    @property
    def n_rebuilds(self) -> int:
        """Neighbour lists built so far."""
        return self._out.n_rebuilds

    @property
    def n_bytes(self) -> int:
        """Memory it holds, on its device."""
        return _library().dpsim_workspace_bytes(self._handle)

    def __reduce__(self) -> tuple[Any, ...]:
        return Workspace, self._settings


class NativeStudent:
    """A student as the native kernels hold it. Immutable: share it between threads, each with its own Workspace.

    Attributes: type_map; precision "float32" or "float64", what it computes in; rcut, r_min: A.

    Args: file: a student's file, by path or as its bytes; precision: None for the one the file names.
    Raises: NativeError with the library's message for a file that is no student, and without a native library.
    """

    type_map: tuple[str, ...]

    def __init__(
        self, file: str | os.PathLike[str] | bytes, precision: Literal["float32", "float64"] | None = None
    ) -> None:
        if precision not in _PRECISIONS:
            raise ConfigError(f"`precision` is {precision!r}; expected 'float32', 'float64' or None. Correct it.")
        self._source = (file if isinstance(file, bytes) else Path(file), precision)
        self._handle = c_void_p()
        lib = _library()
        if isinstance(file, bytes):
            opened = lib.dpsim_student_from_memory(file, len(file), _PRECISIONS[precision], byref(self._handle))
        else:
            opened = lib.dpsim_student_open(os.fsencode(file), _PRECISIONS[precision], byref(self._handle))
        native.check(opened)
        weakref.finalize(self, lib.dpsim_student_close, self._handle)
        info = _Info()
        native.check(lib.dpsim_student_info(self._handle, byref(info)))
        self.type_map = tuple(lib.dpsim_student_type_name(self._handle, t).decode() for t in range(info.n_types))
        self.precision: Literal["float32", "float64"] = "float32" if info.precision == 32 else "float64"
        self.rcut, self.r_min = float(info.rcut), float(info.r_min)

    def compute(
        self,
        workspace: Workspace,
        types: ArrayLike,
        positions: ArrayLike,
        cell: ArrayLike | None = None,
        pbc: Sequence[bool] | NDArray[np.bool_] = (False, False, False),
        skin: float = 0.0,
        *,
        forces: bool = True,
        virial: bool = False,
        atom_virial: bool = False,
    ) -> StudentResults:
        """Energies of one configuration and, where asked, their derivatives.

        Args: types (n,) counted in type_map; positions (n, 3) A, wrapped or not; cell (3, 3) A, rows are lattice
        vectors; pbc (3,); skin A: the pairs within rcut + skin are kept until one could be missing.
        Raises: NativeError for positions or a cell that are not finite, unknown types, a flat periodic cell.
        """
        x = np.ascontiguousarray(positions, dtype=np.float64)
        t = np.ascontiguousarray(types, dtype=np.int32)
        h = None if cell is None else np.ascontiguousarray(cell, dtype=np.float64)
        periodic = np.ascontiguousarray(pbc, dtype=np.int32)
        n = len(t)
        if x.shape != (n, 3) or t.ndim != 1 or periodic.shape != (3,) or (h is not None and h.shape != (3, 3)):
            raise ConfigError(
                f"`types, positions, cell, pbc` have shapes {t.shape}, {x.shape}, {None if h is None else h.shape}, "
                f"{periodic.shape}; expected (n,), (n, 3), (3, 3), (3,). Reshape them."
            )
        energy, atom_energy = np.empty(1), np.empty(n)
        f = np.empty((n, 3)) if forces else None
        w = np.empty((3, 3)) if virial else None
        share = np.empty((n, 3, 3)) if atom_virial else None
        with workspace._lock:
            out = workspace._out
            out.energy, out.atom_energy = energy.ctypes.data, atom_energy.ctypes.data
            out.forces, out.virial, out.atom_virial = _address(f), _address(w), _address(share)
            native.check(
                _library().dpsim_student_compute(
                    self._handle, workspace._handle, n, t.ctypes.data, x.ctypes.data, _address(h),
                    periodic.ctypes.data, skin, byref(out),
                )
            )  # fmt: skip
            below_range = out.below_range
        return StudentResults(float(energy[0]), atom_energy, f, w, share, below_range)

    def __repr__(self) -> str:
        return f"NativeStudent({' '.join(self.type_map)}, {self.precision}, rcut {self.rcut:g} A)"

    def __copy__(self) -> NativeStudent:
        return self  # immutable

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeStudent:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return NativeStudent, self._source


def usable(device: str | torch.device = "cpu") -> bool:
    """Whether students run natively on that device, here and now. Warns once if there is no native library at all."""
    if native.library() is None:
        return False
    where = torch.device(device)
    return where.type == "cpu" or (where.type == "cuda" and (where.index or 0) < native.capabilities().cuda_devices)


def _library() -> ctypes.CDLL:
    lib = native.library()
    if lib is None:
        raise native.NativeError(
            f"the native library is missing ({native.capabilities().problem}); expected it for a native student. "
            "Reinstall dpsim with a C++ compiler, or evaluate the student with PyTorch."
        )
    return lib


def _address(array: Array | None) -> int | None:
    return None if array is None else array.ctypes.data
