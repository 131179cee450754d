"""Checks of data before anything is made of them: each error names the file, the frame, the value and the fix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpsim.data.frame import Frame
from dpsim.data.statistics import sample_frames
from dpsim.data.system import System
from dpsim.errors import DataError
from dpsim.neighbors import neighbor_list

MAX_FORCE = 1e4  # eV/A
MAX_ENERGY_PER_ATOM = 1e6  # eV; an all-electron uranium atom has 7.6e5
MAX_VIRIAL_PER_ATOM = 1e4  # eV; 1e4 eV in 10 A^3 is 1.6e5 GPa
MIN_DISTANCE = 0.1  # A
MIN_VOLUME_PER_ATOM = 0.2  # A^3
_SEARCH = 1.0  # A, cutoff of the search for close atoms: few pairs, yet not too many cells to look through


def validate_systems(
    systems: Sequence[System], type_map: Sequence[str] | None = None, n_frames: int | None = None, seed: int = 0
) -> int:
    """Validate the frames of systems (a seeded sample of n_frames, or all) and return how many were looked at.

    Raises: DataError at the first frame that fails, ElementError if an element is not in type_map.
    """
    taken = sample_frames(systems, n_frames, seed)
    for system, k in taken:
        validate_frame(systems[system].frame(k), type_map)
    return len(taken)


def validate_frame(frame: Frame, type_map: Sequence[str] | None = None) -> None:
    """Check one frame: shapes, finite numbers, plausible units, types, the cell, and that no two atoms coincide.

    Args: type_map: if given, the frame's elements must be in it.
    Raises: DataError naming file, frame and value; ElementError for elements outside type_map.
    """
    where = frame.source or "frame"
    _check_shapes(frame, where)
    _check_finite(frame, where)
    _check_types(frame, where)
    if type_map is not None:
        frame.with_type_map(type_map)
    _check_magnitudes(frame, where)
    _check_cell(frame, where)
    _check_distances(frame, where)


def _check_shapes(frame: Frame, where: str) -> None:
    n = len(frame.types)
    expected = {"positions": (n, 3), "types": (n,), "cell": (3, 3), "pbc": (3,), "forces": (n, 3), "virial": (3, 3)}
    expected["atom_pref"] = (n,)
    if n == 0:
        raise DataError(f"{where}: `types` is empty; expected at least one atom. Remove the frame.")
    for name, shape in expected.items():
        value = getattr(frame, name)
        if value is not None and np.shape(value) != shape:
            raise DataError(
                f"{where}: `{name}` has shape {np.shape(value)}; expected {shape} for {n} atoms. Correct the file."
            )


def _check_finite(frame: Frame, where: str) -> None:
    for name in ("positions", "cell", "energy", "forces", "virial", "fparam", "aparam", "atom_pref"):
        value = getattr(frame, name)
        if value is None or np.isfinite(value).all():
            continue
        array = np.asarray(value)
        index = tuple(int(k) for k in np.argwhere(~np.isfinite(array))[0])
        of_atoms = name in ("positions", "forces", "aparam", "atom_pref")
        at = f"atom {index[0]}" if of_atoms else f"component {index}" if index else "the frame"
        raise DataError(
            f"{where}: `{name}` of {at} is {array[index]}; expected a finite number. "
            "Remove the frame (a calculation that did not converge?) or correct the file."
        )


def _check_types(frame: Frame, where: str) -> None:
    n_types = len(frame.type_map)
    bad = np.flatnonzero((frame.types < 0) | (frame.types >= n_types))
    if len(bad):
        raise DataError(
            f"{where}: `types` of atom {bad[0]} is {frame.types[bad[0]]}; expected 0 to {n_types - 1}, for type_map "
            f"{list(frame.type_map)}. Correct the types or the type_map."
        )


def _check_magnitudes(frame: Frame, where: str) -> None:
    """Numbers that no atoms have in A, eV, eV/A: the data are in other units."""
    n = frame.n_atoms
    if frame.atom_pref is not None and frame.atom_pref.min() < 0:
        atom = int(frame.atom_pref.argmin())
        raise DataError(
            f"{where}: `atom_pref` of atom {atom} is {frame.atom_pref[atom]:g}; expected a number >= 0. Correct it."
        )
    if frame.forces is not None:
        norm = np.linalg.norm(frame.forces, axis=1)
        atom = int(norm.argmax())
        if norm[atom] >= MAX_FORCE:
            raise DataError(
                f"{where}: `forces` of atom {atom} is {norm[atom]:.3g} eV/A; expected less than {MAX_FORCE:.0e}. "
                "Convert the forces to eV/A, or remove the frame."
            )
    if frame.energy is not None and abs(frame.energy) / n >= MAX_ENERGY_PER_ATOM:
        raise DataError(
            f"{where}: `energy` is {frame.energy:.6g} eV for {n} atoms; expected less than "
            f"{MAX_ENERGY_PER_ATOM:.0e} eV per atom. Convert the energies to eV."
        )
    if frame.virial is not None and (largest := np.abs(frame.virial).max() / n) >= MAX_VIRIAL_PER_ATOM:
        raise DataError(
            f"{where}: `virial` is {largest:.3g} eV per atom; expected less than {MAX_VIRIAL_PER_ATOM:.0e}. "
            "Convert it to eV: virial = -stress * volume, with the stress in eV/A^3."
        )


def _check_cell(frame: Frame, where: str) -> None:
    periodic = frame.cell[frame.pbc]
    if not len(periodic):
        return
    lengths = np.linalg.norm(periodic, axis=1)
    gram = np.linalg.det(periodic @ periodic.T)
    if lengths.min() == 0 or gram <= (1e-6 * lengths.prod()) ** 2:
        raise DataError(
            f"{where}: `cell` is {frame.cell.tolist()} A, which is degenerate; expected linearly independent vectors. "
            "Correct it, or mark the system as not periodic (an empty file `nopbc`, or pbc in extxyz)."
        )
    if not frame.pbc.all():
        return
    volume = float(np.linalg.det(frame.cell))
    if volume < 0:
        raise DataError(
            f"{where}: `cell` {frame.cell.tolist()} A is left-handed (determinant {volume:.6g} A^3); expected right-"
            "handed lattice vectors. Swap two of its rows in every frame, which leaves the crystal the same "
            "(box.npy: box[:, [3, 4, 5, 0, 1, 2, 6, 7, 8]]); positions, forces and virial stay."
        )
    if volume < MIN_VOLUME_PER_ATOM * frame.n_atoms:
        raise DataError(
            f"{where}: `cell` has {volume / frame.n_atoms:.3g} A^3 per atom; expected more than {MIN_VOLUME_PER_ATOM}. "
            "Convert the cell to A (is it in nm, or in fractions?)."
        )


def _check_distances(frame: Frame, where: str) -> None:
    i, j, shift = neighbor_list(frame.positions, frame.cell, frame.pbc, _SEARCH)
    if not len(i):
        return
    distance = np.linalg.norm(frame.positions[j] - frame.positions[i] + shift @ frame.cell, axis=1)
    k = int(distance.argmin())
    if distance[k] < MIN_DISTANCE:
        image = f" (its image {shift[k].tolist()})" if shift[k].any() else ""
        raise DataError(
            f"{where}: atoms {i[k]} and {j[k]}{image} are {distance[k]:.3g} A apart; expected at least "
            f"{MIN_DISTANCE} A. Remove the double atom, or convert the positions to A (are they in nm, or fractional?)."
        )
