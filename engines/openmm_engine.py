"""The OpenMM engine: OpenMM moves the atoms, with exact restarts.

| stage | OpenMM | conserved |
|---|---|---|
| minimise | FIRE, as in the ASE engine: OpenMM's minimiser keeps nothing to continue from | - |
| nve | VerletIntegrator | E |
| nvt, langevin | LangevinMiddleIntegrator, which is BAOAB | E - heat taken from the bath |
| nvt, bussi | VerletIntegrator; stochastic velocity rescaling between steps | E - heat taken from the thermostat |
| npt | as bussi; Monte Carlo moves of the cell between steps | E - heat - energy of the accepted moves |

Both integrators are leapfrogs that keep velocities half a step behind: v(t) = v(t - dt/2) + dt f(t) / 2m gives those
of the positions. Velocity rescaling and the barostat act on v(t), and velocities half a step behind are set anew.

A restart point is OpenMM's own checkpoint, random numbers included, and the last forces. OpenMM's barostats keep their
counters and random numbers out of it, so the same moves are made here. Forces come from Python, so OpenMM is left with
a few passes over the atoms, in double precision and in a fixed order: its platform Reference.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from dpsim.engines.ase_engine import AseEngine
from dpsim.engines.base import Array, Engine, RunControl, StageResult, StageSettings, State
from dpsim.engines.last_forces import Evaluated, LastForces
from dpsim.engines.monte_carlo_barostat import MonteCarloBarostat
from dpsim.engines.output import Checkpoint
from dpsim.engines.stage_run import Memory, StageRun
from dpsim.errors import ConfigError, MissingDependencyError
from dpsim.trajectory import PS_PER_ASE_TIME
from dpsim.units import ASE_TIME_FS, BOLTZMANN_EV_PER_K, factor

try:
    import openmm
except ImportError as error:
    raise MissingDependencyError("openmm", "openmm", "The OpenMM engine") from error

_A_PER_NM = float(factor("nm", "A"))
_ENERGY = float(factor("eV", "amu nm^2/ps^2"))  # OpenMM's unit of energy: kJ/mol but for 3e-10
_MOVES_PER_DAMPING = 40  # Monte Carlo moves of the cell in one `pressure_damping`


class OpenmmEngine(Engine):
    """Runs stages with OpenMM; `calculator` is an ASE calculator."""

    name = "openmm"
    kinds = frozenset(("minimise", "nve", "nvt", "npt"))

    def run_stage(
        self, state: State, calculator: Any, stage: StageSettings, directory: Path, control: RunControl
    ) -> StageResult:
        """As documented in Engine."""
        self.require(stage, state)
        if stage.kind == "minimise":
            return AseEngine().run_stage(state, calculator, stage, directory, control)
        return _OpenmmRun(state, calculator, stage, directory, control).to_the_end()


class _OpenmmRun(StageRun):
    """One stage of dynamics under way.

    taken: energy that thermostat and barostat have put in, eV.
    """

    def prepare(self, saved: Checkpoint | None) -> None:
        stage, start = self.stage, self.start
        self.taken = 0.0
        self._cell = start.cell.copy()
        self._half_kick = 0.5 * stage.timestep_fs / ASE_TIME_FS  # ASE time
        self._forces = LastForces(self.calculator, start)
        self._error: BaseException | None = None
        self._now: Evaluated | None = None  # the present structure, once it has been evaluated
        self._barostat = self._make_barostat() if stage.kind == "npt" else None
        self._barostat_every = 0
        if stage.kind == "npt":
            assert stage.barostat_damping_fs is not None
            self._barostat_every = max(1, round(stage.barostat_damping_fs / (_MOVES_PER_DAMPING * stage.timestep_fs)))
        self._context = self._make_context()
        if saved is None:
            self._place(start.positions / _A_PER_NM)
            self._set_momenta(start.momenta)
        else:
            self._restore(saved)

    def _make_context(self) -> openmm.Context:
        """A System whose one force is the calculator. Its cell is kept here: OpenMM only moves atoms."""
        system = openmm.System()
        for mass in self.start.masses:
            system.addParticle(float(mass))
        system.addForce(openmm.PythonForce(self._python_force))
        self._integrator = self._make_integrator()
        return openmm.Context(system, self._integrator, openmm.Platform.getPlatformByName("Reference"))

    def _make_integrator(self) -> openmm.Integrator:
        stage = self.stage
        timestep = stage.timestep_fs * 1e-3
        if stage.thermostat != "langevin":
            return openmm.VerletIntegrator(timestep)
        assert stage.temperature_K is not None
        assert stage.thermostat_damping_fs is not None
        integrator = openmm.LangevinMiddleIntegrator(stage.temperature_K, 1e3 / stage.thermostat_damping_fs, timestep)
        integrator.setRandomNumberSeed(int(self.random.integers(1, 2**31 - 1)))  # 0 would mean any
        return integrator

    def _make_barostat(self) -> MonteCarloBarostat:
        stage = self.stage
        assert stage.pressure_bar is not None
        assert stage.temperature_K is not None
        return MonteCarloBarostat(
            stage.cell_change or "isotropic", stage.pressure_bar, stage.temperature_K, self.freedom / 3.0
        )

    def _python_force(self, state: openmm.State) -> tuple[float, Array]:
        """What OpenMM calls: energy and forces in its units. It swallows all but the message of an error."""
        try:
            evaluated = self._at(state.getPositions(asNumpy=True)._value)
            return evaluated.energy * _ENERGY, evaluated.forces * (_ENERGY * _A_PER_NM)
        except BaseException as error:
            self._error = error
            raise

    def advance(self) -> None:
        stage = self.stage
        stop = self.next_stop() if stage.kind == "nve" else self.step + 1
        before = self._forward_momenta() if stage.thermostat == "langevin" else None
        self._now = None
        try:
            self._integrator.step(stop - self.step)
        except openmm.OpenMMException as error:
            raise self._error or error from None
        self.step = stop
        if before is not None:
            self.taken += self._kinetic(self._stored_momenta()) - self._kinetic(before)
        elif stage.kind != "nve":
            self._rescale_velocities()
        if self._barostat is not None and self.step % self._barostat_every == 0:
            self._change_cell(self._barostat)

    def _rescale_velocities(self) -> None:
        """G. Bussi, D. Donadio and M. Parrinello, J. Chem. Phys. 126, 014101 (2007), eq. A7."""
        stage = self.stage
        assert stage.temperature_K is not None
        assert stage.thermostat_damping_fs is not None
        momenta = self.momenta()
        kinetic = self._kinetic(momenta)
        c = math.exp(-stage.timestep_fs / stage.thermostat_damping_fs)
        share = 0.5 * BOLTZMANN_EV_PER_K * stage.temperature_K * (1.0 - c) / kinetic
        r = self.random.standard_normal()
        others = 2.0 * self.random.standard_gamma(0.5 * (self.freedom - 1)) if self.freedom > 1 else 0.0
        squared = c + share * (r * r + others) + 2.0 * r * math.sqrt(c * share)
        self._set_momenta(math.sqrt(squared) * momenta)
        self.taken += (squared - 1.0) * kinetic

    def _change_cell(self, barostat: MonteCarloBarostat) -> None:
        """One move of the barostat: momenta are kept, positions follow the cell."""
        momenta, now = self.momenta(), self._evaluated()
        trial = barostat.propose(now.positions, now.cell, self.random)
        positions_nm = trial.positions / _A_PER_NM
        then = self._forces.at(positions_nm * _A_PER_NM, trial.cell)
        if not barostat.accept(trial, then.energy - now.energy, self.random):
            self._forces.last = now
            return
        self._cell = trial.cell
        self._place(positions_nm)
        self._set_momenta(momenta)
        self.taken += then.energy - now.energy

    def _at(self, positions_nm: Array) -> Evaluated:
        return self._forces.at(positions_nm * _A_PER_NM, self._cell)

    def _evaluated(self) -> Evaluated:
        """What the calculator says of the present structure."""
        if self._now is None:
            self._now = self._at(self._positions_nm())
        return self._now

    def _positions_nm(self) -> Array:
        return self._context.getState(positions=True).getPositions(asNumpy=True)._value

    def _place(self, positions_nm: Array) -> None:
        self._context.setPositions(positions_nm)
        self._now = None

    def _stored_momenta(self) -> Array:
        """Half a step behind the positions."""
        velocities = self._context.getState(velocities=True).getVelocities(asNumpy=True)._value
        return velocities * (self.start.masses[:, None] * _A_PER_NM * PS_PER_ASE_TIME)

    def _forward_momenta(self) -> Array:
        """Half a step ahead of the positions."""
        return self._stored_momenta() + 2.0 * self._half_kick * self.forces()

    def _set_momenta(self, momenta: Array) -> None:
        """Set those that belong to the positions."""
        stored = momenta - self._half_kick * self.forces()
        self._context.setVelocities(stored * (self.inverse_mass / (_A_PER_NM * PS_PER_ASE_TIME)))

    def _kinetic(self, momenta: Array) -> float:
        return 0.5 * float(np.sum(momenta**2 * self.inverse_mass))

    def positions(self) -> Array:
        return self._positions_nm() * _A_PER_NM if self._now is None else self._now.positions

    def momenta(self) -> Array:
        return self._stored_momenta() + self._half_kick * self.forces()

    def cell(self) -> Array:
        return self._cell

    def potential_energy(self) -> float:
        return self._evaluated().energy

    def forces(self) -> Array:
        return self._evaluated().forces

    def static_pressure(self) -> float:
        return float(np.trace(self._evaluated().virial)) / (3.0 * abs(float(np.linalg.det(self._cell))))

    def conserved(self, total_energy: float) -> float:
        return total_energy - self.taken

    def memory(self) -> Memory:
        arrays = self._evaluated().arrays() | {
            "openmm": np.frombuffer(self._context.createCheckpoint(), dtype=np.uint8),
            "version": np.array(openmm.__version__),
            "taken": np.array(self.taken),
        }
        if self._barostat is not None:
            arrays["barostat"] = self._barostat.memory()
        return Memory(
            integrator=arrays, calculator=self.calculator_memory(), generator=dict(self.random.bit_generator.state)
        )

    def _restore(self, saved: Checkpoint) -> None:
        arrays = saved.integrator
        version = str(arrays["version"])
        if version != openmm.__version__:
            raise ConfigError(
                f"`{self.directory}` was begun with OpenMM {version}, and this is {openmm.__version__}; expected the "
                "same. Install that version, or delete the directory to start anew."
            )
        self._context.loadCheckpoint(arrays["openmm"].tobytes())
        self._cell = saved.state.cell.copy()
        self._forces.last = Evaluated.from_arrays(arrays)
        self.taken = float(arrays["taken"])
        if self._barostat is not None:
            self._barostat.recall(arrays["barostat"])
        if saved.generator is not None:
            self.random.bit_generator.state = saved.generator
