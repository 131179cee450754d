"""The symmetry of a crystal, by spglib: its point group in Cartesian axes, its sites, its primitive lattice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpsim.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from ase import Atoms

SYMPREC = 1e-3
"""A; atoms that coincide to this length are taken as symmetric."""


@dataclass(frozen=True)
class CrystalSymmetry:
    """Space group by name and number; Cartesian rotations (n, 3, 3); the site of each atom; primitive vectors, rows."""

    name: str
    number: int
    rotations: NDArray[np.float64]
    sites: NDArray[np.int64]
    primitive: NDArray[np.float64]


def crystal_symmetry(atoms: Atoms, symprec: float = SYMPREC) -> CrystalSymmetry:
    """Of a periodic structure. Raises DataError where spglib finds none."""
    try:
        import spglib
    except ImportError as error:
        raise MissingDependencyError("spglib", "analysis", "The symmetry of a crystal") from error
    cell = atoms.cell.array
    found: Any = spglib.get_symmetry_dataset((cell, atoms.get_scaled_positions(), atoms.numbers), symprec=symprec)
    if found is None:
        raise DataError("spglib finds no symmetry of the structure; expected a crystal. Look for atoms too close.")
    # scaled x -> W x; with rows of the cell as vectors, Cartesian r = x^T L -> R = L^T W L^-T
    rotations = np.unique(found.rotations, axis=0)
    cartesian = np.einsum("ia,nab,bj->nij", cell.T, rotations, np.linalg.inv(cell.T))
    return CrystalSymmetry(
        f"{found.international} ({found.number})", int(found.number), cartesian,
        np.asarray(found.crystallographic_orbits), np.asarray(found.primitive_lattice),
    )  # fmt: skip
