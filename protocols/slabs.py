"""Crystals cut along lattice planes: layers of any Miller plane, slabs with vacuum, and cells with a stacking fault.

The axes stay those of the crystal: nothing is turned, so that directions given in its lattice vectors remain valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpsim.errors import ConfigError
from dpsim.protocols.symmetry import crystal_symmetry

if TYPE_CHECKING:
    from ase import Atoms

Array = NDArray[np.float64]
_PLANES_APART = 1e-3  # A; atoms nearer along the normal are in one plane


@dataclass(frozen=True)
class Layer:
    """One repeat of the crystal along a plane's normal: cell rows are two vectors in the plane, and one to the next."""

    atoms: Atoms
    normal: Array  # unit vector
    spacing: float  # A, between repeats

    @property
    def area(self) -> float:
        """Of the cell, A^2."""
        a, b, _ = self.atoms.cell.array
        return float(np.linalg.norm(np.cross(a, b)))

    def stack(self, n: int, shift: Sequence[float] | Array = (0.0, 0.0, 0.0)) -> Atoms:
        """n repeats, periodic; each crossing of the cell's boundary adds `shift` (A): a stacking fault."""
        atoms = self.atoms.repeat((1, 1, n))
        cell = atoms.cell.array.copy()
        cell[2] += np.asarray(shift)
        atoms.set_cell(cell, scale_atoms=False)
        return atoms

    def slab(self, n: int, vacuum: float) -> Atoms:
        """n repeats with `vacuum` (A) between the images; the third lattice vector is along the normal."""
        atoms = self.stack(n)
        cell = atoms.cell.array.copy()
        cell[2] = (n * self.spacing + vacuum) * self.normal
        atoms.set_cell(cell, scale_atoms=False)
        return atoms


def layer(crystal: Atoms, miller: Sequence[int]) -> Layer:
    """The smallest cell of a crystal with two vectors in the plane (hkl), cut where planes of atoms are farthest apart.

    Args: crystal: periodic; miller: (h, k, l) of the lattice vectors of `crystal`.

    Raises: ConfigError for (0, 0, 0).
    """
    from ase import Atoms

    if not any(miller):
        raise ConfigError("`miller` is 0 0 0; expected a plane. Give three integers that are not all zero.")
    reciprocal = np.array(miller, dtype=np.float64) @ crystal.cell.reciprocal().array
    normal = reciprocal / np.linalg.norm(reciprocal)
    a, b, c = _plane_vectors(crystal_symmetry(crystal).primitive, normal)
    spacing = float(c @ normal)
    cell = np.array([a, b, c])
    numbers, positions = _fill(crystal, cell)
    height = (positions @ normal) % spacing
    start = _widest_gap(height, spacing)
    moved = (height - start) % spacing  # so that the cut is at 0
    positions += np.outer(np.round((moved - (positions @ normal - start)) / spacing), c)
    positions -= start * normal
    return Layer(Atoms(numbers, positions=positions, cell=cell, pbc=True), normal, spacing)


def _plane_vectors(primitive: Array, normal: Array) -> tuple[Array, Array, Array]:
    """Primitive vectors a, b in the plane, as short as can be, and c with the least height above it."""
    along = primitive @ normal
    unit = min(float(x) for x in np.abs(along) if x > 1e-6)
    indices = _integers(along / unit)
    reach = int(np.abs(indices).max()) + 2
    grid = np.array(list(product(range(-reach, reach + 1), repeat=3)))
    vectors, level = grid @ primitive, grid @ indices
    order = np.argsort(np.linalg.norm(vectors, axis=1).round(9), kind="stable")
    vectors, level = vectors[order], level[order]
    inside = vectors[level == 0][1:]  # without zero
    a = inside[0]
    areas = np.linalg.norm(np.cross(a, inside), axis=1)
    b = inside[int(np.argmax(areas > 1e-6))]
    c = vectors[int(np.argmax(level == 1))]
    return (a, b, c) if np.cross(a, b) @ c > 0.0 else (b, a, c)


def _integers(ratios: Array) -> NDArray[np.int64]:
    """Whole numbers in these proportions, the smallest."""
    for factor in range(1, 1000):
        whole = np.round(ratios * factor)
        if np.abs(ratios * factor - whole).max() < 1e-4 * factor:
            return (whole / np.gcd.reduce(whole.astype(np.int64))).astype(np.int64)
    raise ConfigError("the plane has no small Miller indices in the primitive cell; expected a lattice plane.")


def _fill(crystal: Atoms, cell: Array) -> tuple[NDArray[np.int64], Array]:
    """The atoms of a crystal within another cell of its lattice."""
    inverse = np.linalg.inv(cell)
    corners = np.array(list(product((0, 1), repeat=3))) @ cell @ np.linalg.inv(crystal.cell.array)
    low, high = np.floor(corners.min(axis=0)).astype(int) - 1, np.ceil(corners.max(axis=0)).astype(int) + 1
    shifts = np.array(list(product(*(range(i, j + 1) for i, j in zip(low, high, strict=True))))) @ crystal.cell.array
    positions = (crystal.positions[None] + shifts[:, None]).reshape(-1, 3)
    numbers = np.tile(crystal.numbers, len(shifts))
    scaled = positions @ inverse
    edge = 1e-5
    scaled = np.where(np.abs(scaled - np.round(scaled)) < edge, np.round(scaled), scaled)
    within = np.all((scaled >= 0.0) & (scaled < 1.0), axis=1)
    expected = round(len(crystal) * abs(np.linalg.det(cell)) / crystal.get_volume())
    if within.sum() != expected:
        raise ConfigError(
            f"the layer holds {within.sum()} atoms; expected {expected}. The structure is not quite a lattice: give "
            "one with exact positions."
        )
    return numbers[within], positions[within]


def _widest_gap(height: Array, spacing: float) -> float:
    """The middle of the widest gap between planes of atoms."""
    planes = np.sort(height)
    gaps = np.diff(np.append(planes, planes[0] + spacing))
    k = int(np.argmax(gaps > gaps.max() - _PLANES_APART))
    return float(planes[k] + 0.5 * gaps[k])
