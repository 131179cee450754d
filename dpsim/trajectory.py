"""Trajectories that survive a kill at any moment: GROMACS TRR, written append-only, and the topology beside it.

A frame holds positions, velocities, forces, the cell, the step and the time, in single precision and in TRR's units
(nm, ps, kJ/mol); every reader of the field opens it, MDAnalysis among them. Positions are written unwrapped, so mean
squared displacements need no bookkeeping of crossings.

Crash safety: the eight bytes that make a frame visible to readers are written last, so a reader (or a kill) between
two writes sees the frames before. `TrajectoryWriter.offset` belongs into the checkpoint; resuming truncates to it.
"""

from __future__ import annotations

import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpsim.errors import DataError, MissingDependencyError
from dpsim.files import atomic_write
from dpsim.units import ASE_TIME_FS, factor

if TYPE_CHECKING:
    from MDAnalysis import Universe

Array = NDArray[np.float64]

NM_PER_ANGSTROM = 0.1
PS_PER_ASE_TIME = 1e-3 * ASE_TIME_FS
KJ_PER_MOL_PER_EV = float(factor("eV", "kJ/mol"))
MAX_STEP = 2**31 - 1  # TRR's step is a 32-bit integer

_MAGIC, _VERSION = 1993, b"GMX_trn_file"
_VISIBLE = struct.pack(">ii", _MAGIC, len(_VERSION) + 1)  # without these a reader takes what follows for the end
_HEADER_BYTES = len(_VISIBLE) + 4 + len(_VERSION) + 13 * 4 + 2 * 4


def frame_bytes(n_atoms: int) -> int:
    """Length of a frame with positions, velocities and forces."""
    return _HEADER_BYTES + 4 * (9 + 9 * n_atoms)


class TrajectoryWriter:
    """Appends frames to one TRR file.

    Args:
        path: the file; made anew, unless `offset` says how much of an existing one to keep.
        n_atoms: atoms per frame.
        offset: bytes to keep, as read from `offset` at a checkpoint; what was written after it is cut off.

    Raises:
        DataError: the file is shorter than `offset` (it was replaced or copied incompletely).
    """

    def __init__(self, path: str | os.PathLike[str], n_atoms: int, offset: int | None = None):
        self.path = Path(path)
        self.n_atoms = n_atoms
        if offset is None:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            self.offset = 0
        else:
            self._file = open_truncated(self.path, offset)
            self.offset = offset
        self._remove_stale_index()

    def append(
        self,
        step: int,
        time_ps: float,
        positions: Array,
        cell: Array,
        velocities: Array | None = None,
        forces: Array | None = None,
    ) -> None:
        """Write one frame.

        Args:
            step: number of the step, below 2^31; time_ps: time, ps.
            positions: (n_atoms, 3) A, unwrapped; cell: (3, 3) A, rows are lattice vectors, zeros where there are none.
            velocities: (n_atoms, 3) A per ASE time unit; forces: (n_atoms, 3) eV/A.

        Raises:
            DataError: a shape that does not fit, a step beyond 2^31.
        """
        for name, values in (("positions", positions), ("velocities", velocities), ("forces", forces)):
            if values is not None and np.shape(values) != (self.n_atoms, 3):
                raise DataError(
                    f"`{name}` has shape {np.shape(values)}; expected {(self.n_atoms, 3)}. "
                    "A trajectory keeps its number of atoms: open another one."
                )
        if not 0 <= step <= MAX_STEP:
            raise DataError(f"`step` is {step}; expected 0 ... {MAX_STEP}, the range of TRR. Split the run in stages.")
        box, rotation = standard_cell(np.asarray(cell, dtype=np.float64))
        blocks = [
            (box, NM_PER_ANGSTROM),
            (_rotated(positions, rotation), NM_PER_ANGSTROM),
            (_rotated(velocities, rotation), NM_PER_ANGSTROM / PS_PER_ASE_TIME),
            (_rotated(forces, rotation), KJ_PER_MOL_PER_EV / NM_PER_ANGSTROM),
        ]
        data = [b"" if block is None else (block * factor).astype(">f4").tobytes() for block, factor in blocks]
        frame = _header([len(d) for d in data], self.n_atoms, step, time_ps) + b"".join(data)
        _write_all(self._file, frame[len(_VISIBLE) :], self.offset + len(_VISIBLE))
        _write_all(self._file, frame[: len(_VISIBLE)], self.offset)
        self.offset += len(frame)

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Sync and close."""
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _remove_stale_index(self) -> None:
        """MDAnalysis keeps an index of frame offsets beside the file and checks it by size and time only."""
        for ending in ("npz", "lock"):
            self.path.with_name(f".{self.path.name}_offsets.{ending}").unlink(missing_ok=True)


def open_truncated(path: Path, offset: int) -> int:
    """File descriptor for writing a file cut to its first `offset` bytes. Raises DataError if it is shorter."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError as error:
        raise DataError(
            f"`{path}` is missing, but its checkpoint says it holds {offset} bytes. "
            "Put it back, or delete the stage's directory to start the stage anew."
        ) from error
    size = os.fstat(file).st_size
    if size < offset:
        os.close(file)
        raise DataError(
            f"`{path}` has {size} bytes; expected at least {offset}, as its checkpoint says. "
            "Put the complete file back, or delete the stage's directory to start the stage anew."
        )
    os.ftruncate(file, offset)
    return file


