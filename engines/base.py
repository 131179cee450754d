"""The contract every engine fulfils: a state and a stage in, the state after the stage out; all on disk on the way.

An engine is an adapter to a code that integrates equations of motion. It is handed plain numbers (`StageSettings`,
`State`), never a protocol, and writes what `engines.output` describes. Steps are totals: `run_stage` on a directory
that holds a checkpoint continues from it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dpsim.engines.observer import Observer
from dpsim.errors import ConfigError, SimulationError
from dpsim.units import BOLTZMANN_EV_PER_K

Array = NDArray[np.float64]
Kind = Literal["minimise", "nve", "nvt", "npt"]


@dataclass(frozen=True)
class StageSettings:
    """One stage in plain numbers; units are in the names, intervals and totals are steps.

    temperature_K: of the thermostat; initial_temperature_K: at which velocities are drawn (None: kept).
    cell_change: what the barostat may change. force_eV_per_A: where a minimisation ends.
    """

    kind: Kind
    n_steps: int
    timestep_fs: float = 0.0
    initial_temperature_K: float | None = None
    temperature_K: float | None = None
    thermostat: Literal["bussi", "langevin"] | None = None
    thermostat_damping_fs: float | None = None
    pressure_bar: float | None = None
    barostat_damping_fs: float | None = None
    cell_change: Literal["isotropic", "anisotropic", "triclinic"] | None = None
    force_eV_per_A: float | None = None
    trajectory_every: int = 1
    thermo_every: int = 1
    max_temperature_K: float = 10000.0

    @property
    def removes_drift(self) -> bool:
        """Whether the motion of the centre of mass is removed, being conserved: all dynamics but Langevin's."""
        return self.kind != "minimise" and self.thermostat != "langevin"

    def degrees_of_freedom(self, n_atoms: int) -> int:
        """3 n_atoms, less 3 where the total momentum is zero and stays zero."""
        return 3 * n_atoms - (3 if self.removes_drift and n_atoms > 1 else 0)


@dataclass(frozen=True)
class State:
    """Atoms in motion.

    numbers: (n_atoms,) atomic numbers; masses: (n_atoms,) amu; positions: (n_atoms, 3) A, unwrapped; momenta:
    (n_atoms, 3) amu A per ASE time; cell: (3, 3) A, rows are lattice vectors; pbc: (3,).
    """

    numbers: NDArray[np.int64]
    masses: Array
    positions: Array
    momenta: Array
    cell: Array
    pbc: NDArray[np.bool_]

    @property
    def n_atoms(self) -> int:
        return len(self.numbers)

    @property
    def has_volume(self) -> bool:
        """Whether there are three lattice vectors."""
        return bool(abs(np.linalg.det(self.cell)) > 1e-12)

    def kinetic_energy(self) -> float:
        """sum p^2 / 2m, eV."""
        return 0.5 * float(np.sum(self.momenta**2 / self.masses[:, None]))

    def with_velocities(self, temperature_K: float, generator: np.random.Generator) -> State:
        """Momenta drawn from the Maxwell-Boltzmann distribution p ~ N(0, sqrt(m k_B T)), total momentum removed."""
        width = np.sqrt(self.masses * BOLTZMANN_EV_PER_K * temperature_K)[:, None]
        return replace(self, momenta=width * generator.standard_normal((self.n_atoms, 3))).without_drift()

    def without_drift(self) -> State:
        """The same with zero total momentum (a single atom keeps its own)."""
        if self.n_atoms < 2:
            return self
        velocity = self.momenta.sum(axis=0) / self.masses.sum()
        return replace(self, momenta=self.momenta - self.masses[:, None] * velocity)


