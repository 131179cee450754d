"""Small calculators whose physics is known: a smooth pair potential, and deliberately broken copies of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from dpsim.neighbors import neighbor_list

CUTOFF = 6.0


class ExactCalculator(Calculator):
    """Sees whether a structure has changed bit by bit: ASE's comparison of floats costs more than these forces do."""

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        last = self.atoms
        same = last is not None and all(
            np.array_equal(old, new)
            for old, new in (
                (last.positions, atoms.positions),
                (last.cell.array, atoms.cell.array),
                (last.numbers, atoms.numbers),
                (last.pbc, atoms.pbc),
            )
        )
        return [] if same else list(all_changes)


class PairCalculator(ExactCalculator):
    """Argon-like: U = sum 4 eps ((s/r)^12 - (s/r)^6) (1 - (r/rc)^2)^3, a function of the structure alone."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, epsilon: float = 0.0104, sigma: float = 3.4):
        super().__init__()
        self.epsilon, self.sigma = epsilon, sigma
        self.calls = 0

    def calculate(self, atoms: Atoms | None = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        self.calls += 1
        a = self.atoms
        cell = np.array(a.cell.array)
        i, j, shift = neighbor_list(a.positions, cell, a.pbc, CUTOFF)
        order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], j, i))
        i, j, shift = i[order], j[order], shift[order]
        vector = a.positions[j] - a.positions[i] + shift @ cell
        r = np.linalg.norm(vector, axis=1)
        x6 = (self.sigma / r) ** 6
        pair = 4.0 * self.epsilon * (x6 * x6 - x6)
        slope = 4.0 * self.epsilon * (-12.0 * x6 * x6 + 6.0 * x6) / r
        u = 1.0 - (r / CUTOFF) ** 2
        energy = 0.5 * float(np.sum(pair * u**3))
        derivative = slope * u**3 - pair * 6.0 * r / CUTOFF**2 * u**2
        gradient = (derivative / r)[:, None] * vector
        forces = np.zeros((len(a), 3))
        np.add.at(forces, i, gradient)
        self.results = {"energy": energy, "free_energy": energy, "forces": self.spoil(forces)}
        if a.cell.rank == 3:
            virial = 0.5 * gradient.T @ vector
            self.results["stress"] = full_3x3_to_voigt_6_stress(virial / a.get_volume())

    def spoil(self, forces: np.ndarray) -> np.ndarray:
        """Where broken copies break it."""
        return forces


class FailingCalculator(PairCalculator):
    """Raises `error` at the n-th call."""

    def __init__(self, n: int, error: BaseException):
        super().__init__()
        self.n, self.error = n, error

    def spoil(self, forces: np.ndarray) -> np.ndarray:
        if self.calls >= self.n:
            raise self.error
        return forces


class BondedCalculator(ExactCalculator):
    """U = sum k (r - r0)^2 / 2 over bonds fixed once and for all: anharmonic, and fast enough to sample with."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, atoms: Atoms, reach: float = 4.2, k: float = 0.3, r0: float = 3.7):
        super().__init__()
        i, j, shift = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, reach)
        self.bonds = i, j, shift
        self.k, self.r0 = k, r0
        self.ends = np.zeros((len(atoms), len(i)))
        np.add.at(self.ends, (i, np.arange(len(i))), 1.0)

    def calculate(self, atoms: Atoms | None = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        i, j, shift = self.bonds
        cell = self.atoms.cell.array
        vector = self.atoms.positions[j] - self.atoms.positions[i] + shift @ cell
        r = np.sqrt((vector * vector).sum(axis=1))
        energy = 0.25 * self.k * float(np.sum((r - self.r0) ** 2))  # every bond is there twice
        gradient = (self.k * (r - self.r0) / r)[:, None] * vector
        virial = 0.5 * gradient.T @ vector
        stress = full_3x3_to_voigt_6_stress(virial / abs(np.linalg.det(cell)))
        self.results = {"energy": energy, "free_energy": energy, "forces": self.ends @ gradient, "stress": stress}


class SwirlCalculator(PairCalculator):
    """Adds F_i = w z x (r_i - r_i0), which has a curl: an atom that circles its site one way is driven ever faster."""

    def __init__(self, sites: np.ndarray, strength: float = 0.005):
        super().__init__()
        self.sites, self.strength = sites, strength

    def spoil(self, forces: np.ndarray) -> np.ndarray:
        assert self.atoms is not None
        u = self.atoms.positions - self.sites
        u -= u.mean(axis=0)  # no net force
        return forces + self.strength * np.stack([-u[:, 1], u[:, 0], 0.0 * u[:, 2]], axis=1)


class RoundedCalculator(PairCalculator):
    """Forces rounded to `grid` (eV/A): random kicks, as from too little precision."""

    grid = 0.004

    def spoil(self, forces: np.ndarray) -> np.ndarray:
        return np.round(forces / self.grid) * self.grid


class ExplodingCalculator(PairCalculator):
    """NaN forces on atom 3 from the n-th call on."""

    def __init__(self, n: int):
        super().__init__()
        self.n = n

    def spoil(self, forces: np.ndarray) -> np.ndarray:
        if self.calls >= self.n:
            forces[3] = np.nan
        return forces


def argon(n: int = 2, pbc: bool = True) -> Atoms:
    """A small fcc crystal, slightly disordered."""
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True).repeat(n)
    atoms.positions += np.random.default_rng(5).normal(0.0, 0.05, atoms.positions.shape)
    atoms.pbc = pbc
    return atoms
