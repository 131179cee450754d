"""The ASE engine: ASE's integrators, stepped one by one, with exact restarts.

Continuing from a checkpoint repeats the run bit by bit if the calculator's results are a function of the present
structure alone, or if it says what else they depend on (`Remembers`), as DPCalculator does. With other calculators
whose neighbour lists have a history, such as ASE's EMT, the order of summation may differ and trajectories part at
rounding.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from dpsim.engines.ase_integrators import Integrator, make_integrator
from dpsim.engines.base import (
    Array,
    Engine,
    Progress,
    Remembers,
    RunControl,
    StageResult,
    StageSettings,
    State,
    generator,
)
from dpsim.engines.output import (
    RESTART,
    Checkpoint,
    StageOutput,
    load_checkpoint,
    require_same_settings,
    stage_settings,
)
from dpsim.errors import MissingDependencyError, SimulationError
from dpsim.units import BOLTZMANN_EV_PER_K, EV_PER_A3_IN_BAR

try:
    from ase import Atoms
    from ase.calculators.calculator import PropertyNotImplementedError
    from ase.data import chemical_symbols
    from ase.io import write
except ImportError as error:
    raise MissingDependencyError("ase", "ase", "The ASE engine") from error

_REPORT_SECONDS = 0.2


class AseEngine(Engine):
    """Runs stages with ASE; `calculator` is an ASE calculator."""

    name = "ase"
    kinds = frozenset(("minimise", "nve", "nvt", "npt"))

    def run_stage(
        self, state: State, calculator: Any, stage: StageSettings, directory: Path, control: RunControl
    ) -> StageResult:
        """As documented in Engine."""
        self.require(stage, state)
        run = _StageRun(state, calculator, stage, directory, control)
        try:
            return run.to_the_end()
        finally:
            run.output.close()


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


class _StageRun:
    """One stage under way."""

    def __init__(self, state: State, calculator: Any, stage: StageSettings, directory: Path, control: RunControl):
        self.stage, self.control, self.directory = stage, control, directory
        self.settings = stage_settings(stage, control)
        saved = load_checkpoint(directory / RESTART)
        if saved is not None:
            require_same_settings(directory, saved.settings, self.settings, saved.step)
        self.random = generator(control.seed, f"{control.name}/thermostat")
        start = self._first_state(state) if saved is None else saved.state
        self.atoms = atoms_from_state(start)
        self.atoms.calc = self.calculator = calculator
        if isinstance(calculator, Remembers):
            calculator.recall({} if saved is None else saved.calculator)
        self.has_volume = start.has_volume
        self.has_stress = start.has_volume and "stress" in getattr(calculator, "implemented_properties", ())
        self.freedom = max(1, stage.degrees_of_freedom(len(self.atoms)))
        self.inverse_mass = 1.0 / start.masses[:, None]
        self.step = 0 if saved is None else saved.step
        self.finished = False if saved is None else saved.finished and saved.step == stage.n_steps
        self.saved_step = self.step
        self.wall_before = 0.0 if saved is None else saved.wall_seconds
        self.started = time.monotonic()
        self.first_step = self.step
        if saved is not None and saved.finished and stage.kind == "minimise":
            self.finished = True  # converged before its last step
        self.output = StageOutput(directory, [chemical_symbols[z] for z in start.numbers], start, saved)
        try:
            self.integrator = self._make_integrator(saved)
        except BaseException:
            self.output.close()
            raise

    def _first_state(self, state: State) -> State:
        """The state a stage begins with: at rest, with new velocities, or with those of the stage before."""
        stage = self.stage
        if stage.kind == "minimise":
            return State(**{**vars(state), "momenta": np.zeros_like(state.momenta)})
        temperature = stage.initial_temperature_K
        if temperature is None and stage.temperature_K is not None and not state.momenta.any():
            temperature = stage.temperature_K
        if temperature is not None:
            return state.with_velocities(temperature, generator(self.control.seed, f"{self.control.name}/velocities"))
        return state.without_drift() if stage.removes_drift else state

    def _make_integrator(self, saved: Checkpoint | None) -> Integrator:
        with _naming_the_step(self):
            integrator = make_integrator(self.atoms, self.stage, self.random)
        if saved is not None:
            integrator.restore(saved.integrator)
            if saved.generator is not None:
                self.random.bit_generator.state = saved.generator
            # ASE's thermostats may touch the momenta while being set up
            self.atoms.set_momenta(saved.state.momenta)
        return integrator

    def to_the_end(self) -> StageResult:
        """Step, check, write, save; until the total, convergence, or a request to stop."""
        if not self.finished and self.step == 0:
            with _naming_the_step(self):
                self._check()
                self._write()
            self.finished = self._converged()
            self._save()
        last_save = last_report = time.monotonic()
        while not self.finished and self.step < self.stage.n_steps:
            with _naming_the_step(self):
                self.integrator.step()
                self.step += 1
                self._check()
                self._write()
            self.finished = self._converged() or self.step == self.stage.n_steps
            stop = self.control.should_stop()
            now = time.monotonic()
            if self.finished or stop or now - last_save >= self.control.checkpoint_seconds:
                self._save()
                last_save = now
            if self.finished or now - last_report >= _REPORT_SECONDS:
                self.control.monitor(self._progress())
                last_report = now
            if stop:
                break
        return StageResult(self._state(), self.step, self.finished, self._wall_seconds(), self._ns_per_day())

    def _check(self) -> None:
        """Stop at NaN and at an exploding temperature, naming the atom."""
        momenta = self.atoms.arrays["momenta"]
        kinetic = 0.5 * momenta**2 * self.inverse_mass
        temperature = 2.0 * float(kinetic.sum()) / (self.freedom * BOLTZMANN_EV_PER_K)
        if temperature <= self.stage.max_temperature_K and np.isfinite(self.atoms.positions).all():
            return
        per_atom = np.nan_to_num(kinetic.sum(axis=1), nan=np.inf)
        atom = int(np.argmax(per_atom))
        what = "is not finite" if not np.isfinite(temperature) else f"is {temperature:.0f} K"
        raise SimulationError(
            f"`temperature` {what}; expected at most {self.stage.max_temperature_K:g} K. The fastest atom is "
            f"{self._atom(atom)}. Reduce the time step ({self.stage.timestep_fs:g} fs), minimise the structure first, "
            "or check that the model knows such structures."
        )

    def _atom(self, index: int) -> str:
        x, y, z = self.atoms.positions[index]
        return f"{chemical_symbols[self.atoms.numbers[index]]} atom {index} at ({x:.4g}, {y:.4g}, {z:.4g}) A"

    def _write(self) -> None:
        """The row and the frame of this step, where due."""
        stage = self.stage
        last = self.step == stage.n_steps and stage.kind == "minimise"
        if self.step % stage.thermo_every == 0 or last:
            self.output.row(self.step, self._time_ps(), *self._thermo())
        if self.step % stage.trajectory_every == 0 or last:
            self.output.frame(self.step, self._time_ps(), self._state(), self._forces())

    def _thermo(self) -> tuple[float, ...]:
        """The columns of thermo.csv after step and time."""
        potential = float(self.atoms.get_potential_energy())
        if not np.isfinite(potential):
            raise SimulationError(f"`potential energy` is {potential}; expected a finite number. Check the model.")
        kinetic = float(self.atoms.get_kinetic_energy())
        volume = float(self.atoms.get_volume()) if self.has_volume else float("nan")
        total = potential + kinetic
        return (
            potential,
            kinetic,
            total,
            self.integrator.conserved(total),
            2.0 * kinetic / (self.freedom * BOLTZMANN_EV_PER_K),
            self._pressure_bar(kinetic, volume),
            volume,
        )

    def _pressure_bar(self, kinetic: float, volume: float) -> float:
        """P = 2 K / 3 V - tr(stress)/3; NaN where the calculator gives no stress."""
        if not self.has_stress:
            return float("nan")
        try:
            stress = self.atoms.get_stress(voigt=True)
        except PropertyNotImplementedError:
            self.has_stress = False
            return float("nan")
        return (2.0 * kinetic / (3.0 * volume) - float(stress[:3].sum()) / 3.0) * EV_PER_A3_IN_BAR

    def _forces(self) -> Array:
        return np.asarray(self.atoms.get_forces(), dtype=np.float64)

    def _converged(self) -> bool:
        """Whether a minimisation has reached its force."""
        limit = self.stage.force_eV_per_A
        return limit is not None and float(np.linalg.norm(self._forces(), axis=1).max()) <= limit

    def _state(self) -> State:
        return state_from_atoms(self.atoms)

    def _time_ps(self) -> float:
        return 1e-3 * self.step * self.stage.timestep_fs

    def _save(self) -> None:
        self.output.save(
            Checkpoint(
                step=self.step,
                finished=self.finished,
                state=self._state(),
                settings=self.settings,
                integrator=self.integrator.state(),
                calculator=self.calculator.memory() if isinstance(self.calculator, Remembers) else {},
                generator=dict(self.random.bit_generator.state),
                wall_seconds=self._wall_seconds(),
            )
        )
        self.saved_step = self.step

    def _wall_seconds(self) -> float:
        return self.wall_before + time.monotonic() - self.started

    def _ns_per_day(self) -> float:
        done = (self.step - self.first_step) * self.stage.timestep_fs * 1e-6
        return done / max(time.monotonic() - self.started, 1e-9) * 86400.0

    def _progress(self) -> Progress:
        potential, kinetic = float(self.atoms.get_potential_energy()), float(self.atoms.get_kinetic_energy())
        elapsed = time.monotonic() - self.started
        per_step = elapsed / max(1, self.step - self.first_step)
        largest = None
        if self.stage.kind == "minimise":
            largest = float(np.linalg.norm(self._forces(), axis=1).max())
        return Progress(
            stage=self.control.name,
            kind=self.stage.kind,
            step=self.step,
            n_steps=self.stage.n_steps,
            time_ps=self._time_ps(),
            temperature_K=2.0 * kinetic / (self.freedom * BOLTZMANN_EV_PER_K),
            potential_energy_eV=potential,
            total_energy_eV=potential + kinetic,
            max_force_eV_per_A=largest,
            ns_per_day=self._ns_per_day(),
            seconds_left=0.0 if self.finished else per_step * (self.stage.n_steps - self.step),
        )


class _naming_the_step:
    """Adds stage, step and the last checkpoint to a SimulationError, and keeps the failing structure."""

    def __init__(self, run: _StageRun):
        self.run = run

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if not isinstance(error, SimulationError):
            return
        run = self.run
        path = run.directory / f"failed_step_{run.step}.extxyz"
        write(path, Atoms(run.atoms.numbers, run.atoms.positions, cell=run.atoms.cell, pbc=run.atoms.pbc))
        raise SimulationError(
            f"stage {run.control.name} failed after step {run.step} of {run.stage.n_steps}: {error} "
            f"The structure is in {path}; the last checkpoint, of step {run.saved_step}, is kept."
        ) from error
