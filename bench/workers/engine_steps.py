"""Constant-energy dynamics of water in one engine, every call of the student timed: run by bench/engines.py.

    python engine_steps.py spec.json

Engines (`engine` of the specification):
  ase, ipi      dpsim's engine as a protocol runs it, with thermo.csv, trajectory and checks
  openmm        openmm_force in a System, stepped by OpenMM: what a user of OpenMM writes
  dpsim-openmm  dpsim's engine "openmm" as a protocol runs it

A step lasts from one call of the student to the next, so all that happens between is in it. The student's time is that
inside NativeStudent.compute, neighbour lists included.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from protocol import say, versions

TIMESTEP_FS, TEMPERATURE_K = 0.5, 330.0
THERMO_EVERY, TRAJECTORY_EVERY = 10, 20  # windows have multiples of 20 steps


class Stopwatch:
    """Beginnings and ends of all calls of the student, seconds."""

    def __init__(self):
        from dpsim.kernels.student import NativeStudent

        self.begins, self.ends = [], []
        compute = NativeStudent.compute

        def timed(student, *args, **kwargs):
            self.begins.append(time.perf_counter())
            try:
                return compute(student, *args, **kwargs)
            finally:
                self.ends.append(time.perf_counter())

        NativeStudent.compute = timed

    def result(self, warmup, steps):
        """Of the steps after the warm-up: ms of each, and of the student in each."""
        begins, ends = np.array(self.begins), np.array(self.ends)
        if not warmup + steps <= len(begins) - 1 <= warmup + steps + 2:  # a step that asks twice would be two steps
            raise SystemExit(f"{len(begins)} calls of the student in {warmup + steps} steps; expected one a step.")
        every = slice(warmup, warmup + steps)
        return {
            "ms": (1000 * np.diff(begins)[every]).tolist(),
            "model_ms": (1000 * (ends - begins)[every]).tolist(),
        }


def start_state(structure):
    """The replicated water of the driver, as an engine wants it."""
    from ase.io import read

    from dpsim.engines.ase_engine import state_from_atoms

    return state_from_atoms(read(structure))


def run_protocol_engine(spec, n_steps):
    """A constant-energy stage by one of dpsim's engines, with its files."""
    from dpsim.calculators.ase_calculator import DPCalculator
    from dpsim.engines.base import RunControl, StageSettings
    from dpsim.engines.registry import make_engine

    stage = StageSettings(
        kind="nve", n_steps=n_steps, timestep_fs=TIMESTEP_FS, initial_temperature_K=TEMPERATURE_K,
        thermo_every=THERMO_EVERY, trajectory_every=TRAJECTORY_EVERY,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        calculator = DPCalculator(spec["model"])
        engine = make_engine(spec["engine"].removeprefix("dpsim-"))
        engine.run_stage(start_state(spec["structure"]), calculator, stage, Path(name), RunControl(1, "speed"))
    return {}


def run_openmm(spec, n_steps):
    """OpenMM's leapfrog, on the platform that it chooses; energies read as often as thermo.csv has them."""
    import openmm
    from ase.data import chemical_symbols

    from dpsim.calculators.openmm_force import openmm_force

    state = start_state(spec["structure"])
    system = openmm.System()
    for mass in state.masses:
        system.addParticle(float(mass))
    system.setDefaultPeriodicBoxVectors(*(0.1 * state.cell))
    symbols = [chemical_symbols[z] for z in state.numbers]
    system.addForce(openmm_force(symbols, spec["model"], periodic=True))
    integrator = openmm.VerletIntegrator(1e-3 * TIMESTEP_FS)
    context = openmm.Context(system, integrator)
    context.setPositions(0.1 * state.positions)
    context.setVelocitiesToTemperature(TEMPERATURE_K, 1)
    for step in range(0, n_steps, THERMO_EVERY):
        integrator.step(min(THERMO_EVERY, n_steps - step))
        found = context.getState(energy=True, positions=(step + THERMO_EVERY) % TRAJECTORY_EVERY == 0)
        found.getPotentialEnergy(), found.getKineticEnergy()
    return {"platform": context.getPlatform().getName()}


def main():
    spec = json.loads(Path(sys.argv[1]).read_text())
    packages = {"ase": "ase", "ipi": "ipi"}.get(spec["engine"], "openmm")
    stopwatch = Stopwatch()
    run = run_openmm if spec["engine"] == "openmm" else run_protocol_engine
    # One step more than is timed: a step ends where the next call begins.
    info = run(spec, spec["warmup"] + spec["steps"] + 1)
    found = stopwatch.result(spec["warmup"], spec["steps"])
    say({**found, **info, "versions": versions(packages, "numpy")})


if __name__ == "__main__":
    main()
