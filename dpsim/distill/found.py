"""A frame and where it comes from, from the walker that found it to the set it is trained in.

On disk these are extxyz files that `dpsim train` reads: labels as REF_energy (eV), REF_virial (eV) and the columns
REF_forces (eV/A), the origin as keys of the comment line: id, round, walker, condition, step, parent, deviation
(eV/A), reason, labelled_by.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write

from dpsim.data.frame import Frame
from dpsim.errors import DataError
from dpsim.files import atomic_write


@dataclass(frozen=True)
class Origin:
    """Where a frame comes from, and why it was taken.

    id: unique in a run; parent: the structure its walker began with; deviation: eV/A, of the student when it was
    judged, None if it was not; reason: why it was chosen, "" if it was not; labelled_by: what made its labels.
    """

    id: str
    round: int
    walker: str
    condition: str
    step: int
    parent: str
    deviation: float | None = None
    reason: str = ""
    labelled_by: str = ""


@dataclass(frozen=True)
class Found:
    """A frame and its origin; `frame.source` is the id."""

    frame: Frame
    origin: Origin

    @property
    def id(self) -> str:
        return self.origin.id

    def judged(self, deviation: float | None, reason: str) -> Found:
        """The same, knowing its deviation and why it was chosen."""
        return replace(self, origin=replace(self.origin, deviation=deviation, reason=reason))

    def labelled(self, frame: Frame, by: str) -> Found:
        """The same with the labels of `frame`, and what made them."""
        labels = {name: getattr(frame, name) for name in ("energy", "forces", "virial")}
        return Found(replace(self.frame, **labels), replace(self.origin, labelled_by=by))


def write_found(path: Path, frames: Iterable[Found]) -> None:
    """Write an extxyz file in one step; one without frames is empty."""
    buffer = io.StringIO()
    for found in frames:
        write(buffer, _to_atoms(found), format="extxyz")
    atomic_write(path, buffer.getvalue().encode())


def read_found(path: Path, type_map: Sequence[str]) -> list[Found]:
    """What `write_found` wrote. Raises DataError for a file that it did not write."""
    try:
        if path.stat().st_size == 0:
            return []
        return [_from_atoms(atoms, tuple(type_map)) for atoms in read(path, index=":", format="extxyz")]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"`{path}` cannot be read ({type(error).__name__}: {error}); expected the frames dpsim wrote. Put the file "
            "back, or start in a new folder."
        ) from error


def atoms_of(frame: Frame) -> Atoms:
    """An Atoms object without labels."""
    return Atoms(frame.symbols, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)


def frame_of(atoms: Atoms, type_map: Sequence[str], source: str) -> Frame:
    """A frame without labels. Raises DataError for an element that type_map lacks."""
    symbols = atoms.get_chemical_symbols()
    if unknown := sorted(set(symbols) - set(type_map)):
        raise DataError(
            f"elements {unknown} of {source} are not in the student's `type_map` {list(type_map)}; expected only "
            "elements that it holds. Add them to `student.model.type_map`."
        )
    return Frame(
        positions=np.array(atoms.positions, dtype=np.float64),
        types=np.array([list(type_map).index(s) for s in symbols], dtype=np.int64),
        type_map=tuple(type_map),
        cell=np.array(atoms.cell.array, dtype=np.float64),
        pbc=np.array(atoms.pbc, dtype=bool),
        source=source,
    )


def _to_atoms(found: Found) -> Atoms:
    frame = found.frame
    atoms = atoms_of(frame)
    atoms.info.update({k: v for k, v in asdict(found.origin).items() if v is not None and v != ""})
    if frame.energy is not None:
        atoms.info["REF_energy"] = float(frame.energy)
    if frame.virial is not None:
        atoms.info["REF_virial"] = np.asarray(frame.virial).ravel(order="F")  # as ASE reads nine numbers
    if frame.forces is not None:
        atoms.arrays["REF_forces"] = np.asarray(frame.forces)
    return atoms


def _from_atoms(atoms: Atoms, type_map: tuple[str, ...]) -> Found:
    info: dict[str, Any] = atoms.info
    frame = frame_of(atoms, type_map, str(info["id"]))
    frame = replace(
        frame,
        energy=None if "REF_energy" not in info else float(info["REF_energy"]),
        virial=None if "REF_virial" not in info else np.asarray(info["REF_virial"], dtype=np.float64),
        forces=None if "REF_forces" not in atoms.arrays else np.asarray(atoms.arrays["REF_forces"], dtype=np.float64),
    )
    origin = Origin(
        id=str(info["id"]),
        round=int(info["round"]),
        walker=str(info["walker"]),
        condition=str(info["condition"]),
        step=int(info["step"]),
        parent=str(info["parent"]),
        deviation=None if "deviation" not in info else float(info["deviation"]),
        reason=str(info.get("reason", "")),
        labelled_by=str(info.get("labelled_by", "")),
    )
    return Found(frame, origin)