def standard_cell(cell: Array) -> tuple[Array, Array | None]:
    """The cell with a along x and b in the xy plane, and the rotation Q with cell = standard Q (None if it is already).

    Lengths and angles are all that the field's readers keep of a cell, so positions have to be written in this
    orientation. A cell without three lattice vectors becomes zeros, "not periodic".
    """
    if abs(np.linalg.det(cell)) < 1e-12:
        return np.zeros((3, 3)), None
    if cell[0, 1] == cell[0, 2] == cell[1, 2] == 0.0 and np.all(np.diag(cell) > 0.0):
        return cell, None
    q, r = np.linalg.qr(cell.T)  # cell = r^T q^T, lower triangular times rotation
    sign = np.where(np.diag(r) < 0.0, -1.0, 1.0)
    return np.tril(r.T * sign), (q * sign).T


def _rotated(vectors: Array | None, rotation: Array | None) -> Array | None:
    """Row vectors in the standard orientation: v = v' Q, so v' = v Q^T."""
    if vectors is None:
        return None
    values = np.asarray(vectors, dtype=np.float64)
    return values if rotation is None else values @ rotation.T


def _header(sizes: list[int], n_atoms: int, step: int, time_ps: float) -> bytes:
    """A TRR frame header: sizes of box, positions, velocities and forces in bytes, the rest of it zero."""
    box, x, v, f = sizes
    return (
        _VISIBLE
        + struct.pack(">i", len(_VERSION))
        + _VERSION
        + struct.pack(">13i", 0, 0, box, 0, 0, 0, 0, x, v, f, n_atoms, step, 0)
        + struct.pack(">ff", time_ps, 0.0)
    )


