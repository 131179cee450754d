"""Energy, forces and stress through an ASE calculator, dpsim's or the peer's: run by bench/inference.py.

Each step moves the atoms as dynamics does (at constant velocity, turning round before they get far), so neighbour
lists are updated and rebuilt at the rate they are in a simulation.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from ase import Atoms, units
from protocol import hear, memory_MiB, say, versions


def structure(spec: dict) -> Atoms:
    """Liquid water: one frame of the data, repeated."""
    folder = Path(spec["data"])
    positions = np.load(folder / "set.000/coord.npy")[0].reshape(-1, 3).astype(float)
    cell = np.load(folder / "set.000/box.npy")[0].reshape(3, 3).astype(float)
    symbols = np.array(["O", "H"])[np.loadtxt(folder / "type.raw", dtype=int)]
    return Atoms(symbols, positions, cell=cell, pbc=True).repeat(spec["repeat"])


def calculator(spec: dict):
    """The side's ASE calculator on the same weights, and the packages to report."""
    if spec["side"] == "dpsim":
        from dpsim.calculators.ase_calculator import DPCalculator

        return DPCalculator(spec["model"], precision=spec["precision"]), ("torch", "numpy", "ase")
    from deepmd.calculator import DP

    return DP(spec["model"]), ("deepmd-kit", "torch", "numpy", "ase")


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    atoms = structure(spec)
    atoms.calc, packages = calculator(spec)
    rng = np.random.default_rng(0)
    speed = np.sqrt(units.kB * 330 / atoms.get_masses())[:, None]
    velocity = rng.normal(size=(len(atoms), 3)) * speed * 0.5 * units.fs  # A per step
    start, phase = atoms.positions.copy(), 0
    import torch

    after_import = memory_MiB()["VmRSS"]
    numbers = {
        "energy": atoms.get_potential_energy() / len(atoms),
        "forces": atoms.get_forces().tolist(),
        "stress": atoms.get_stress().tolist(),
    }

    say(
        {
            "versions": versions(*packages),
            "threads": torch.get_num_threads(),
            "n_atoms": len(atoms),
            "numbers": numbers,
            "after_import_MiB": after_import,
        }
    )
    while (message := hear())["do"] != "quit":
        ms = []
        for _step in range(message["steps"]):
            phase += 1
            reach = phase % 80  # out for 40 steps of 0.5 fs, and back
            atoms.positions = start + velocity * min(reach, 80 - reach)
            begin = time.perf_counter()
            atoms.calc.calculate(atoms, ["energy", "forces", "stress"])
            ms.append(1000 * (time.perf_counter() - begin))
        say({"ms": ms})
    say(memory_MiB())


if __name__ == "__main__":
    main()
