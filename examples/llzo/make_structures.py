"""Step 2 of 4: the tetragonal crystal that the scans start from, relaxed with the model.

    python make_structures.py student.dpsim

writes tetragonal.extxyz: I4_1/acd, 192 atoms, no forces, no stress. Start: the sites of Awaka et al., J. Solid State
Chem. 182, 2046 (2009). A second relaxation, from displaced atoms, shows whether it is a minimum of the model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import spglib
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.io import write
from ase.optimize import LBFGS
from ase.spacegroup import crystal

from dpsim import DPCalculator

SYMBOLS = ["La", "La", "Zr", "Li", "Li", "Li", "O", "O", "O"]
SITES = [
    (0.0, 0.25, 0.125),
    (0.127, 0.0, 0.25),
    (0.0, 0.0, 0.0),
    (0.0, 0.25, 0.375),
    (0.1813, 0.4313, 0.125),
    (0.0796, 0.0867, 0.8099),
    (-0.0335, 0.0546, 0.1528),
    (0.0533, 0.8527, 0.5352),
    (0.1495, 0.0268, 0.4460),
]
EXPERIMENT = (13.134, 12.663)  # a, c in A
HERE = Path(__file__).parent


def relax(atoms: Atoms, model: str) -> Atoms:
    """No forces, no stress."""
    atoms.calc = DPCalculator(model, precision="float64")
    LBFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=2e-3, steps=500)
    return atoms


def describe(name: str, atoms: Atoms) -> None:
    """Lattice constants, volume, energy and space group of relaxed atoms on one line."""
    a, b, c = atoms.cell.lengths()
    cell = (atoms.cell[:], atoms.get_scaled_positions(), atoms.numbers)
    energy = atoms.get_potential_energy() / len(atoms)
    print(f"{name:10s} a {a:.3f} b {b:.3f} c {c:.3f} A  V {atoms.get_volume():.1f} A^3  {energy:.5f} eV/atom  ", end="")
    print(spglib.get_spacegroup(cell, symprec=0.05))


def main(model: str) -> None:
    a, c = EXPERIMENT
    start = crystal(SYMBOLS, basis=SITES, spacegroup=142, setting=2, cellpar=[a, a, c, 90, 90, 90])
    order = np.argsort([["Li", "La", "Zr", "O"].index(symbol) for symbol in start.symbols], kind="stable")
    atoms = relax(Atoms(start[order].symbols, start[order].positions, cell=start.cell, pbc=True), model)
    describe("tetragonal", atoms)
    write(HERE / "tetragonal.extxyz", Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True))
    displaced = atoms.copy()
    displaced.rattle(0.05, seed=1)
    describe("displaced", relax(displaced, model))


if __name__ == "__main__":
    main(sys.argv[1])
