"""The ASE engine: ASE's integrators, stepped one by one, with exact restarts.

Continuing from a checkpoint repeats the run bit by bit if the calculator's results are a function of the present
structure alone, or if it says what else they depend on (`Remembers`), as DPCalculator does. With other calculators
whose neighbour lists have a history, such as ASE's EMT, the order of summation may differ and trajectories part at
rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dpsim.engines.ase_integrators import Integrator, make_integrator
from dpsim.engines.base import Array, Engine, RunControl, StageResult, StageSettings, State
from dpsim.engines.output import Checkpoint
from dpsim.engines.stage_run import Memory, StageRun
from dpsim.errors import MissingDependencyError

try:
    from ase import Atoms
    from ase.calculators.calculator import PropertyNotImplementedError
except ImportError as error:
    raise MissingDependencyError("ase", "ase", "The ASE engine") from error


class AseEngine(Engine):
    """Runs stages with ASE; `calculator` is an ASE calculator."""

    name = "ase"
    kinds = frozenset(("minimise", "nve", "nvt", "npt"))

    def run_stage(
        self, state: State, calculator: Any, stage: StageSettings, directory: Path, control: RunControl
    ) -> StageResult:
        """As documented in Engine."""
        self.require(stage, state)
        return _AseRun(state, calculator, stage, directory, control).to_the_end()


def state_from_atoms(atoms: Atoms) -> State:
    """The plain numbers of an Atoms object; momenta are zero if it has none."""
    return State(
        numbers=atoms.numbers.astype(np.int64),
        masses=atoms.get_masses().astype(np.float64),
        positions=atoms.positions.astype(np.float64),
        momenta=atoms.get_momenta().astype(np.float64),
        cell=np.array(atoms.cell.array, dtype=np.float64),
        pbc=np.array(atoms.pbc, dtype=bool),
    )


def atoms_from_state(state: State) -> Atoms:
    """An Atoms object with these numbers, masses, positions, momenta, cell and pbc."""
    return Atoms(
        numbers=state.numbers,
        masses=state.masses,
        positions=state.positions.copy(),
        momenta=state.momenta.copy(),
        cell=state.cell.copy(),
        pbc=state.pbc,
    )


class _AseRun(StageRun):
    """One stage under way."""

    integrator: Integrator

    def prepare(self, saved: Checkpoint | None) -> None:
        self.atoms = atoms_from_state(self.start)
        self.atoms.calc = self.calculator
        self.has_stress = "stress" in getattr(self.calculator, "implemented_properties", ())
        self.integrator = make_integrator(self.atoms, self.stage, self.random)
        if saved is not None:
            self.integrator.restore(saved.integrator)
            if saved.generator is not None:
                self.random.bit_generator.state = saved.generator
            # ASE's thermostats may touch the momenta while being set up
            self.atoms.set_momenta(saved.state.momenta)

    def advance(self) -> None:
        self.integrator.step()
        self.step += 1

    def positions(self) -> Array:
        return self.atoms.positions

    def momenta(self) -> Array:
        return self.atoms.arrays["momenta"]

    def cell(self) -> Array:
        return self.atoms.cell.array

    def potential_energy(self) -> float:
        return float(self.atoms.get_potential_energy())

    def forces(self) -> Array:
        return np.asarray(self.atoms.get_forces(), dtype=np.float64)

    def static_pressure(self) -> float:
        if self.has_stress:
            try:
                return -float(self.atoms.get_stress(voigt=True)[:3].sum()) / 3.0
            except PropertyNotImplementedError:
                self.has_stress = False
        return float("nan")

    def conserved(self, total_energy: float) -> float:
        return self.integrator.conserved(total_energy)

    def memory(self) -> Memory:
        return Memory(
            integrator=self.integrator.state(),
            calculator=self.calculator_memory(),
            generator=dict(self.random.bit_generator.state),
        )
