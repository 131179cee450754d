"""One stage under way: the loop, the checks, the files and the restarts that all engines share.

An engine's subclass of `StageRun` integrates (`prepare`, `advance`) and answers what the present state is.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsim.engines.base import (
    Array,
    Progress,
    Remembers,
    RunControl,
    StageFailed,
    StageResult,
    StageSettings,
    State,
    generator,
)
from dpsim.engines.observer import Recorder
from dpsim.engines.output import (
    RESTART,
    Checkpoint,
    StageOutput,
    load_checkpoint,
    require_same_settings,
    stage_settings,
)
from dpsim.engines.safety import RunningDrift, Safety
from dpsim.errors import MissingDependencyError, SimulationError
from dpsim.units import BOLTZMANN_EV_PER_K, EV_PER_A3_IN_BAR

try:
    from ase import Atoms
    from ase.data import chemical_symbols
    from ase.io import write
except ImportError as error:
    raise MissingDependencyError("ase", "ase", "Every engine") from error

_REPORT_SECONDS = 0.2


@dataclass
class Memory:
    """What, besides the state, an engine needs to go on exactly; the fields of a Checkpoint."""

    integrator: dict[str, NDArray[Any]] = field(default_factory=dict)
    calculator: dict[str, NDArray[Any]] = field(default_factory=dict)
    generator: dict[str, Any] | None = None


class StageRun(ABC):
    """A stage from its start, or from its checkpoint, to its total number of steps.

    start: the state it begins or continues from; step: steps done; random: the stage's stream of random numbers.
    """

    def __init__(self, state: State, calculator: Any, stage: StageSettings, directory: Path, control: RunControl):
        self.stage, self.control, self.directory = stage, control, directory
        self.settings = stage_settings(stage, control)
        saved = load_checkpoint(directory / RESTART)
        if saved is not None:
            require_same_settings(directory, saved.settings, self.settings, saved.step)
        self.fresh = saved is None
        self.random = generator(control.seed, f"{control.name}/thermostat")
        self.calculator = calculator
        if isinstance(calculator, Remembers):
            calculator.recall({} if saved is None else saved.calculator)
        self.start = start = self._first_state(state) if saved is None else saved.state
        self.freedom = max(1, stage.degrees_of_freedom(start.n_atoms))
        self.inverse_mass = 1.0 / start.masses[:, None]
        self.safety, self.drift = Safety(stage, start), RunningDrift()
        self.step = self.first_step = self.saved_step = 0 if saved is None else saved.step
        self.finished = False if saved is None else saved.finished and saved.step == stage.n_steps
        self.ended_early = None if saved is None else saved.ended_early
        if self.ended_early or (saved is not None and saved.finished and stage.kind == "minimise"):
            self.finished = True  # by an observer, or converged before its last step
        self.wall_before = 0.0 if saved is None else saved.wall_seconds
        self.started = time.monotonic()
        self.output = self.open_output(saved)
        self.opened = ExitStack()  # closed at the end; `prepare` may add to it
        self.opened.callback(self.output.close)
        if self.finished:
            return
        try:
            for observer in self._recorders():
                observer.open(directory, None if saved is None else saved.records.get(observer.name))
                self.opened.callback(observer.close)
            with _naming_the_step(self):
                self.prepare(saved)
        except BaseException:
            self.opened.close()
            raise

    # ---- what an engine implements ---------------------------------------------------------------------------------

    @abstractmethod
    def prepare(self, saved: Checkpoint | None) -> None:
        """Make the integrator act on `start`, and give it back what a checkpoint says of it; if not yet finished."""

    @abstractmethod
    def advance(self) -> None:
        """Integrate to the next step that has to be seen (`next_stop` at most) and set `step`."""

    @abstractmethod
    def positions(self) -> Array:
        """(n_atoms, 3) A, unwrapped, at present."""

    @abstractmethod
    def momenta(self) -> Array:
        """(n_atoms, 3) amu A per ASE time, at present."""

    @abstractmethod
    def cell(self) -> Array:
        """(3, 3) A, rows are lattice vectors, at present."""

    @abstractmethod
    def potential_energy(self) -> float:
        """eV."""

    @abstractmethod
    def forces(self) -> Array:
        """(n_atoms, 3) eV/A."""

    @abstractmethod
    def static_pressure(self) -> float:
        """tr(virial)/3V, eV/A^3, NaN where there is none; asked for only if there is a volume."""

    @abstractmethod
    def conserved(self, total_energy: float) -> float:
        """The quantity that exact integration keeps constant, eV."""

    @abstractmethod
    def memory(self) -> Memory:
        """What a checkpoint of this moment must hold besides the state."""

    # ---- what an engine of more than one copy of the atoms has in another way ----------------------------------------

    def open_output(self, saved: Checkpoint | None) -> StageOutput:
        """The stage's files, for the atoms of `start`."""
        return StageOutput(self.directory, [chemical_symbols[z] for z in self.start.numbers], self.start, saved)

    def write_frame(self) -> None:
        """The present step in the trajectory."""
        self.output.frame(self.step, self._time_ps(), self.state(), self.forces())

    # ---- what all engines share ------------------------------------------------------------------------------------

    def next_stop(self) -> int:
        """The next step at which a row or a frame is due, or an observer is, or the stage ends."""
        observers = (observer.every for observer in self.control.observers)
        every = (self.stage.thermo_every, self.stage.trajectory_every, *observers)
        return min(self.stage.n_steps, *(n * (self.step // n + 1) for n in every))

    def to_the_end(self) -> StageResult:
        """Step, check, write, save; until the total, convergence, or a request to stop. Closes what was opened."""
        with self.opened:
            return self._to_the_end()

    def _to_the_end(self) -> StageResult:
        if self.finished:
            return StageResult(self.start, self.step, True, self.wall_before, 0.0, self.ended_early)
        if self.fresh:  # a checkpoint of step 0 holds what is written here
            self._see()
            self.finished = self.ended_early is not None or self._converged()
            self._save()
        last_save = last_report = time.monotonic()
        while not self.finished and self.step < self.stage.n_steps:
            with _naming_the_step(self):
                self.advance()
            self._see()
            self.finished = self.ended_early is not None or self._converged() or self.step == self.stage.n_steps
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
        speed = self._ns_per_day()
        return StageResult(self.state(), self.step, self.finished, self._wall_seconds(), speed, self.ended_early)

    def _see(self) -> None:
        """Check the present step, write what is due of it, and show it to the observers."""
        with _naming_the_step(self):
            self._check()
            self._write()
            due = [observer for observer in self.control.observers if self.step % observer.every == 0]
            reasons = [observer.observe(self.step, self.state()) for observer in due]
            self.ended_early = next((reason for reason in reasons if reason is not None), None)

    def _recorders(self) -> list[Recorder]:
        return [observer for observer in self.control.observers if isinstance(observer, Recorder)]

    def calculator_memory(self) -> dict[str, NDArray[Any]]:
        """What the calculator says its rounding depends on, {} if it says nothing."""
        return self.calculator.memory() if isinstance(self.calculator, Remembers) else {}

    def state(self) -> State:
        """The present state, in arrays of its own."""
        start = self.start
        return State(
            numbers=start.numbers,
            masses=start.masses,
            positions=np.array(self.positions(), dtype=np.float64),
            momenta=np.array(self.momenta(), dtype=np.float64),
            cell=np.array(self.cell(), dtype=np.float64),
            pbc=start.pbc,
        )

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

    def _check(self) -> None:
        """Stop at NaN and at an exploding temperature, naming the atom."""
        kinetic = 0.5 * self.momenta() ** 2 * self.inverse_mass
        self.safety.check_motion(self.step, self._temperature(float(kinetic.sum())), kinetic, self.positions())

    def _write(self) -> None:
        """The row and the frame of this step, where due."""
        stage = self.stage
        last = self.step == stage.n_steps and stage.kind == "minimise"
        if self.step % stage.thermo_every == 0 or last:
            self.output.row(self.step, self._time_ps(), *self._thermo())
        if self.step % stage.trajectory_every == 0 or last:
            self.write_frame()

    def _thermo(self) -> tuple[float, ...]:
        """The columns of thermo.csv after step and time: P = 2 K / 3 V + tr(virial) / 3 V."""
        potential = self.potential_energy()
        if not np.isfinite(potential):
            raise SimulationError(f"`potential energy` is {potential}; expected a finite number. Check the model.")
        kinetic = self._kinetic_energy()
        total = potential + kinetic
        volume = abs(float(np.linalg.det(self.cell()))) if self.start.has_volume else float("nan")
        self.safety.check_energy(total, volume)
        static = self.static_pressure() if self.start.has_volume else float("nan")
        pressure = (2.0 * kinetic / (3.0 * volume) + static) * EV_PER_A3_IN_BAR
        conserved = self.conserved(total)
        self.drift.add(self._time_ps(), conserved)
        return potential, kinetic, total, conserved, self._temperature(kinetic), pressure, volume

    def _kinetic_energy(self) -> float:
        return 0.5 * float(np.sum(self.momenta() ** 2 * self.inverse_mass))

    def _temperature(self, kinetic_energy: float) -> float:
        return 2.0 * kinetic_energy / (self.freedom * BOLTZMANN_EV_PER_K)

    def _converged(self) -> bool:
        """Whether a minimisation has reached its force."""
        limit = self.stage.force_eV_per_A
        return limit is not None and self._largest_force() <= limit

    def _largest_force(self) -> float:
        return float(np.linalg.norm(self.forces(), axis=1).max())

    def _time_ps(self) -> float:
        return 1e-3 * self.step * self.stage.timestep_fs

    def _save(self) -> None:
        self.output.save(
            Checkpoint(
                step=self.step,
                finished=self.finished,
                state=self.state(),
                settings=self.settings,
                wall_seconds=self._wall_seconds(),
                ended_early=self.ended_early,
                records={observer.name: observer.record() for observer in self._recorders()},
                **vars(self.memory()),
            )
        )
        self.saved_step = self.step

    def _wall_seconds(self) -> float:
        return self.wall_before + time.monotonic() - self.started

    def _ns_per_day(self) -> float:
        done = (self.step - self.first_step) * self.stage.timestep_fs * 1e-6
        return done / max(time.monotonic() - self.started, 1e-9) * 86400.0

    def _progress(self) -> Progress:
        potential, kinetic = self.potential_energy(), self._kinetic_energy()
        elapsed = time.monotonic() - self.started
        per_step = elapsed / max(1, self.step - self.first_step)
        return Progress(
            stage=self.control.name,
            kind=self.stage.kind,
            step=self.step,
            n_steps=self.stage.n_steps,
            time_ps=self._time_ps(),
            temperature_K=self._temperature(kinetic),
            potential_energy_eV=potential,
            total_energy_eV=potential + kinetic,
            max_force_eV_per_A=self._largest_force() if self.stage.kind == "minimise" else None,
            ns_per_day=self._ns_per_day(),
            seconds_left=0.0 if self.finished else per_step * (self.stage.n_steps - self.step),
            seconds_per_step=per_step,
            drift_meV_per_atom_ps=None if (slope := self.drift.slope) is None else 1e3 * slope / self.start.n_atoms,
        )


class _naming_the_step:
    """Adds stage, step and the last checkpoint to a SimulationError, and keeps the failing structure."""

    def __init__(self, run: StageRun):
        self.run = run

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if not isinstance(error, SimulationError):
            return
        run = self.run
        path = run.directory / f"failed_step_{run.step}.extxyz"
        failed = Atoms(run.start.numbers, run.positions(), cell=run.cell(), pbc=run.start.pbc)
        with suppress(SimulationError):  # an engine may need forces to tell them
            failed.set_momenta(run.momenta())
        write(path, failed)
        raise StageFailed(
            f"stage {run.control.name} failed after step {run.step} of {run.stage.n_steps}: {error} "
            f"The structure is in {path}, the frames before it in the trajectory; the last checkpoint, of step "
            f"{run.saved_step}, is kept.",
            run.step,
            path,
        ) from error
