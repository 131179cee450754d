"""The LAMMPS engine: LAMMPS's integrators in this process, with exact restarts.

| stage | LAMMPS | conserved |
|---|---|---|
| minimise | forces; FIRE is ASE's, whose state can be saved | - |
| nve | fix nve | E |
| nvt, bussi | fix nve, fix temp/csvr | E + energy that the fix has taken |
| nvt, langevin | fix gle with a 1 x 1 matrix: velocity Verlet between two half steps of noise (OBABO) | likewise |
| npt | fix npt: Martyna-Tobias-Klein, Nose-Hoover chains | likewise |

A student (`dpsim compress`) is evaluated by `pair_style dpsim`, on one or several MPI ranks (lammps_ranks.py), any
other model by a callback, serially.

LAMMPS keeps more from step to step than it can save: neighbour lists, the order of atoms, generators of random
numbers. So a stage is cut into segments, every `segment` steps, at which LAMMPS forgets: it sets up anew, and noise is
drawn from a generator seeded by the step. What happens within a segment is a function of the snapshot at its beginning,
which is what a checkpoint holds; continuing repeats a segment up to the checkpoint's step, silently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.calculators.lammps_pair import plugin
from dpsim.engines.ase_engine import AseEngine, state_from_atoms
from dpsim.engines.base import Array, Engine, RunControl, StageResult, StageSettings, State, generator
from dpsim.engines.lammps_library import Lammps, Snapshot
from dpsim.engines.lammps_ranks import open_lammps, require_mpi
from dpsim.engines.last_forces import Evaluated, LastForces
from dpsim.engines.output import Checkpoint
from dpsim.engines.stage_run import Memory, StageRun
from dpsim.errors import ConfigError, MissingDependencyError
from dpsim.models.checkpoint import model_bytes
from dpsim.models.student import Student
from dpsim.units import BOLTZMANN_EV_PER_K

try:
    from ase import Atoms
    from ase.calculators.calculator import Calculator as AseCalculator
    from ase.calculators.calculator import all_changes
    from ase.data import chemical_symbols
    from ase.stress import full_3x3_to_voigt_6_stress
except ImportError as error:
    raise MissingDependencyError("ase", "ase", "The LAMMPS engine") from error

STUDENT_SEGMENT = 100  # steps; its setup costs one more evaluation of the forces
_FIRST_OF_BAROSTAT_CHAIN = 3 + 3 + 1 + 1  # in fix npt's vector: after eta, eta_dot, omega, omega_dot
_BAROSTAT = {"isotropic": "iso", "anisotropic": "aniso", "triclinic": "tri"}


class LammpsEngine(Engine):
    """Runs stages with LAMMPS; `calculator` is an ASE calculator. Raises MissingDependencyError, PluginError."""

    name = "lammps"
    kinds = frozenset(("minimise", "nve", "nvt", "npt"))

    def __init__(self, ranks: int = 1) -> None:
        plugin()  # before anything runs: whether LAMMPS and a compiler are here
        if ranks > 1:
            require_mpi()
        self.ranks = ranks

    def require_calculator(self, calculator: Any) -> None:
        """As documented in Engine."""
        if self.ranks > 1 and student_of(calculator) is None:
            raise ConfigError(
                f"`ranks` is {self.ranks}, but the model is no student on the CPU; expected one, which every rank "
                "evaluates by pair_style dpsim. Make one with `dpsim compress`, or leave `ranks` out."
            )

    def run_stage(
        self, state: State, calculator: Any, stage: StageSettings, directory: Path, control: RunControl
    ) -> StageResult:
        """As documented in Engine."""
        self.require(stage, state)
        self.require_calculator(calculator)
        if stage.kind == "minimise":
            return self._minimise(state, calculator, stage, directory, control)
        return _LammpsRun(state, calculator, stage, directory, control, self.ranks).to_the_end()

    def _minimise(
        self, state: State, calculator: Any, stage: StageSettings, directory: Path, control: RunControl
    ) -> StageResult:
        student = student_of(calculator)
        if student is None:
            return AseEngine().run_stage(state, calculator, stage, directory, control)
        lammps = LammpsCalculator(student, self.ranks)
        try:
            return AseEngine().run_stage(state, lammps, stage, directory, control)
        finally:
            lammps.close()


def student_of(calculator: Any) -> Student | None:
    """The student that LAMMPS's pair style can evaluate instead of this calculator; None for any other."""
    model = calculator.model if isinstance(calculator, DPCalculator) else None
    on_cpu = model is not None and calculator.parameters["device"] == "cpu"
    return model if isinstance(model, Student) and on_cpu else None