def _write_all(file: int, data: bytes, offset: int) -> None:
    """pwrite until everything is written."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def write_topology(path: str | os.PathLike[str], symbols: list[str], positions: Array, cell: Array) -> Path:
    """Write a PDB file that names the element of each atom, in order, atomically.

    Its coordinates are nominal (PDB has 1e-3 A and five digits before the point); the trajectory's count.
    """
    path = Path(path)
    box, rotation = standard_cell(np.asarray(cell, dtype=np.float64))
    xyz = _rotated(positions, rotation)
    assert xyz is not None  # positions are never None here; for the type checker
    xyz = np.where(np.abs(xyz) < 999.0, xyz, 0.0)
    lines = ["REMARK   elements of the trajectory beside this file; coordinates are those of the start, rounded"]
    if box.any():
        a, b, c = np.linalg.norm(box, axis=1)
        angles = [np.degrees(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))) for u, v in _angle_pairs(box)]
        lines.append(f"CRYST1{a:9.3f}{b:9.3f}{c:9.3f}{angles[0]:7.2f}{angles[1]:7.2f}{angles[2]:7.2f} P 1           1")
    for k, (symbol, (x, y, z)) in enumerate(zip(symbols, xyz, strict=True)):
        name = f" {symbol:<3s}" if len(symbol) == 1 else f"{symbol:<4s}"
        lines.append(
            f"HETATM{(k + 1) % 100000:5d} {name} SYS A   1    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          "
            f"{symbol.upper():>2s}  "
        )
    atomic_write(path, "\n".join([*lines, "END", ""]).encode())
    return path


def _angle_pairs(box: Array) -> list[tuple[Array, Array]]:
    """Lattice vectors enclosing alpha, beta, gamma."""
    return [(box[1], box[2]), (box[0], box[2]), (box[0], box[1])]


def open_universe(topology: str | os.PathLike[str], trajectory: str | os.PathLike[str]) -> Universe:
    """The run as an MDAnalysis Universe (A, ps, A/ps, kJ/mol/A). Raises DataError, MissingDependencyError."""
    try:
        import MDAnalysis
    except ImportError as error:
        raise MissingDependencyError("MDAnalysis", "analysis", "Reading a trajectory") from error
    for path in (topology, trajectory):
        if not Path(path).is_file() or Path(path).stat().st_size == 0:
            raise DataError(f"`{path}` is missing or empty; expected the file of a run. Run the protocol first.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about every attribute that a minimal topology leaves out, and old indices
        return MDAnalysis.Universe(os.fspath(topology), os.fspath(trajectory))


@dataclass(frozen=True)
class TrajectoryFrame:
    """One frame as `TrajectoryWriter` was given it, up to single precision (and the orientation of a tilted cell)."""

    step: int
    time_ps: float
    positions: Array
    velocities: Array | None
    forces: Array | None
    cell: Array


def count_frames(path: str | os.PathLike[str]) -> int:
    """Number of complete frames of a file written by `TrajectoryWriter`, whose frames are all of one size."""
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        frame_bytes = sum(_sizes(file.read(_HEADER_BYTES))[0]) + _HEADER_BYTES if size >= _HEADER_BYTES else 0
        n = size // frame_bytes if frame_bytes else 0
        while n:  # at most the last frame can be incomplete
            file.seek((n - 1) * frame_bytes)
            if file.read(len(_VISIBLE)) == _VISIBLE:
                return n
            n -= 1
    return 0


def read_frame(path: str | os.PathLike[str], index: int) -> TrajectoryFrame:
    """Frame `index` (from 0) of a file written by `TrajectoryWriter`. Raises DataError if there is no such frame."""
    n = count_frames(path)
    if not 0 <= index < n:
        raise DataError(f"`index` is {index}; expected 0 ... {n - 1}, the frames of {path}. Choose another frame.")
    with Path(path).open("rb") as file:
        sizes, n_atoms, step = _sizes(file.read(_HEADER_BYTES))
        file.seek(index * (_HEADER_BYTES + sum(sizes)))
        header = file.read(_HEADER_BYTES)
        sizes, n_atoms, step = _sizes(header)
        (time_ps,) = struct.unpack(">f", header[-8:-4])
        data = [np.frombuffer(file.read(size), dtype=">f4").astype(np.float64).reshape(-1, 3) for size in sizes]
    box, x, v, f = data
    return TrajectoryFrame(
        step=step,
        time_ps=time_ps,
        positions=x / NM_PER_ANGSTROM,
        velocities=v * PS_PER_ASE_TIME / NM_PER_ANGSTROM if len(v) else None,
        forces=f * NM_PER_ANGSTROM / KJ_PER_MOL_PER_EV if len(f) else None,
        cell=box / NM_PER_ANGSTROM,
    )


def _sizes(header: bytes) -> tuple[list[int], int, int]:
    """Sizes of box, positions, velocities and forces (bytes), number of atoms, and step, of a frame's header."""
    numbers = struct.unpack(">13i", header[-60:-8])
    return [numbers[2], numbers[7], numbers[8], numbers[9]], numbers[10], numbers[11]
