"""Step 2 of 3: the unit cells that the scans start from, relaxed with the model; nothing is taken from elsewhere.

    python make_structures.py student.dpsim

writes tetragonal.extxyz (P4mm, 5 atoms, no stress), cubic.extxyz (Pm-3m, no stress) and frozen.extxyz (tetragonal atoms
in a cell of the shape that the AIMD of the data kept, c/a = 1.0931, at the relaxed volume).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.io import write
from ase.optimize import BFGS

from dpsim import DPCalculator

SITES = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]  # Pb Ti O3
AIMD_C_OVER_A = 1.0931
HERE = Path(__file__).parent


def crystal(c_over_a: float, polar: float, volume: float = 62.0) -> Atoms:
    """A cell of that volume, A^3, with its cations displaced along c by `polar`, in units of c."""
    a = (volume / c_over_a) ** (1.0 / 3.0)
    sites = np.array(SITES)
    sites[:2, 2] += [polar, 0.6 * polar]
    return Atoms("PbTiO3", scaled_positions=sites, cell=[a, a, c_over_a * a], pbc=True)


def relax(atoms: Atoms, model: str, mask: list[bool] | None = None) -> Atoms:
    """No forces; and no stress in the components of the mask (xx yy zz yz xz xy)."""
    atoms.calc = DPCalculator(model, precision="float64")
    BFGS(atoms if mask is None else FrechetCellFilter(atoms, mask=mask), logfile=None).run(fmax=1e-3, steps=400)
    return atoms


def main(model: str) -> None:
    tetragonal = relax(crystal(1.06, 0.06), model, [True] * 3 + [False] * 3)
    cubic = relax(crystal(1.0, 0.0), model, [True] * 3 + [False] * 3)
    frozen = relax(crystal(AIMD_C_OVER_A, 0.06, tetragonal.get_volume()), model)
    for name, atoms in (("tetragonal", tetragonal), ("cubic", cubic), ("frozen", frozen)):
        a, _, c = atoms.cell.lengths()
        energy = atoms.get_potential_energy() - cubic.get_potential_energy()
        print(
            f"{name:10s} a {a:.4f}  c {c:.4f} A  c/a {c / a:.4f}  V {a * a * c:.2f} A^3  E - E(cubic) {energy:.4f} eV"
        )
        plain = Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=True)
        write(HERE / f"{name}.extxyz", plain)


if __name__ == "__main__":
    main(sys.argv[1])
