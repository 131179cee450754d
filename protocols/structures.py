"""The starting structure of a protocol: read from a file and checked, or a box of water molecules."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from dpsim.errors import ConfigError, DataError, MissingDependencyError
from dpsim.neighbors import neighbor_list
from dpsim.protocols.schema import Structure

try:
    from ase import Atoms
    from ase.io import read
except ImportError as error:
    raise MissingDependencyError("ase", "ase", "Reading a structure") from error

WATER_MASS_AMU = 18.015
AMU_PER_A3_IN_G_PER_CM3 = 1.66053906660
OH_BOND_A, HOH_ANGLE_DEG = 0.98, 105.5  # the averages of liquid water with flexible molecules
_TOO_CLOSE = 0.4  # A; no bond is shorter, H2 has 0.74
_ORIENTATIONS = 200


def load_structure(structure: Structure, seed: int) -> Atoms:
    """The atoms that a protocol starts from.

    Raises: DataError naming the file for one that is missing, unreadable, empty, holds NaN, or has two atoms at one
        place; ConfigError for a frame that does not exist.
    """
    if structure.water_box is not None:
        atoms, source = water_box(structure.water_box, structure.density, seed), "the water box"
    else:
        assert structure.file is not None  # checked when read
        atoms, source = _read(structure.file, structure.frame), str(structure.file)
    atoms = atoms.repeat(structure.repeat) if structure.repeat != (1, 1, 1) else atoms
    _check(atoms, source)
    return atoms


def _read(path: Path, frame: int) -> Atoms:
    """One frame of a file, by ASE."""
    if not path.is_file():
        raise DataError(f"`structure` is {path}, which is no file; expected a structure. Correct the path.")
    try:
        frames: list[Any] = list(read(path, index=":"))
    except Exception as error:  # ASE's readers raise whatever they like
        raise DataError(f"`structure` {path} cannot be read ({type(error).__name__}: {error}).") from error
    if not frames:
        raise DataError(f"`structure` {path} holds no frames; expected at least one. Choose another file.")
    if not -len(frames) <= frame < len(frames):
        raise ConfigError(
            f"`structure.frame` is {frame}; expected -{len(frames)} ... {len(frames) - 1}, the frames of {path}. "
            "Choose another frame."
        )
    chosen: Atoms = frames[frame]
    chosen.calc = None
    if chosen.constraints:
        raise ConfigError(
            f"`structure` {path} has constraints {[type(c).__name__ for c in chosen.constraints]}; expected none, "
            "dpsim moves every atom. Remove them from the file."
        )
    return chosen


def _check(atoms: Atoms, source: str) -> None:
    """Finite, with a cell where periodic, and no two atoms at one place."""
    if not len(atoms):
        raise DataError(f"`structure` {source} has no atoms; expected at least one. Choose another file.")
    for name, values in (("positions", atoms.positions), ("cell", atoms.cell.array), ("momenta", atoms.get_momenta())):
        if not np.isfinite(values).all():
            row = int(np.argmax(~np.isfinite(values).all(axis=1)))
            raise DataError(f"`{name}` of {source} is {values[row]} in row {row}; expected finite numbers. Correct it.")
    flat = [axis for axis, periodic in enumerate(atoms.pbc) if periodic and np.linalg.norm(atoms.cell[axis]) < 1e-6]
    if flat:
        raise DataError(
            f"`pbc` of {source} is {atoms.pbc.tolist()}, but lattice vector {flat[0]} is zero; expected a cell along "
            "every periodic direction. Give the cell, or set pbc to false."
        )
    if np.any(atoms.get_masses() <= 0.0):
        raise DataError(f"`masses` of {source} has zeros; expected a mass for every atom. Name real elements.")
    i, j, shift = neighbor_list(atoms.positions, np.array(atoms.cell.array), atoms.pbc, _TOO_CLOSE)
    if len(i):
        distance = np.linalg.norm(atoms.positions[j[0]] - atoms.positions[i[0]] + shift[0] @ atoms.cell.array)
        raise DataError(
            f"atoms {i[0]} and {j[0]} ({atoms.symbols[i[0]]}, {atoms.symbols[j[0]]}) of {source} are {distance:.3f} A "
            f"apart; expected more than {_TOO_CLOSE} A. Look at the cell and remove doubled atoms."
        )


def water_box(n_molecules: int, density_g_cm3: float = 0.997, seed: int = 0) -> Atoms:
    """Water molecules on a cubic lattice, turned so that hydrogens of neighbours keep apart; a start, not a liquid.

    The cube has volume n_molecules m(H2O)/density. Each molecule in turn takes, out of 200 random orientations, the
    one whose closest contact with the molecules placed before is the longest.

    Returns: Atoms, ordered O H H molecule by molecule, periodic.
    """
    if n_molecules < 1 or not density_g_cm3 > 0.0:
        raise ConfigError(
            f"`water_box` is {n_molecules} at density {density_g_cm3}; expected at least 1 molecule and a positive "
            "density. Write for example water_box: 64."
        )
    length = (n_molecules * WATER_MASS_AMU * AMU_PER_A3_IN_G_PER_CM3 / density_g_cm3) ** (1.0 / 3.0)
    per_side = math.ceil(round(n_molecules ** (1.0 / 3.0), 9))
    grid = np.stack(np.meshgrid(*[np.arange(per_side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    used = np.linspace(0, len(grid) - 1, n_molecules).round().astype(int)  # empty sites spread evenly
    oxygens = (grid[used] + 0.5) * length / per_side
    random = np.random.default_rng(seed)
    half = math.radians(HOH_ANGLE_DEG) / 2.0
    bonds = OH_BOND_A * np.array([[math.sin(half), 0.0, math.cos(half)], [-math.sin(half), 0.0, math.cos(half)]])
    placed = oxygens.copy()
    hydrogens = np.empty((n_molecules, 2, 3))
    for k, oxygen in enumerate(oxygens):
        candidates = oxygen + np.einsum("ord,hd->ohr", _rotations(random, _ORIENTATIONS), bonds)
        others = np.concatenate([np.delete(placed[:n_molecules], k, axis=0), placed[n_molecules:]])
        hydrogens[k] = candidates[int(np.argmax(_closest(candidates, others, length)))]
        placed = np.concatenate([placed, hydrogens[k]])
    positions = np.concatenate([oxygens[:, None], hydrogens], axis=1).reshape(-1, 3)
    return Atoms("OHH" * n_molecules, positions=positions, cell=[length] * 3, pbc=True)


def _closest(candidates: np.ndarray, others: np.ndarray, length: float) -> np.ndarray:
    """Shortest distance of each candidate's atoms (n, 2, 3) to the others (m, 3) in a periodic cube, (n,)."""
    if not len(others):
        return np.zeros(len(candidates))
    vector = candidates[:, :, None] - others
    vector -= length * np.round(vector / length)
    return np.linalg.norm(vector, axis=-1).min(axis=(1, 2))


def _rotations(random: np.random.Generator, n: int) -> np.ndarray:
    """Uniformly distributed rotation matrices (n, 3, 3), from random unit quaternions."""
    w, x, y, z = (q := random.standard_normal((n, 4))).T / np.linalg.norm(q, axis=1)
    return np.stack(
        [
            np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], axis=-1),
            np.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], axis=-1),
            np.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], axis=-1),
        ],
        axis=1,
    )
