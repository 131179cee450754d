"""Path-integral molecular dynamics by i-PI in this process: a ring of beads for each atom, all beads in one evaluation.

A `State` of a ring polymer holds bead after bead: n_beads times the atoms, with their masses, and momenta of the
temperature n_beads T. The thermostat is PILE-L: Langevin dynamics of the centroids with `thermostat_damping_fs`, and of
the ring's own modes with the friction 2 pile_lambda w_k (M. Ceriotti, M. Parrinello, T. E. Markland and D. E.
Manolopoulos, J. Chem. Phys. 133, 124104 (2010)). BAOAB; the free ring is propagated exactly.

What a stage leaves is that of any engine (output.py), of the quantum atoms: thermo.csv has the mean potential energy of
the beads, the kinetic energy by the centroid virial, and the pressure from both; a frame of the trajectory is one bead,
the beads of a moment follow one another. `estimators.csv` beside it has kinetic energies and sizes of each element.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dpsim.analysis.path_integrals import centroid_virial, primitive, squared_gyration
from dpsim.calculators.ase_calculator import EvaluatorCalculator
from dpsim.calculators.ipi_driver import BOHR, HARTREE, Answer, BeadPotential
from dpsim.engines.ase_engine import AseEngine, atoms_from_state
from dpsim.engines.base import Array, Engine, RunControl, StageResult, StageSettings, State, generator
from dpsim.engines.ipi_engine import IpiRun, thermostat_input
from dpsim.engines.last_forces import LastForces
from dpsim.engines.observer import Record
from dpsim.engines.output import Checkpoint, Log, StageOutput, read_columns
from dpsim.errors import MissingDependencyError, SimulationError
from dpsim.units import EV_PER_A3_IN_BAR

try:
    from ase.data import chemical_symbols
except ImportError as error:
    raise MissingDependencyError("ase", "ase", "Every engine") from error

ESTIMATORS = "estimators.csv"


class BeadForces(Protocol):
    """Energies, forces and virials of several copies of the atoms, in atomic units, cells with vectors as columns."""

    def compute(self, cells: Sequence[Array], positions: Sequence[Array]) -> list[Answer]:
        """One answer for each."""


@dataclass(frozen=True)
class Ring:
    """The beads of each atom and, in units of what is critical, the friction of the ring's modes."""

    n_beads: int
    pile_lambda: float = 1.0


def ring_state(state: State, n_beads: int) -> State:
    """All beads of an atom where it is, at rest."""
    return replace(
        state,
        numbers=np.tile(state.numbers, n_beads),
        masses=np.tile(state.masses, n_beads),
        positions=np.tile(state.positions, (n_beads, 1)),
        momenta=np.zeros((n_beads * state.n_atoms, 3)),
    )


def bead_of(state: State, n_beads: int, bead: int = 0) -> State:
    """One bead of each atom."""
    n = state.n_atoms // n_beads
    own = slice(bead * n, (bead + 1) * n)
    names = ("numbers", "masses", "positions", "momenta")
    return replace(state, **{name: getattr(state, name)[own] for name in names})


def bead_forces(calculator: Any, state: State) -> BeadForces:
    """An ASE calculator as the beads want it: all of them in one evaluation where it has models.

    Args: state: of one bead.
    """
    if isinstance(calculator, EvaluatorCalculator):
        device = str(calculator.parameters["device"])
        return BeadPotential(atoms_from_state(state), calculator.models, device=device)  # type: ignore[attr-defined]
    return _OneByOne(calculator, state)


class PathIntegralEngine(Engine):
    """Runs nvt stages of ring polymers; a state of the atoms alone becomes one of rings, each in a point.

    Args: ring: the beads; n_atoms: of the structure.
    """

    name = "ipi"
    kinds = frozenset(("minimise", "nvt"))

    def __init__(self, ring: Ring, n_atoms: int):
        self.ring, self.n_atoms = ring, n_atoms

    def run_stage(
        self, state: State, calculator: Any, stage: StageSettings, directory: Path, control: RunControl
    ) -> StageResult:
        """As documented in Engine; a minimisation is that of the atoms."""
        self.require(stage, state)
        if stage.kind == "minimise":
            return AseEngine().run_stage(state, calculator, stage, directory, control)
        closed = self.ring.n_beads > 1 and state.n_atoms == self.n_atoms
        rings = ring_state(state, self.ring.n_beads) if closed else state
        forces = bead_forces(calculator, bead_of(rings, self.ring.n_beads))
        return RingRun(rings, forces, stage, self.ring, directory, control).to_the_end()


