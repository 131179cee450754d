"""The i-PI engine: i-PI's classical dynamics (one bead) in this process, with exact restarts.

| stage | i-PI | conserved |
|---|---|---|
| minimise | FIRE, as in the ASE engine: i-PI's minimisers keep nothing to continue from | - |
| nve | velocity Verlet | E |
| nvt, bussi | `svr`: stochastic velocity rescaling | i-PI's `conserved` |
| nvt, langevin | `langevin`, BAOAB | i-PI's `conserved` |
| npt, isotropic | `svr`, and the barostat of Bussi, Zykova-Timan and Parrinello | i-PI's `conserved` |

i-PI is bound as it is for reading an input: with its integrators, thermostats and barostats, without its output files,
threads and signal handlers. Its isotropic dynamics asks of a cell no more than the volume, so it is handed a cube, and
the cell is kept here. A restart point is i-PI's positions, momenta, cell, random numbers and heat, bit by bit; i-PI's
own RESTART is rounded.
"""

from __future__ import annotations

import contextlib
import io
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsim.calculators.ipi_driver import BOHR, HARTREE
from dpsim.engines.ase_engine import AseEngine
from dpsim.engines.base import Array, Engine, RunControl, StageResult, StageSettings, State
from dpsim.engines.last_forces import Evaluated, LastForces
from dpsim.engines.output import Checkpoint
from dpsim.engines.stage_run import Memory, StageRun
from dpsim.errors import ConfigError, MissingDependencyError
from dpsim.units import ASE_TIME_FS, BOLTZMANN_EV_PER_K, EV_PER_A3_IN_BAR

try:
    from ipi.engine.simulation import Simulation
    from ipi.utils.depend import dstrip
except ImportError as error:
    raise MissingDependencyError("ipi", "ipi", "The i-PI engine") from error

_MASS = 9.1093837015e-31 / 1.66053906660e-27
"""The electron's mass, i-PI's unit, in amu (CODATA 2018)."""
_MOMENTUM = math.sqrt(_MASS * HARTREE)
"""i-PI's unit of momentum in amu A per ASE time."""
_TIME_FS = math.sqrt(_MASS / HARTREE) * BOHR * ASE_TIME_FS
"""i-PI's unit of time in fs."""
_PRESSURE = HARTREE / BOHR**3
"""i-PI's unit of pressure in eV/A^3."""
_OPEN_EDGE = 1e4  # bohr; of the cube that i-PI is handed where there is no cell

_INPUT = """
<simulation verbosity='quiet'>
  <prng><seed>{seed}</seed></prng>
  <ffdirect name='dpsim'><pes>dummy</pes><batch_size>{beads}</batch_size></ffdirect>
  <system>
    <beads natoms='{n}' nbeads='{beads}'>
      <q shape='({beads}, {n3})'>{zeros}</q> <m shape='({n})'>{masses}</m> <names shape='({n})'>{names}</names>
    </beads>
    <cell shape='(3, 3)'>[{edge!r}, 0, 0, 0, {edge!r}, 0, 0, 0, {edge!r}]</cell>
    <forces><force forcefield='dpsim'/></forces>
    <ensemble>{ensemble}</ensemble>
    <motion mode='dynamics'><fixcom>{fixcom}</fixcom>{dynamics}</motion>
  </system>
</simulation>
"""


class IpiEngine(Engine):
    """Runs stages with i-PI; `calculator` is an ASE calculator."""

    name = "ipi"
    kinds = frozenset(("minimise", "nve", "nvt", "npt"))

    def require(self, stage: StageSettings, state: State) -> None:
        """As documented in Engine."""
        super().require(stage, state)
        if stage.kind == "npt" and stage.cell_change != "isotropic":
            raise ConfigError(
                f"`cell` is {stage.cell_change}; expected isotropic with the engine ipi, whose other barostats need a "
                "reference cell. Use another engine."
            )

    def run_stage(
        self, state: State, calculator: Any, stage: StageSettings, directory: Path, control: RunControl
    ) -> StageResult:
        """As documented in Engine."""
        self.require(stage, state)
        if stage.kind == "minimise":
            return AseEngine().run_stage(state, calculator, stage, directory, control)
        return IpiRun(state, calculator, stage, directory, control).to_the_end()