def use_student(lammps: Lammps, student: Student, ranks: int = 1) -> None:
    """Forces by the pair style, with torch's number of threads, which the ranks share."""
    elements = [chemical_symbols[z] for z in lammps.numbers_of_types]
    lammps.use_student(model_bytes(student), elements, max(1, torch.get_num_threads() // ranks))


class _LammpsRun(StageRun):
    """One stage of dynamics under way.

    snapshot: of the beginning of the present segment; heat: energy that thermostats of earlier segments have taken.
    """

    lammps: Lammps
    snapshot: Snapshot

    def __init__(
        self, state: State, calculator: Any, stage: StageSettings, directory: Path, control: RunControl, ranks: int
    ):
        self.ranks = ranks
        super().__init__(state, calculator, stage, directory, control)

    def prepare(self, saved: Checkpoint | None) -> None:
        student = student_of(self.calculator)
        self.segment = 1 if student is None else STUDENT_SEGMENT
        self.snapshot = {} if saved is None else saved.integrator
        self.heat = float(self.snapshot.get("heat", 0.0)) if self.stage.kind == "nvt" else 0.0
        triclinic = self.stage.cell_change == "triclinic"
        self.lammps = open_lammps(self.ranks, self.start, triclinic, self.snapshot or None)
        self.opened.callback(self.lammps.close)
        self.callback = None if student else _Callback(self.calculator, self.start, self.lammps, self.snapshot)
        if student is not None:
            use_student(self.lammps, student, self.ranks)
        self._make_integrator()
        if saved is None:
            self.lammps.run(0, begin=True)
        else:
            self._return_to(saved.step)

    def _make_integrator(self) -> None:
        stage, lammps = self.stage, self.lammps
        lammps.command(f"timestep {stage.timestep_fs * 1e-3!r}")
        if stage.thermostat == "langevin":
            assert stage.thermostat_damping_fs
            self.friction = lammps.friction_file(1e3 / stage.thermostat_damping_fs)
            return
        if stage.kind != "npt":
            lammps.command("fix integrate all nve")
            return
        assert stage.temperature_K and stage.thermostat_damping_fs and stage.barostat_damping_fs
        assert stage.pressure_bar is not None
        temperature, pressure = lammps.temperature(stage.temperature_K), lammps.pressure(stage.pressure_bar)
        lammps.command(
            f"fix integrate all npt temp {temperature} {temperature} {stage.thermostat_damping_fs * 1e-3!r} "
            f"{_BAROSTAT[stage.cell_change or 'isotropic']} {pressure} {pressure} "
            f"{stage.barostat_damping_fs * 1e-3!r} fixedpoint 0 0 0 flip no"
        )
        self._count_freedom("integrate_temp")
        if "fix" in self.snapshot:
            lammps.restore_fix("integrate", self.snapshot["fix"])

    def _make_thermostat(self) -> None:
        """A thermostat that knows nothing of the past: its noise depends on the seed and the present step alone."""
        stage, lammps = self.stage, self.lammps
        assert stage.temperature_K and stage.thermostat_damping_fs
        random = generator(self.control.seed, f"{self.control.name}/thermostat/{self.step}")
        seed = random.integers(1, 900_000_000)
        temperature = lammps.temperature(stage.temperature_K)
        if lammps.has_fix("thermostat"):
            lammps.command("unfix thermostat")
        if stage.thermostat == "langevin":
            lammps.command(f'fix thermostat all gle 0 {temperature} {temperature} {seed} "{self.friction}"')
        else:
            damping = f"{stage.thermostat_damping_fs * 1e-3!r}"
            lammps.command(f"fix thermostat all temp/csvr {temperature} {temperature} {damping} {seed}")
            self._count_freedom("thermostat_temp")

    def _count_freedom(self, compute: str) -> None:
        """LAMMPS takes 3 degrees of freedom off for the centre of mass; a single atom has none to lose."""
        self.lammps.command(f"compute_modify {compute} extra/dof {3 * self.start.n_atoms - self.freedom}")

    def advance(self) -> None:
        self._run_to(self.next_stop())

    def _run_to(self, stop: int) -> None:
        """Run to `stop`, or to the end of the segment."""
        begin = self.step % self.segment == 0
        if begin:
            self.snapshot = self._take_snapshot()
            if self.stage.kind == "nvt":
                self.heat = float(self.snapshot["heat"])
                self._make_thermostat()
        stop = min(stop, self.segment * (self.step // self.segment + 1))
        self.lammps.run(stop - self.step, begin)
        self.step = stop

    def _return_to(self, step: int) -> None:
        """From the beginning of the segment to the step of the checkpoint, silently."""
        self.step = self.segment * (step // self.segment)
        self.lammps.command(f"reset_timestep {self.step}")
        while self.step < step:
            self._run_to(min(self.next_stop(), step))

    def _take_snapshot(self) -> Snapshot:
        """What continuing from this moment, the beginning of a segment, needs."""
        snapshot = self.lammps.snapshot() | {"heat": np.array(self._heat())}
        if self.stage.kind == "npt":
            snapshot["fix"] = self.lammps.fix_state("integrate")
        return snapshot | ({} if self.callback is None else self.callback.snapshot())

    def memory(self) -> Memory:
        at_beginning = self.step % self.segment == 0
        return Memory(
            integrator=self._take_snapshot() if at_beginning else self.snapshot,
            calculator={} if self.callback is None else self.calculator_memory(),
        )

    def positions(self) -> Array:
        return self.lammps.positions()

    def momenta(self) -> Array:
        return self.lammps.momenta()

    def cell(self) -> Array:
        return self.lammps.cell()

    def forces(self) -> Array:
        return self.lammps.forces()

    def potential_energy(self) -> float:
        return self.lammps.potential_energy()

    def static_pressure(self) -> float:
        virial = self.lammps.virial() if self.callback is None else self.callback.last.virial
        return float(np.trace(virial)) / (3.0 * abs(float(np.linalg.det(self.cell()))))

    def conserved(self, total_energy: float) -> float:
        return total_energy + self._heat()

    def _heat(self) -> float:
        heat = self.heat + self.lammps.coupled_energy()
        if self.stage.cell_change == "isotropic":
            # LAMMPS's energy counts each of three equal strain rates as a degree of freedom; its dynamics, rightly, one
            assert self.stage.temperature_K
            excess = 2.0 * BOLTZMANN_EV_PER_K * self.stage.temperature_K
            heat -= excess * self.lammps.fix_value("integrate", _FIRST_OF_BAROSTAT_CHAIN)
        return heat


class _Callback:
    """Forces for LAMMPS from an ASE calculator, once for each step: the setup of a segment asks for the last again."""

    def __init__(self, calculator: Any, state: State, lammps: Lammps, snapshot: Snapshot):
        self.lammps, self.forces = lammps, LastForces(calculator, state)
        self.step: int | None = None
        if snapshot:
            self.step, self.forces.last = int(snapshot["step"]), Evaluated.from_arrays(snapshot)
        lammps.use_callback(self.evaluate)

    def evaluate(self, step: int) -> tuple[float, Array, Array]:
        """Energy eV, forces (n, 3) eV/A and virial (3, 3) eV (zero if not given) of LAMMPS's present positions."""
        if step != self.step:
            self.forces.at(self.lammps.positions(), self.lammps.cell())
            self.step = step
        last = self.last
        return last.energy, last.forces, np.nan_to_num(last.virial)

    @property
    def last(self) -> Evaluated:
        """What was found last."""
        assert self.forces.last is not None
        return self.forces.last

    def snapshot(self) -> Snapshot:
        """To be kept with a restart point."""
        return self.last.arrays() | {"step": np.array(self.step)}


class LammpsCalculator(AseCalculator):
    """An ASE calculator whose numbers are LAMMPS's, of a student: for minimisation, and to compare engines."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, student: Student, ranks: int = 1):
        super().__init__()
        self._student, self._ranks = student, ranks
        self._lammps: Lammps | None = None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """As in ASE. Equal structures give equal numbers: lists are built anew, and atoms keep their order."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        if self._lammps is None or set(system_changes) - {"positions"}:
            self.close()
            self._lammps = open_lammps(self._ranks, state_from_atoms(self.atoms), triclinic=False, keep_order=True)
            use_student(self._lammps, self._student, self._ranks)
        lammps = self._lammps
        lammps.place(self.atoms.positions)
        lammps.run(0, begin=True)
        energy = lammps.potential_energy()
        self.results = {"energy": energy, "free_energy": energy, "forces": lammps.forces()}
        if self.atoms.cell.rank == 3:
            self.results["stress"] = full_3x3_to_voigt_6_stress(-lammps.virial() / self.atoms.get_volume())

    def close(self) -> None:
        """End LAMMPS; the next calculation starts another."""
        if self._lammps is not None:
            self._lammps.close()
        self._lammps = None