class _OneByOne:
    """Any ASE calculator, a bead after the other."""

    def __init__(self, calculator: Any, state: State):
        self._forces = LastForces(calculator, state)

    def compute(self, cells: Sequence[Array], positions: Sequence[Array]) -> list[Answer]:
        """As documented in BeadForces."""
        found = [self._forces.at(x * BOHR, h.T * BOHR) for h, x in zip(cells, positions, strict=True)]
        return [(e.energy / HARTREE, e.forces * (BOHR / HARTREE), e.virial.T / HARTREE) for e in found]


def _for_ipi(answer: Answer) -> tuple[float, Array, Array, str]:
    energy, forces, virial = answer
    return energy, forces, np.nan_to_num(virial), ""  # NaN, where a calculator has no stress: nothing asks for it


class RingRun(IpiRun):
    """One stage of path-integral dynamics under way."""

    def __init__(
        self,
        state: State,
        forces: BeadForces,
        stage: StageSettings,
        ring: Ring,
        directory: Path,
        control: RunControl,
    ):
        self.ring, self.n_beads = ring, ring.n_beads
        self._last: tuple[Array, list[Answer]] | None = None
        self._bead_forces = forces
        own = {**(control.identity or {}), **vars(ring)}
        observers = (*control.observers, _Estimators(self, stage, state))
        super().__init__(state, forces, stage, directory, replace(control, identity=own, observers=observers))

    def _first_state(self, state: State) -> State:
        """Momenta of a resting ring are drawn: each bead's as of an atom at n_beads times the temperature."""
        if state.momenta.any():
            return state
        assert self.stage.temperature_K is not None
        stream = generator(self.control.seed, f"{self.control.name}/velocities")
        return state.with_velocities(self.n_beads * self.stage.temperature_K, stream)

    def open_output(self, saved: Checkpoint | None) -> StageOutput:
        one = bead_of(self.start, self.n_beads)
        return StageOutput(self.directory, [chemical_symbols[z] for z in one.numbers], one, saved)

    def prepare(self, saved: Checkpoint | None) -> None:
        self.inverse_mass = self.inverse_mass / self.n_beads  # so that p^2/2m is that of atoms at T
        super().prepare(saved)

    def thermostat(self) -> str:
        assert self.stage.thermostat_damping_fs is not None
        scale = f"<pile_lambda>{self.ring.pile_lambda!r}</pile_lambda>"
        return thermostat_input("pile_l", self.stage.thermostat_damping_fs, scale)

    def driver(self, cell: Any, positions: Any) -> Any:
        """What i-PI calls: with lists of all beads, or with the only one there is."""
        if isinstance(positions, list):
            return [_for_ipi(answer) for answer in self._answers(np.array(positions))]
        return _for_ipi(self._answers(np.asarray(positions)[None])[0])

    def _answers(self, positions: Array) -> list[Answer]:
        """Of all beads, positions (n_beads, n, 3) in bohr; the last ones are kept. Raises SimulationError for NaN."""
        if self._last is None or not np.array_equal(positions, self._last[0]):
            self._require_finite("position", positions)
            found = self._bead_forces.compute([self._cell.T / BOHR] * self.n_beads, list(positions))
            self._require_finite("force", np.array([forces for _, forces, _ in found]))
            self._last = positions.copy(), found
        return self._last[1]

    def _evaluated_beads(self) -> tuple[Array, list[Answer]]:
        """The present positions, and what was answered."""
        positions = np.array(self._system.beads.q).reshape(self.n_beads, -1, 3)
        return positions, self._answers(positions)

    def _require_finite(self, name: str, values: Array) -> None:
        bad = np.flatnonzero(~np.isfinite(values).all(axis=(0, 2)))
        if len(bad):
            atom = int(bad[0])
            raise SimulationError(
                f"the {name} of a bead of {chemical_symbols[self.start.numbers[atom]]} atom {atom} is not finite; "
                "expected numbers. Reduce the time step, start from a relaxed structure, or check that the model knows "
                "such structures."
            )

    def advance(self) -> None:
        super().advance()
        beads = self._system.beads  # i-PI keeps normal modes as well: they are made of the beads again, as on a restart
        beads.q, beads.p = np.array(beads.q), np.array(beads.p)

    # ---- the present state, eV and A -------------------------------------------------------------------------------

    def bead_positions(self) -> Array:
        """(n_beads, n_atoms, 3)"""
        return self.positions().reshape(self.n_beads, -1, 3)

    def forces(self) -> Array:
        return np.concatenate([forces for _, forces, _ in self._evaluated_beads()[1]]) * (HARTREE / BOHR)

    def bead_forces(self) -> Array:
        """(n_beads, n_atoms, 3)"""
        return self.forces().reshape(self.n_beads, -1, 3)

    def potential_energy(self) -> float:
        return float(np.mean([energy for energy, _, _ in self._evaluated_beads()[1]])) * HARTREE

    def static_pressure(self) -> float:
        traces = [np.trace(virial) for _, _, virial in self._evaluated_beads()[1]]
        return float(np.mean(traces)) * HARTREE / (3.0 * abs(float(np.linalg.det(self.cell()))))

    def quantum_kinetic_energy(self) -> float:
        """By the centroid virial."""
        assert self.stage.temperature_K is not None
        return float(centroid_virial(self.bead_positions(), self.bead_forces(), self.stage.temperature_K).sum())

    def _thermo(self) -> tuple[float, ...]:
        """As in StageRun; the temperature is that of the beads' momenta."""
        _, _, _, conserved, temperature, _, volume = super()._thermo()
        potential, kinetic = self.potential_energy(), self.quantum_kinetic_energy()
        static = self.static_pressure() if self.start.has_volume else float("nan")
        pressure = (2.0 * kinetic / (3.0 * volume) + static) * EV_PER_A3_IN_BAR
        return potential, kinetic, potential + kinetic, conserved, temperature, pressure, volume

    def write_frame(self) -> None:
        state, forces = self.state(), self.bead_forces()
        for k in range(self.n_beads):
            one = bead_of(state, self.n_beads, k)
            self.output.frame(self.step * self.n_beads + k, self._time_ps(), one, forces[k])

    # ---- restarts ---------------------------------------------------------------------------------------------------

    def last_forces(self) -> dict[str, NDArray[Any]]:
        positions, answers = self._evaluated_beads()
        energies, forces, virials = (np.array(part) for part in zip(*answers, strict=True))
        return {
            "bead_q": positions,
            "bead_energy": energies,
            "bead_forces": forces,
            "bead_virial": virials,
        }

    def recall_forces(self, arrays: dict[str, NDArray[Any]]) -> None:
        rows = zip(arrays["bead_energy"], arrays["bead_forces"], arrays["bead_virial"], strict=True)
        self._last = arrays["bead_q"], [(float(energy), forces, virial) for energy, forces, virial in rows]

    def baths(self) -> list[Any]:
        return list(self._system.motion.thermostat._thermos)  # one for each mode of the ring; their sum is derived