class IpiRun(StageRun):
    """One stage of dynamics under way. n_beads: of each atom; the state then holds bead after bead."""

    n_beads = 1

    @cached_property
    def _forces(self) -> LastForces:
        return LastForces(self.calculator, self.start)

    def prepare(self, saved: Checkpoint | None) -> None:
        start = self.start
        self._edge = abs(float(np.linalg.det(start.cell))) ** (1.0 / 3.0) / BOHR if start.has_volume else _OPEN_EDGE
        self._cell = start.cell.copy()  # at `_edge`
        if saved is not None:
            self._edge = float(saved.integrator["edge"])
            self._cell = saved.integrator["start_cell"].copy()
        self._simulation = _quietly_bound(self._input())
        self._simulation.fflist["dpsim"].driver = self.driver
        self._system = self._simulation.syslist[0]
        if saved is None:
            self._system.beads.q = start.positions.reshape(self.n_beads, -1) / BOHR
            self._system.beads.p = start.momenta.reshape(self.n_beads, -1) / _MOMENTUM
        else:
            self._restore(saved)

    def _input(self) -> str:
        """The stage as an input of i-PI, in atomic units; positions and momenta come later."""
        stage, start, n = self.stage, self.start, self.start.n_atoms // self.n_beads
        ensemble = dynamics = ""
        if stage.kind != "nve":
            assert stage.temperature_K is not None
            ensemble = f"<temperature>{BOLTZMANN_EV_PER_K * stage.temperature_K / HARTREE!r}</temperature>"
            dynamics = self.thermostat()
        if stage.kind == "npt":
            assert stage.pressure_bar is not None
            assert stage.barostat_damping_fs is not None
            ensemble += f"<pressure>{stage.pressure_bar / EV_PER_A3_IN_BAR / _PRESSURE!r}</pressure>"
            damping = stage.barostat_damping_fs
            barostat = f"<tau>{damping / _TIME_FS!r}</tau>{thermostat_input('langevin', damping)}"
            dynamics += f"<barostat mode='isotropic'>{barostat}</barostat>"
        splitting = "baoab" if stage.thermostat == "langevin" else "obabo"
        timestep = f"<timestep>{stage.timestep_fs / _TIME_FS!r}</timestep>"
        return _INPUT.format(
            seed=int(self.random.integers(2**31)),
            beads=self.n_beads,
            n=n,
            n3=3 * n,
            zeros=_listed(np.zeros(3 * start.n_atoms)),
            masses=_listed(start.masses[:n] / _MASS),
            names=_listed(["X"] * n),
            edge=self._edge,
            ensemble=ensemble,
            fixcom=stage.removes_drift and start.n_atoms > 1,
            dynamics=f"<dynamics mode='{stage.kind}' splitting='{splitting}'>{timestep}{dynamics}</dynamics>",
        )

    def thermostat(self) -> str:
        """The thermostat in i-PI's input."""
        assert self.stage.thermostat_damping_fs is not None
        mode = "langevin" if self.stage.thermostat == "langevin" else "svr"
        return thermostat_input(mode, self.stage.thermostat_damping_fs)

    def driver(self, cell: Array, positions: Array) -> tuple[float, Array, Array, str]:
        """What i-PI calls for energy, forces and virial in its units."""
        found = self._forces.at(positions * BOHR, self._cell * (float(cell[0, 0]) / self._edge))
        virial = np.nan_to_num(found.virial) / HARTREE  # NaN where there is none: then nothing asks for it
        return found.energy / HARTREE, found.forces * (BOHR / HARTREE), virial, ""

    def advance(self) -> None:
        stop = self.next_stop()
        while self.step < stop:
            self._system.motion.step(self.step)
            self.step += 1

    def positions(self) -> Array:
        return dstrip(self._system.beads.q).reshape(-1, 3) * BOHR

    def momenta(self) -> Array:
        return dstrip(self._system.beads.p).reshape(-1, 3) * _MOMENTUM

    def cell(self) -> Array:
        return self._cell * (float(self._system.cell.h[0, 0]) / self._edge)

    def _evaluated(self) -> Evaluated:
        return self._forces.at(self.positions(), self.cell())

    def potential_energy(self) -> float:
        return self._evaluated().energy

    def forces(self) -> Array:
        return self._evaluated().forces

    def static_pressure(self) -> float:
        found = self._evaluated()
        return float(np.trace(found.virial)) / (3.0 * abs(float(np.linalg.det(found.cell))))

    def conserved(self, total_energy: float) -> float:
        return total_energy if self.stage.kind == "nve" else float(self._system.ensemble.econs) * HARTREE

    def memory(self) -> Memory:
        system, dynamics = self._system, self._system.motion
        random = self._simulation.prng.state[0]["state"]
        arrays: dict[str, NDArray[Any]] = {
            "edge": np.array(self._edge),
            "start_cell": self._cell,
            "q": np.array(dstrip(system.beads.q)),
            "p": np.array(dstrip(system.beads.p)),
            "h": np.array(dstrip(system.cell.h)),
            "heat": np.array([system.ensemble.eens, *(bath.ethermo for bath in self.baths())]),
            "random_key": np.array(random["key"]),
            "random_position": np.array(random["pos"]),
        }
        if self.stage.kind == "npt":
            arrays["barostat"] = np.array(dstrip(dynamics.barostat.p))
        return Memory(integrator=arrays | self.last_forces(), calculator=self.calculator_memory())

    def baths(self) -> list[Any]:
        """i-PI's thermostats that count heat."""
        dynamics = self._system.motion
        return [dynamics.thermostat, dynamics.barostat.thermostat]

    def last_forces(self) -> dict[str, NDArray[Any]]:
        """What was evaluated last, for a restart point."""
        return self._evaluated().arrays()

    def recall_forces(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Take it from there."""
        self._forces.last = Evaluated.from_arrays(arrays)

    def _restore(self, saved: Checkpoint) -> None:
        arrays, system = saved.integrator, self._system
        dynamics = system.motion
        self.recall_forces(arrays)
        system.beads.q, system.beads.p, system.cell.h = arrays["q"], arrays["p"], arrays["h"]
        system.ensemble.eens = float(arrays["heat"][0])
        for bath, heat in zip(self.baths(), arrays["heat"][1:], strict=True):
            bath.ethermo = float(heat)
        if "barostat" in arrays:
            dynamics.barostat.p = arrays["barostat"]
        state = {"key": arrays["random_key"], "pos": int(arrays["random_position"])}
        self._simulation.prng.state = [{"bit_generator": "MT19937", "state": state}]


def _quietly_bound(text: str) -> Simulation:
    """A Simulation without files, threads and signal handlers; what it prints while being made is about those."""
    with contextlib.redirect_stdout(io.StringIO()):
        return Simulation.load_from_xml(text, read_only=True)


def thermostat_input(mode: str, damping_fs: float, more: str = "") -> str:
    """A thermostat in i-PI's input."""
    return f"<thermostat mode='{mode}'><tau>{damping_fs / _TIME_FS!r}</tau>{more}</thermostat>"


def _listed(values: Any) -> str:
    return "[" + ", ".join(str(v) for v in values) + "]"
