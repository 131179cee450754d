"""Water at constant pressure in OpenMM: its density, with an error bar.

    python examples/openmm/density.py --duration 50

The same command continues from checkpoint.chk to the total duration. After a kill the rows since the checkpoint are
there twice, as always in OpenMM; `dpsim run` with `engine: openmm` is exact.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import openmm
from ase.io import read
from openmm import app, unit

from dpsim.analysis.statistics import format_value, mean_with_error
from dpsim.calculators.openmm_force import openmm_force

WATER = Path(__file__).parents[1] / "water" / "water.extxyz"
TIMESTEP_PS = 0.0005
ROW_STEPS = 20


def main() -> None:
    """Simulate and average."""
    options = parsed_options()
    folder = Path(options.directory)
    folder.mkdir(parents=True, exist_ok=True)
    simulation = prepared(options, folder)
    simulation.step(max(0, round(options.duration / TIMESTEP_PS) - simulation.currentStep))
    simulation.saveCheckpoint(str(folder / "checkpoint.chk"))
    density = np.loadtxt(folder / "density.csv", delimiter=",", skiprows=1, usecols=2)
    mean = mean_with_error(density[round(options.skip / TIMESTEP_PS) // ROW_STEPS :])
    print(f"density at {options.temperature:g} K and 1 bar: {format_value(mean.value, mean.error)} g/cm^3")


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="water-pbe0ts-student", help="name of a bundled model, or a .dpsim file")
    parser.add_argument("--temperature", type=float, default=330.0, help="K")
    parser.add_argument("--duration", type=float, default=50.0, help="ps, in total")
    parser.add_argument("--skip", type=float, default=10.0, help="ps at the beginning that are left out")
    parser.add_argument("--structure", default=WATER, help="any periodic structure that ASE reads")
    parser.add_argument("--directory", default="density")
    return parser.parse_args()


def prepared(options: argparse.Namespace, folder: Path) -> app.Simulation:
    """A simulation at its start, or at its checkpoint."""
    atoms = read(options.structure)
    topology = app.Topology()
    residue = topology.addResidue("SYS", topology.addChain())
    for symbol in atoms.get_chemical_symbols():
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    topology.setPeriodicBoxVectors(atoms.cell.array * unit.angstrom)

    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
    system.addForce(openmm_force(topology, options.model))
    # Nothing but the model holds atoms together, so the barostat moves each of them: small moves, made often.
    system.addForce(openmm.MonteCarloBarostat(1.0 * unit.bar, options.temperature * unit.kelvin, 10))
    integrator = openmm.LangevinMiddleIntegrator(options.temperature, 5.0, TIMESTEP_PS)
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("CPU"))

    checkpoint = folder / "checkpoint.chk"
    if checkpoint.exists():
        simulation.loadCheckpoint(str(checkpoint))
    else:
        simulation.context.setPositions(atoms.positions * unit.angstrom)
        simulation.context.setVelocitiesToTemperature(options.temperature)
    append = checkpoint.exists()
    simulation.reporters = [
        app.StateDataReporter(
            str(folder / "density.csv"), ROW_STEPS, step=True, temperature=True, density=True, append=append
        ),
        app.DCDReporter(str(folder / "trajectory.dcd"), 10 * ROW_STEPS, append=append),
        app.CheckpointReporter(str(checkpoint), 100 * ROW_STEPS),
    ]
    return simulation


if __name__ == "__main__":
    main()
