"""Loads libdpsim, the C library of native kernels (csrc/), and says what it can do. No kernel lives here."""

from __future__ import annotations

import ctypes
import warnings
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dpsim.errors import DpsimError
from dpsim.kernels.location import library_path

ABI = 4  # DPSIM_ABI of csrc/include/dpsim.h
INVALID_ARGUMENT = 1  # of dpsim_status
ISA_NAMES = {1: "scalar", 2: "AVX2", 3: "AVX-512"}
SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


class NativeError(DpsimError, RuntimeError):
    """A native kernel refused its arguments or failed; the message is the library's, `refused` says which of both."""

    def __init__(self, message: str, refused: bool = False):
        super().__init__(message)
        self.refused = refused


class Execution(Structure):
    """dpsim_execution: number of threads, and the instruction set (0: the best of this machine)."""

    _fields_ = [("threads", c_int32), ("isa", c_int32)]


class _Capabilities(Structure):
    _fields_ = [(name, c_int32) for name in ("abi", "isa", "openmp", "cuda", "cuda_devices")]


@dataclass(frozen=True)
class Capabilities:
    """What the native library of this installation can do on this machine. `path` is None if there is no library."""

    path: Path | None = None
    version: str = ""
    isa: str = ""
    openmp: bool = False
    cuda: bool = False
    cuda_devices: int = 0
    problem: str = ""  # why there is no usable library


_environment = [c_int64, c_void_p, c_double, c_double, c_double]
_net = [c_int, c_void_p]  # n_layers, layers
_edges = [c_int64, c_void_p, c_int, c_void_p, c_void_p]  # n_centers, offsets, channels, env, s
_rows = [c_int64, c_int, c_int64, c_void_p, c_void_p, c_int, c_double]  # rows, n, ld, x, f, center, eps
_neighbors = [c_int64, c_void_p, c_int64, c_void_p, c_int, c_int]  # n_centers, offsets, n_rows, index, K, C
_SIGNATURES = {
    "rows_forward": [*_rows, *[c_void_p] * 1, POINTER(Execution)],
    "rows_backward": [*_rows, *[c_void_p] * 3, POINTER(Execution)],
    "rows_backward_twice": [*_rows, *[c_void_p] * 6, POINTER(Execution)],
    "line_graph_forward": [*[c_void_p] * 3, POINTER(Execution)],
    "line_graph_backward": [*[c_void_p] * 4, POINTER(Execution)],
    "line_graph_backward_twice": [*[c_void_p] * 7, POINTER(Execution)],
    "pair_attention_forward": [*[c_void_p] * 2, POINTER(Execution)],
    "pair_attention_backward": [*[c_void_p] * 3, POINTER(Execution)],
    "pair_attention_backward_twice": [*[c_void_p] * 5, POINTER(Execution)],
    **{
        f"neighbor_{name}": [*_neighbors, *[c_void_p] * 4, POINTER(Execution)]
        for name in ("sum", "dot", "spread", "weight")
    },
    "embedding_forward": [c_int64, c_void_p, *_net, *[c_void_p] * 2, POINTER(Execution)],
    "embedding_backward": [c_int64, c_void_p, *_net, *[c_void_p] * 3, POINTER(Execution)],
    "radial_forward": [*_edges, *_net, *[c_void_p] * 3, POINTER(Execution)],
    "radial_backward_inputs": [*_edges, *_net, *[c_void_p] * 5, POINTER(Execution)],
    "radial_backward_twice": [c_int64, c_void_p, c_int, c_int, *[c_void_p] * 6, POINTER(Execution)],
    "radial_backward_parameters": [*_edges, *_net, *[c_void_p] * 5, POINTER(Execution)],
    "environment": [*_environment, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(Execution)],
    "environment_vjp": [*_environment, c_void_p, c_void_p, c_void_p, POINTER(Execution)],
    "environment_jvp": [*_environment, c_void_p, c_void_p, c_void_p, POINTER(Execution)],
    "environment_cuda": [*_environment, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p],
}
_student = [c_void_p, c_void_p]  # student, workspace
_PLAIN_SIGNATURES = {  # of one precision: (arguments, result)
    "student_open": ([c_char_p, c_int, POINTER(c_void_p)], c_int),
    "student_from_memory": ([c_char_p, c_int64, c_int, POINTER(c_void_p)], c_int),
    "student_close": ([c_void_p], None),
    "student_info": ([c_void_p, c_void_p], c_int),
    "student_type_name": ([c_void_p, c_int], c_char_p),
    "workspace_create": ([POINTER(Execution), POINTER(c_void_p)], c_int),
    "workspace_create_cuda": ([c_int, POINTER(c_void_p)], c_int),
    "workspace_free": ([c_void_p], None),
    "workspace_bytes": ([c_void_p], c_int64),
    "student_compute": ([*_student, c_int64, *[c_void_p] * 4, c_double, c_void_p], c_int),
}


@cache
def _open() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and the reason."""
    path = library_path()
    if not path.exists():
        return None, f"{path} does not exist"
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        return None, str(error)
    lib.dpsim_version.restype = lib.dpsim_last_error.restype = c_char_p
    lib.dpsim_capabilities.argtypes = [POINTER(_Capabilities)]
    found = _Capabilities()
    lib.dpsim_capabilities(byref(found))
    if found.abi != ABI:
        return None, f"{path} has ABI {found.abi}; expected {ABI}"
    for name, arguments in _SIGNATURES.items():
        for suffix in SUFFIX.values():
            function = getattr(lib, f"dpsim_{name}_{suffix}")
            function.argtypes, function.restype = arguments, c_int
    for name, (arguments, result) in _PLAIN_SIGNATURES.items():
        function = getattr(lib, f"dpsim_{name}")
        function.argtypes, function.restype = arguments, result
    return lib, ""


@cache
def library() -> ctypes.CDLL | None:
    """The library with its signatures, or None (after one warning) if there is none: references take over then."""
    lib, problem = _open()
    if lib is None:
        warnings.warn(
            f"dpsim's native kernels cannot be used: {problem}. Slower PyTorch code runs instead. "
            "Reinstall dpsim with a C++ compiler, or run `make lib` in its source directory.",
            RuntimeWarning,
            stacklevel=3,
        )
    return lib


def capabilities() -> Capabilities:
    """What the native library can do here; never warns, never raises."""
    lib, problem = _open()
    if lib is None:
        return Capabilities(problem=problem)
    found = _Capabilities()
    lib.dpsim_capabilities(byref(found))
    return Capabilities(
        path=library_path(),
        version=lib.dpsim_version().decode(),
        isa=ISA_NAMES.get(found.isa, str(found.isa)),
        openmp=bool(found.openmp),
        cuda=bool(found.cuda),
        cuda_devices=found.cuda_devices,
    )


def call(name: str, like: torch.Tensor, *arguments: Any, threads: int | None = None) -> None:
    """Call dpsim_<name> in the precision of `like`, tensors passed as pointers; by default with torch's threads."""
    function = getattr(library(), f"dpsim_{name}_{SUFFIX[like.dtype]}")
    plain = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
    check(function(*plain, byref(Execution(threads or torch.get_num_threads(), 0))))


def check(status: int) -> None:
    """Raise NativeError if a call into the library did not return DPSIM_OK."""
    if status:
        lib, problem = _open()
        message = lib.dpsim_last_error().decode() if lib is not None else problem
        raise NativeError(message, refused=status == INVALID_ARGUMENT)
