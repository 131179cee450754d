"""Liquid Lennard-Jones through a protocol, from file to error bar: energy and pressure are the published ones.

Reference: NIST Standard Reference Simulation Website, Lennard-Jones fluid, NVT Monte Carlo at T* = 0.85, rho* = 0.82,
cutoff 3 sigma with the corrections for what lies beyond: U*/N = -5.7947, p* = 0.554. A run of 270 ps gave
-5.797 +- 0.003 and 0.525 +- 0.015; here 35 ps. Trajectories differ between machines, and errors have some ten degrees
of freedom: 4.5 of them are exceeded once in a thousand runs.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.io import write
from ase.stress import full_3x3_to_voigt_6_stress

from dpsim.config import validate
from dpsim.protocols.runner import run_protocol
from dpsim.protocols.schema import Protocol
from dpsim.units import BOLTZMANN_EV_PER_K, EV_PER_A3_IN_BAR

EPSILON, SIGMA, CUTOFF = 0.0104, 3.4, 3.0  # eV, A, sigma: argon
T, RHO = 0.85, 0.82  # in units of epsilon / k_B and sigma^-3
ENERGY, PRESSURE = -5.7947, 0.55355
# what lies beyond the cutoff, of a liquid that is uniform there
ENERGY_BEYOND = 8.0 / 3.0 * math.pi * RHO * (CUTOFF**-9 / 3.0 - CUTOFF**-3)
PRESSURE_BEYOND = 16.0 / 3.0 * math.pi * RHO**2 * (2.0 / 3.0 * CUTOFF**-9 - CUTOFF**-3)


class LennardJones(Calculator):
    """All pairs, minimum image, cut off and neither shifted nor smoothed, as in the reference."""

    implemented_properties = ["energy", "forces", "stress"]

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        length = self.atoms.cell.lengths() / SIGMA
        i, j = np.triu_indices(len(self.atoms), 1)
        x = self.atoms.positions / SIGMA
        d = x[i] - x[j]
        d -= length * np.round(d / length)
        r2 = np.einsum("ij,ij->i", d, d)
        near = np.flatnonzero(r2 < CUTOFF**2)
        i, j, d, r6 = i[near], j[near], d[near], r2[near] ** -3
        pull = (24.0 * (2.0 * r6 - 1.0) * r6 / r2[near])[:, None] * d
        forces = np.stack(
            [np.bincount(i, pull[:, k], len(x)) - np.bincount(j, pull[:, k], len(x)) for k in range(3)], 1
        )
        virial = -d.T @ pull / np.prod(length)
        self.results = {
            "energy": EPSILON * float(np.sum(4.0 * (r6 - 1.0) * r6)),
            "forces": EPSILON / SIGMA * forces,
            "stress": EPSILON / SIGMA**3 * full_3x3_to_voigt_6_stress(virial),
        }


@pytest.mark.slow
def test_energy_and_pressure_of_the_liquid(tmp_path: Path) -> None:
    atoms = bulk("Ar", "fcc", a=SIGMA * (4.0 / RHO) ** (1.0 / 3.0), cubic=True).repeat(4)
    write(tmp_path / "ar.extxyz", atoms)
    temperature = T * EPSILON / BOLTZMANN_EV_PER_K
    nvt = {"type": "nvt", "timestep": "10 fs", "damping": "200 fs"}
    protocol = validate(
        {
            "name": "lj",
            "structure": str(tmp_path / "ar.extxyz"),
            "stages": [
                nvt | {"name": "melt", "temperature": f"{3 * temperature!r} K", "duration": "3 ps"},
                nvt | {"name": "cool", "temperature": f"{temperature!r} K", "duration": "5 ps"},
                nvt | {"name": "liquid", "temperature": f"{temperature!r} K", "duration": "35 ps"},
            ],
            "analyses": [{"type": "averages"}],
        },
        Protocol,
    )
    run_protocol(protocol, tmp_path / "run", lambda p, precision: LennardJones())
    found = {r["name"]: r for r in json.loads((tmp_path / "run/results.json").read_text())["results"]}
    energy, pressure = found["liquid.averages.potential_energy"], found["liquid.averages.pressure"]
    reduced = energy["value"] / EPSILON + ENERGY_BEYOND, energy["error"] / EPSILON
    assert 0.001 < reduced[1] < 0.03
    assert reduced[0] == pytest.approx(ENERGY, abs=4.5 * reduced[1])
    unit = EPSILON / SIGMA**3 * EV_PER_A3_IN_BAR
    reduced = pressure["value"] / unit + PRESSURE_BEYOND, pressure["error"] / unit
    assert 0.005 < reduced[1] < 0.12
    assert reduced[0] == pytest.approx(PRESSURE, abs=4.5 * reduced[1])
