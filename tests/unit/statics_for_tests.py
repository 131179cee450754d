"""Calculators, crystals and runs for the tests of the static protocols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT
from ase.io import write
from ase.stress import full_3x3_to_voigt_6_stress

from dpsim.analysis.report import Result, read_results_json
from dpsim.config import validate
from dpsim.neighbors import neighbor_list
from dpsim.protocols.registry import config_class
from dpsim.protocols.rundir import RunOutcome
from dpsim.protocols.static import GPA, Static, run_protocol
from pair_calculators import ExactCalculator

FORMS = ("birch-murnaghan", "vinet")
EPSILON, SIGMA, RC = 0.0104, 3.4, 8.2  # argon; energies shifted to zero at the cutoff
CRYSTALS = {
    "cu": bulk("Cu", cubic=True),
    "cu1": bulk("Cu"),
    "bcc": bulk("Cu", "bcc", a=2.87, cubic=True),
    "lj": bulk("Ar", "fcc", a=5.25),
}


class LennardJones(ExactCalculator):
    """Pairs 4 eps [(s/r)^12 - (s/r)^6] - u(rc), r < rc. Counts its evaluations."""

    implemented_properties = ["energy", "forces", "stress"]
    evaluations = 0

    def calculate(
        self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = tuple(all_changes)
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        LennardJones.evaluations += 1
        a = self.atoms
        i, j, shift = neighbor_list(a.positions, a.cell.array, a.pbc, RC)
        d = a.positions[j] - a.positions[i] + shift @ a.cell.array
        r = np.linalg.norm(d, axis=1)
        s6 = (SIGMA / r) ** 6
        cut = (SIGMA / RC) ** 6
        gradient = (4.0 * EPSILON * (-12.0 * s6**2 + 6.0 * s6) / r**2)[:, None] * d  # dU/dr, along d
        forces = np.zeros((len(a), 3))
        np.add.at(forces, i, gradient)
        stress = 0.5 * np.einsum("ia,ib->ab", gradient, d) / a.get_volume()
        self.results = {
            "energy": 0.5 * float(np.sum(4.0 * EPSILON * (s6**2 - s6 - cut**2 + cut))),
            "forces": forces,
            "stress": full_3x3_to_voigt_6_stress(stress),
        }


@dataclass(frozen=True)
class Exact:
    """Of the static fcc crystal, by sums over the lattice: A^3/atom, eV/atom, GPa."""

    volume: float
    energy: float
    bulk_GPa: float
    c11_GPa: float
    c12_GPa: float
    c44_GPa: float


def lj_energy() -> Exact:
    """Pair sums at the volume of zero pressure.

    Central forces at zero stress: C_abcd = (1/2V) sum_r (u'' - u'/r) r_a r_b r_c r_d / r^2.
    """
    n = np.array([x for x in product(range(-4, 5), repeat=3) if sum(x) % 2 == 0 and any(x)], dtype=float) / 2.0

    def shells(a: float) -> np.ndarray:
        d = a * n
        return d[np.linalg.norm(d, axis=1) < RC]

    def pressure(a: float) -> float:
        r = np.linalg.norm(shells(a), axis=1)
        s6 = (SIGMA / r) ** 6
        return float(np.sum(4.0 * EPSILON * (-12.0 * s6**2 + 6.0 * s6)))

    from scipy.optimize import brentq

    a = brentq(pressure, 5.2, 5.3, xtol=1e-13)
    d = shells(a)
    r = np.linalg.norm(d, axis=1)
    s6, cut = (SIGMA / r) ** 6, (SIGMA / RC) ** 6
    first, second = 4 * EPSILON * (-12 * s6**2 + 6 * s6) / r, 4 * EPSILON * (156 * s6**2 - 42 * s6) / r**2
    volume = a**3 / 4.0

    def c(i: int, j: int, k: int, m: int) -> float:
        return GPA * float(np.sum((second - first / r) * d[:, i] * d[:, j] * d[:, k] * d[:, m] / r**2)) / (2 * volume)

    c11, c12 = c(0, 0, 0, 0), c(0, 0, 1, 1)
    energy = 0.5 * float(np.sum(4 * EPSILON * (s6**2 - s6 - cut**2 + cut)))
    return Exact(volume, energy, (c11 + 2 * c12) / 3, c11, c12, c(1, 2, 1, 2))


def calculator_for(protocol: Any, precision: Any) -> Any:
    """EMT for copper, Lennard-Jones for argon."""
    return LennardJones() if "lj" in str(protocol.structure.file) else EMT()


def structure(folder: Path, name: str) -> str:
    """The file of a crystal."""
    path = folder / f"{name}.extxyz"
    write(path, CRYSTALS[name])
    return str(path)


def config(folder: Path, protocol: str, crystal: str, **keys: Any) -> Static:
    """A protocol of a crystal."""
    data = {"name": "x", "protocol": protocol, "structure": structure(folder, crystal), "model": "none"}
    found = validate(data | keys, config_class(protocol))
    assert isinstance(found, Static)
    return found


def run_static(
    folder: Path, protocol: str, crystal: str, calculator: Any = calculator_for, **keys: Any
) -> tuple[RunOutcome, Mapping[str, Result]]:
    """Run it in `folder`/run; the outcome, and its results by name."""
    outcome = run_protocol(config(folder, protocol, crystal, **keys), folder / "run", calculator)
    if outcome.results is None:
        return outcome, {}
    return outcome, {r.name: r for r in read_results_json(outcome.results)["results"]}