@dataclass(frozen=True)
class Progress:
    """Where a stage stands: temperature K, energies eV, speed in ns/day.

    seconds_left: wall time to the end of the stage; of the run, where its runner knows.
    drift_meV_per_atom_ps: of the conserved quantity, since the stage began or went on; None where there is none.
    """

    stage: str
    kind: Kind
    step: int
    n_steps: int
    time_ps: float
    temperature_K: float
    potential_energy_eV: float
    total_energy_eV: float
    max_force_eV_per_A: float | None
    ns_per_day: float
    seconds_left: float
    seconds_per_step: float = 0.0
    drift_meV_per_atom_ps: float | None = None


@dataclass(frozen=True)
class StageResult:
    """How a stage ended: `finished` is False after a request to stop. wall_seconds: of all its runs together.

    ended_early: why an observer ended it before its last step; it is finished then, and is not continued.
    """

    state: State
    step: int
    finished: bool
    wall_seconds: float
    ns_per_day: float
    ended_early: str | None = None


class StageFailed(SimulationError):
    """A stage that had to stop after `step`; frame: the file with the structure that failed."""

    def __init__(self, message: str, step: int, frame: Path):
        super().__init__(message)
        self.step, self.frame = step, frame


@dataclass(frozen=True)
class RunControl:
    """What goes with a run but changes no number: who watches, who may stop it, and how often it is saved.

    Also the `seed` of the run, from which `generator` derives independent streams by name.
    """

    seed: int
    name: str
    monitor: Callable[[Progress], None] = lambda progress: None
    should_stop: Callable[[], bool] = lambda: False
    checkpoint_seconds: float = 15.0
    identity: dict[str, Any] | None = None  # what, besides the settings, must be unchanged to continue (model, ...)
    observers: tuple[Observer, ...] = ()


@runtime_checkable
class Remembers(Protocol):
    """A calculator whose rounding depends on more than the present structure, and which says on what.

    Engines keep its memory with a checkpoint, and begin every stage with an empty one.
    """

    def memory(self) -> dict[str, NDArray[Any]]:
        """What rounding depends on: arrays by name."""

    def recall(self, memory: dict[str, NDArray[Any]]) -> None:
        """Go on, bit by bit, as after `memory` was taken; {}: as if nothing had been calculated before."""


class Engine(ABC):
    """Integrates stages. `kinds` and `cell_changes` say what it can do; `run_stage` does it."""

    name: str
    kinds: frozenset[Kind]

    def require(self, stage: StageSettings, state: State) -> None:
        """Raise ConfigError where this engine cannot do this stage with this structure."""
        if stage.kind not in self.kinds:
            raise ConfigError(
                f"`type` is {stage.kind}; expected one of {sorted(self.kinds)} with the engine {self.name}. "
                "Choose another engine or stage."
            )
        if stage.kind == "npt" and not (state.has_volume and state.pbc.all()):
            raise ConfigError(
                f"`type` is npt, but the structure has pbc {state.pbc.tolist()}; expected a cell periodic in all "
                "three directions. Use nvt for molecules and slabs."
            )

    def require_calculator(self, calculator: Any) -> None:  # noqa: B027  # most take any
        """Raise ConfigError where this engine cannot take its forces from this calculator."""

    @abstractmethod
    def run_stage(
        self, state: State, calculator: Any, stage: StageSettings, directory: Path, control: RunControl
    ) -> StageResult:
        """Run one stage to its total number of steps, writing to `directory`.

        Args:
            state: at the start; ignored where `directory` holds a checkpoint of this stage.
            calculator: as this engine wants it.
            stage: what to do.
            directory: the stage's own; thermo.csv, trajectory.trr, topology.pdb and restart.npz are kept there.
            control: seed, monitor, observers, and when to stop or save.

        Returns:
            StageResult.

        Raises:
            StageFailed: NaN or an exploding temperature; names step and atom. The last checkpoint is kept.
            ConfigError: the directory holds a checkpoint of other settings.
        """


def generator(seed: int, name: str) -> np.random.Generator:
    """An independent stream of random numbers for one purpose: PCG64 seeded by (seed, SHA-256 of the name)."""
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u4")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *(int(w) for w in words)])))
