"""`dpsim verify`: one model, one structure, every engine and precision: do they all give the same numbers?

The reference is the model evaluated by PyTorch in float64. Every engine is asked through what its users use: the ASE
calculator, LAMMPS's pair style (a callback for a model that is no student), OpenMM's Force on its Reference platform,
i-PI's PES. Units are converted back to eV and A.

What a row must fulfil, for the largest force component (eV/A) and for energy and virial per atom (eV) alike:
    float64   |engine - reference| <= 1e-10
    float32   |engine - ASE in float32| <= 1e-6 + r      r = |ASE in float32 - reference| <= 1e-4
r is what this precision costs; no two orders of summation agree better than that. Forces beyond 1 eV/A may differ by
these numbers times the largest force: rounding is relative.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpsim.calculators.base import ModelCalculator
from dpsim.calculators.lammps_pair import PluginError
from dpsim.calculators.selection import Precision, model_name, resolve_model, types_of, without_parameters
from dpsim.data.frame import Batch, Frame
from dpsim.engines.base import Array
from dpsim.engines.registry import EngineName
from dpsim.errors import DpsimError, MissingDependencyError
from dpsim.files import atomic_write
from dpsim.models.potential import Potential
from dpsim.models.student import Student
from dpsim.protocols.schema import Structure
from dpsim.protocols.structures import load_structure
from dpsim.units import factor

try:
    from ase import Atoms
    from ase.calculators.calculator import Calculator as AseCalculator
    from ase.io import write
    from ase.stress import voigt_6_to_full_3x3_stress
except ImportError as error:
    raise MissingDependencyError("ase", "ase", "dpsim verify") from error

FLOAT64, FLOAT32 = 1e-10, 1e-6  # what engines may differ by
FLOAT32_ROUNDING = 1e-4  # what float32 may cost
_PRECISIONS: tuple[Precision, ...] = ("float64", "float32")
Verdict = Literal["PASS", "FAIL", "absent"]


class NotPossible(DpsimError):
    """An engine cannot hold such a structure."""


@dataclass(frozen=True)
class Evaluation:
    """Energy eV, forces (n, 3) eV/A, virial (3, 3) eV or None where there is none."""

    energy: float
    forces: Array
    virial: Array | None


@dataclass(frozen=True)
class Difference:
    """Of two evaluations: largest force component eV/A; energy and largest virial component per atom, eV."""

    force: float
    energy: float
    virial: float | None

    @classmethod
    def of(cls, a: Evaluation, b: Evaluation) -> Difference:
        n = len(a.forces)
        virial = None
        if a.virial is not None and b.virial is not None:
            virial = float(np.abs(_symmetric(a.virial) - _symmetric(b.virial)).max()) / n
        return cls(float(np.abs(a.forces - b.forces).max()), abs(a.energy - b.energy) / n, virial)

    def within(self, limit: Difference) -> bool:
        """Whether nothing is beyond the limit; NaN is."""
        virial = self.virial is None or limit.virial is None or self.virial <= limit.virial
        return self.force <= limit.force and self.energy <= limit.energy and virial


@dataclass(frozen=True)
class Row:
    """One engine in one precision; differences are None where it did not run, `reason` then says why."""

    engine: EngineName
    precision: Precision
    verdict: Verdict
    reason: str = ""
    from_reference: Difference | None = None
    from_ase: Difference | None = None


@dataclass(frozen=True)
class Verification:
    """All rows, and PASS if no engine that is here fails."""

    model: str
    structure: str
    n_atoms: int
    largest_force: float
    rows: tuple[Row, ...]

    @property
    def verdict(self) -> Verdict:
        return "FAIL" if any(row.verdict == "FAIL" for row in self.rows) else "PASS"

    def as_json(self) -> str:
        """Everything, with the limits; a number that is not finite is null."""
        limits = {"float64": FLOAT64, "float32": FLOAT32, "float32_rounding": FLOAT32_ROUNDING}
        content = {"verdict": self.verdict, **asdict(self), "limits": limits}
        return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def verify_file(model: str, structure: Path, output: Path | None = None, console: Console | None = None) -> bool:
    """`dpsim verify`: print the table, write verify.json to the folder `output`; whether everything agrees.

    Raises: ModelFileError, DataError, ElementError for what cannot be evaluated at all.
    """
    console = console or Console(highlight=False)
    found = verify(model, load_structure(Structure(file=structure), seed=0), str(structure))
    console.print(table(found))
    console.print(f"verdict: {found.verdict}", style="green" if found.verdict == "PASS" else "bold red")
    if output is not None:
        atomic_write(output / "verify.json", found.as_json().encode())
        console.print(f"written to {output / 'verify.json'}")
    return found.verdict == "PASS"


def verify(model: str | Potential, atoms: Atoms, source: str = "atoms") -> Verification:
    """Evaluate a structure in every engine and precision, and judge the differences."""
    models = {p: without_parameters(resolve_model(model, p), "`dpsim verify`") for p in _PRECISIONS}
    name = model_name(model)
    types = types_of(atoms.get_chemical_symbols(), models["float64"].type_map, name)
    reference = _reference(models["float64"], atoms, types)
    scale = max(1.0, float(np.abs(reference.forces).max()))
    rows = []
    for precision in _PRECISIONS:
        ase = EVALUATORS["ase"](models[precision], atoms)
        for engine, evaluate in EVALUATORS.items():
            try:
                found = ase if engine == "ase" else evaluate(models[precision], atoms)
            except (MissingDependencyError, PluginError, NotPossible) as error:
                rows.append(Row(engine, precision, "absent", str(error)))
            except Exception as error:  # an engine raises whatever it likes; it has not given the right numbers
                rows.append(Row(engine, precision, "FAIL", str(error) or type(error).__name__))
            else:
                rows.append(_judged(engine, precision, found, reference, ase, scale))
    return Verification(name, source, len(atoms), float(np.abs(reference.forces).max()), tuple(rows))


def _judged(
    engine: EngineName, precision: Precision, found: Evaluation, reference: Evaluation, ase: Evaluation, scale: float
) -> Row:
    error, from_ase = Difference.of(found, reference), Difference.of(found, ase)
    if precision == "float64":
        good = error.within(Difference(FLOAT64 * scale, FLOAT64, FLOAT64))
        return Row(engine, precision, "PASS" if good else "FAIL", "", error, from_ase)
    cost = Difference.of(ase, reference)
    allowed = Difference(
        FLOAT32 * scale + cost.force, FLOAT32 + cost.energy, None if cost.virial is None else FLOAT32 + cost.virial
    )
    rounding = Difference(FLOAT32_ROUNDING * scale, FLOAT32_ROUNDING, FLOAT32_ROUNDING)
    good = cost.within(rounding) and from_ase.within(allowed)
    return Row(engine, precision, "PASS" if good else "FAIL", "", error, from_ase)


def table(found: Verification) -> Table:
    """One line for each engine and precision."""
    out = Table(
        title=f"{found.model} on {found.structure}: {found.n_atoms} atoms, forces up to {found.largest_force:.3g} eV/Å",
        caption="differences from the float64 reference, and from ASE in the same precision; - where there is none",
        title_justify="left",
    )
    out.add_column("engine")
    out.add_column("precision")
    for heading in ("force\neV/Å", "energy\neV/atom", "virial\neV/atom", "force\nfrom ASE"):
        out.add_column(heading, justify="right")
    out.add_column("verdict", overflow="fold")
    styles = {"PASS": "green", "FAIL": "bold red", "absent": "yellow"}
    for row in found.rows:
        e = row.from_reference
        numbers = ["-"] * 4 if e is None else [_cell(e.force), _cell(e.energy), _cell(e.virial)]
        if row.from_ase is not None:
            numbers.append(_cell(row.from_ase.force))
        verdict = row.verdict + (f": {row.reason}" if row.reason else "")
        out.add_row(row.engine, row.precision, *numbers, Text(verdict, style=styles[row.verdict]))
    return out


# ---- the engines ---------------------------------------------------------------------------------------------------


def _reference(model: Potential, atoms: Atoms, types: Any) -> Evaluation:
    """By PyTorch, from a neighbour list of its own."""
    pbc = np.array(atoms.pbc, dtype=bool)
    cell = np.array(atoms.cell.array) if pbc.any() else np.zeros((3, 3))
    frame = Frame(np.array(atoms.positions), types, tuple(model.type_map), cell, pbc)
    found = ModelCalculator(model).compute(Batch.from_frames([frame], model.rcut))
    assert found.forces is not None
    assert found.virial is not None
    return Evaluation(float(found.energy[0]), found.forces.numpy(), found.virial[0].numpy())


def _from_ase(calculator: AseCalculator, atoms: Atoms) -> Evaluation:
    own = atoms.copy()
    own.calc = calculator
    forces, virial = own.get_forces(), None
    if own.cell.rank == 3:
        virial = -own.get_volume() * voigt_6_to_full_3x3_stress(own.get_stress())
    return Evaluation(float(own.get_potential_energy()), np.array(forces), virial)


def _in_ase(model: Potential, atoms: Atoms) -> Evaluation:
    from dpsim.calculators.ase_calculator import DPCalculator

    return _from_ase(DPCalculator(model), atoms)  # type: ignore[arg-type]


def _in_lammps(model: Potential, atoms: Atoms) -> Evaluation:
    from dpsim.engines.ase_engine import state_from_atoms
    from dpsim.engines.lammps_engine import LammpsCalculator
    from dpsim.engines.lammps_library import Lammps

    if isinstance(model, Student):
        with closing(LammpsCalculator(model)) as calculator:
            return _from_ase(calculator, atoms)
    with closing(Lammps(state_from_atoms(atoms), triclinic=False)) as lammps:

        def evaluate(step: int) -> tuple[float, Array, Array]:
            now = Atoms(atoms.numbers, lammps.positions(), cell=lammps.cell(), pbc=atoms.pbc)
            found = _in_ase(model, now)
            return found.energy, found.forces, np.zeros((3, 3)) if found.virial is None else found.virial

        lammps.use_callback(evaluate)
        lammps.run(0, begin=True)
        return Evaluation(lammps.potential_energy(), lammps.forces(), lammps.virial() if atoms.cell.rank == 3 else None)


def _in_openmm(model: Potential, atoms: Atoms) -> Evaluation:
    """Without a virial: OpenMM has none, its barostats compare energies."""
    try:
        import openmm
    except ImportError as error:
        raise MissingDependencyError("openmm", "openmm", "openmm_force") from error
    from dpsim.calculators.openmm_force import openmm_force

    nm, kilojoule = float(factor("nm", "A")), float(factor("eV", "kJ/mol"))
    pbc = np.array(atoms.pbc)
    if pbc.any() and not pbc.all():
        raise NotPossible("OpenMM is periodic in three directions or in none")
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    rotation = np.eye(3)
    if pbc.all():
        cell, rotation = _reduced(np.array(atoms.cell.array))
        system.setDefaultPeriodicBoxVectors(*(cell / nm))
    system.addForce(openmm_force(atoms.get_chemical_symbols(), model, periodic=bool(pbc.all())))
    platform = openmm.Platform.getPlatformByName("Reference")  # positions and forces in double precision
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(atoms.positions @ rotation.T / nm)
    state = context.getState(energy=True, forces=True)
    energy = float(state.getPotentialEnergy()._value) / kilojoule
    return Evaluation(energy, state.getForces(asNumpy=True)._value @ rotation / (kilojoule * nm), None)


def _in_ipi(model: Potential, atoms: Atoms) -> Evaluation:
    from dpsim.calculators.ipi_driver import BOHR, HARTREE

    try:
        from dpsim.calculators.ipi_pes import DpsimDriver
    except ImportError as error:
        raise MissingDependencyError("ipi", "ipi", "The i-PI engine") from error
    with tempfile.TemporaryDirectory(prefix="dpsim-verify-") as folder:
        template = Path(folder, "template.extxyz")
        write(template, Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc))
        driver = DpsimDriver(str(template), model)  # type: ignore[arg-type]
    cell = np.array(atoms.cell.array).T / BOHR  # columns are lattice vectors
    energy, forces, virial, _ = driver.compute_structure(cell, atoms.positions / BOHR)
    return Evaluation(energy * HARTREE, forces * (HARTREE / BOHR), virial.T * HARTREE)


def _reduced(cell: Array) -> tuple[Array, Array]:
    """The cell as OpenMM wants it (a along x, b in the xy plane, short), and Q that turns a position x into x Q^T.

    A left-handed cell is turned inside out: Q is orthogonal, and energies do not see the difference.
    """
    q, r = np.linalg.qr(cell.T)
    sign = np.where(np.diag(r) < 0, -1.0, 1.0)
    a, b, c = np.tril(r.T * sign)
    c = c - b * np.round(c[1] / b[1])
    c = c - a * np.round(c[0] / a[0])
    b = b - a * np.round(b[0] / a[0])
    return np.array([a, b, c]), (q * sign).T


EVALUATORS: dict[EngineName, Callable[[Potential, Atoms], Evaluation]] = {
    "ase": _in_ase,
    "lammps": _in_lammps,
    "openmm": _in_openmm,
    "ipi": _in_ipi,
}


def _symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + matrix.T)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _finite(value: Any) -> Any:
    """Plain data with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