class _Estimators:
    """An observer that writes estimators.csv: kinetic energies and squared radii of gyration, means of each element."""

    name = "estimators"

    def __init__(self, run: RingRun, stage: StageSettings, state: State):
        self.every = stage.thermo_every
        self._run, self._stage = run, stage
        one = bead_of(state, run.n_beads)
        self._masses = one.masses
        self._atoms = {chemical_symbols[z]: one.numbers == z for z in dict.fromkeys(one.numbers.tolist())}

    def open(self, directory: Path, record: Record | None) -> None:
        """As documented in Recorder."""
        length = None if record is None else record["length"]
        self._log = Log(directory / ESTIMATORS, length, ",".join(estimator_columns(self._atoms)) + "\n")

    def record(self) -> Record:
        """As documented in Recorder."""
        return {"length": self._log.sync()}

    def close(self) -> None:
        """As documented in Recorder."""
        self._log.close()

    def observe(self, step: int, state: State) -> str | None:
        """A row: of each element the centroid virial, primitive, and Rg^2."""
        temperature = self._stage.temperature_K
        assert temperature is not None
        beads, forces = self._run.bead_positions(), self._run.bead_forces()
        found = (
            centroid_virial(beads, forces, temperature),
            primitive(beads, self._masses, temperature),
            squared_gyration(beads),
        )
        row = [1e-3 * step * self._stage.timestep_fs]
        row += [float(values[atoms].mean()) for atoms in self._atoms.values() for values in found]
        self._log.write(",".join([str(step), *(repr(value) for value in row)]) + "\n")
        return None


def estimator_columns(elements: Iterable[str]) -> list[str]:
    """Of estimators.csv."""
    kinds = ("centroid_virial_eV", "primitive_eV", "squared_gyration_A2")
    return ["step", "time_ps", *(f"{element}_{kind}" for element in elements for kind in kinds)]


def read_estimators(directory: Path, elements: Iterable[str]) -> dict[str, Array]:
    """The columns of the estimators.csv of a stage. Raises DataError."""
    return read_columns(directory / ESTIMATORS, estimator_columns(elements))
