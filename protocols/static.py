"""What the static protocols (eos, elastic, defects, surface) share: relaxed structures, kept; numbers, judged.

A subclass of `Static` says what is computed and what follows from it:

    class EosProtocol(Static):
        protocol: Literal["eos"]
        units = {"V0": "A^3/atom", ...}                      # names of results, as patterns, and their units
        def work(self, statics, figures) -> AnalysisOutput: ...
        def parts(self, atoms) -> list[Part]: ...            # for the estimate of time

`Statics` evaluates and relaxes. Each structure lies, when done, in structures/KEY.extxyz for people and KEY.npz for the
run itself: with the hash of what was asked (start, settings, model), so that the same command after a kill computes
only what is missing, and a changed model or structure computes anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, field_validator, model_validator

from dpsim.analysis.report import Result, Section, Verdict
from dpsim.analysis.structure_view import MAX_ATOMS, StructureView
from dpsim.config import Force, StrictModel, dump_yaml
from dpsim.errors import ConfigError, DataError, MissingDependencyError, SimulationError
from dpsim.files import atomic_write
from dpsim.protocols.context import AnalysisOutput, CalculatorFor, Stopped
from dpsim.protocols.plan import Plan, Step
from dpsim.protocols.progress import ProgressDisplay
from dpsim.protocols.provenance import model_file, origin_of, structure_hash
from dpsim.protocols.rundir import PROTOCOL, RunOutcome, conclude_run, locked, stop_on_signals, stopped_outcome
from dpsim.protocols.runner import default_calculator
from dpsim.protocols.schema import ProtocolHead
from dpsim.units import EV_PER_A3_IN_BAR, format_quantity, parse_quantity

if TYPE_CHECKING:
    from ase import Atoms

GPA = EV_PER_A3_IN_BAR * 1e-4
"""1 eV/A^3 in GPa."""
Cell = Literal["fixed", "shape", "free"]
STRUCTURES = "structures"
_EXPECTED_STEPS = 12  # of a relaxation, for the estimate of time
_LARGEST_STEP = 0.1  # A
_TRIES = 3  # evaluations that are timed


class Reference(StrictModel):
    """What a result should be; `B0: 261 GPa` is short for `B0: {value: 261 GPa}`."""

    value: str = Field(description="with its unit")
    tolerance: str | None = Field(None, description='"5 %" of the value, or "10 GPa"; default: that of the protocol')

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"value": value} if isinstance(value, str | int | float) else value

    @field_validator("value", mode="before")
    @classmethod
    def _plain_number(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    def number(self, unit: str) -> float:
        """The value in this unit. Raises ConfigError."""
        return _number(self.value, unit)

    def accepted(self, unit: str, default: str) -> float:
        """The largest accepted difference, in this unit. Raises ConfigError."""
        text = self.tolerance or default
        if text.rstrip().endswith("%"):
            return abs(self.number(unit)) * _number(text.rstrip().removesuffix("%"), "") / 100.0
        return _number(text, unit)


class Static(ProtocolHead, ABC):
    """What every static protocol has besides."""

    units: ClassVar[Mapping[str, str]]
    precision: Literal["float32", "float64"] | None = Field(
        "float64", description="small differences of energies want float64; null: the model's own"
    )
    force: Force = Field(0.001, gt=0.0, description="a relaxation is done when no atom feels more")
    steps: PositiveInt = Field(500, description="of a relaxation, at most")
    symmetry: bool = Field(True, description="keep the symmetry of the crystal while its cell relaxes")
    reference: dict[str, Reference] = Field({}, description="what results should be: {B0: 261 GPa}")
    tolerance: str = Field("10 %", description="accepted difference where a reference does not say")

    @abstractmethod
    def work(self, statics: Statics, figures: Path) -> AnalysisOutput:
        """Compute everything. Raises DpsimError."""

    @abstractmethod
    def parts(self, atoms: Atoms) -> list[Part]:
        """What `work` will do, about."""

    def prepare(self, atoms: Atoms) -> None:  # not abstract: a protocol may have no conditions
        """Refuse what does not suit the structure. Raises ConfigError."""

    def unit_of(self, name: str) -> str | None:
        """The unit of a result, None where there is no such result."""
        return next((unit for pattern, unit in self.units.items() if re.fullmatch(pattern, name)), None)

    @model_validator(mode="after")
    def _only_ase(self) -> Static:
        if self.engine != "ase":
            raise ValueError(f"`engine` is {self.engine}; expected ase, which alone relaxes cells. Leave it out.")
        return self

    @model_validator(mode="after")
    def _references_have_units(self) -> Static:
        for name, reference in self.reference.items():
            unit = self.unit_of(name)
            if unit is None:
                known = ", ".join(pattern.replace("\\", "") for pattern in self.units)
                raise ValueError(f"`reference` has {name}; expected names such as {known}. Correct the name.")
            try:
                reference.accepted(unit, self.tolerance)
            except ConfigError as error:
                raise ValueError(f"`reference.{name}`: {error}") from error
        return self


@dataclass(frozen=True)
class Part:
    """For the estimate: what, of how many atoms, how many structures, and whether they are relaxed."""

    what: str
    n_atoms: int
    n_structures: int
    relaxed: bool = True


@dataclass(frozen=True)
class Relaxed:
    """A structure with its energy (eV), forces (n, 3) eV/A, stress (6,) eV/A^3 (NaN without a cell), and steps made."""

    atoms: Atoms
    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64]
    steps: int

    @property
    def per_atom(self) -> float:
        """Energy, eV/atom."""
        return self.energy / len(self.atoms)

    @property
    def largest_force(self) -> float:
        """eV/A."""
        return float(np.linalg.norm(self.forces, axis=1).max())


@dataclass
class Statics:
    """Evaluates and relaxes structures with one calculator, and keeps them in a folder."""

    config: Static
    atoms: Atoms
    calculator: Any
    directory: Path
    identity: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = lambda text: None
    should_stop: Callable[[], bool] = lambda: False
    warnings: list[str] = field(default_factory=list)
    speed: dict[str, str] = field(default_factory=dict)
    relaxed: dict[str, Relaxed] = field(default_factory=dict)

    def single(self, key: str, atoms: Atoms) -> Relaxed:
        """Energy, forces and stress of a structure as it is."""
        return self._kept(key, atoms, {"what": "single"}, lambda a: 0)

    def relax(self, key: str, atoms: Atoms, cell: Cell = "fixed", along: Sequence[float] | None = None) -> Relaxed:
        """The nearest minimum.

        Args:
            key: of the result: letters, digits, `_`, `.`, `-`, and `/` between folders.
            atoms: the start.
            cell: what of it may change: nothing; its shape at constant volume; everything.
            along: atoms move along this direction only.

        Raises: SimulationError where forces are not small after `steps` steps, or atoms fly apart.
        """
        asked = {"cell": cell, "force": self.config.force, "symmetry": self.config.symmetry and cell != "fixed",
                 "along": None if along is None else [float(x) for x in along]}  # fmt: skip
        found = self._kept(key, atoms, asked, lambda a: self._minimise(key, a, cell, along))
        self.relaxed[key] = found
        return found

    def path(self, key: str, images: Sequence[Atoms], make: Callable[[list[Atoms]], int]) -> list[Relaxed]:
        """Images that `make` relaxes together; kept as the others."""
        keys = [f"{key}.{k}" for k in range(len(images))]
        start = "".join(structure_hash(image) for image in images)
        asked = {"what": "path", "start": start, "force": self.config.force}
        found = [self._saved(k, self._hash(asked)) for k in keys]
        if all(one is not None for one in found):
            return [one for one in found if one is not None]
        moved = [image.copy() for image in images]
        for image in moved:
            image.calc = self.calculator
        steps = make(moved)
        return [self._save(k, image, self._hash(asked), steps) for k, image in zip(keys, moved, strict=True)]

    def _kept(self, key: str, atoms: Atoms, asked: Mapping[str, Any], make: Callable[[Atoms], int]) -> Relaxed:
        """What was computed before, or `make` it now."""
        identity = self._hash({**asked, "start": structure_hash(atoms)})
        saved = self._saved(key, identity)
        if saved is not None:
            return saved
        if self.should_stop():
            raise Stopped
        began = time.monotonic()
        moved = atoms.copy()
        moved.calc = self.calculator
        steps = make(moved)
        found = self._save(key, moved, identity, steps)
        seconds = time.monotonic() - began
        self.speed[key] = f"{len(atoms)} atoms, {steps} steps, {seconds:.1f} s"
        self.say(f"{key}: {len(atoms)} atoms, {steps} steps, {found.per_atom:.5f} eV/atom, {seconds:.1f} s")
        return found

    def _minimise(self, key: str, atoms: Atoms, cell: Cell, along: Sequence[float] | None) -> int:
        """Relax in place; returns the number of steps."""
        from ase.constraints import FixedLine
        from ase.filters import FrechetCellFilter

        if along is not None:
            atoms.set_constraint(FixedLine(range(len(atoms)), along))
        elif cell != "fixed" and self.config.symmetry:
            atoms.set_constraint(_fix_symmetry(atoms))
        target = atoms if cell == "fixed" else FrechetCellFilter(atoms, constant_volume=cell == "shape")
        steps = self.optimise(key, target)
        atoms.set_constraint()
        return steps

    def optimise(self, key: str, target: Any, force: float | None = None) -> int:
        """Move what ASE can optimise until the largest force is small; returns the number of steps.

        LBFGS; FIRE where a `force` other than the protocol's is given, of a band, whose forces have no energy.
        """
        from ase.optimize import FIRE, LBFGS

        kind, force = (LBFGS, self.config.force) if force is None else (FIRE, force)
        with kind(target, logfile=os.devnull, maxstep=_LARGEST_STEP) as optimizer:
            for converged in optimizer.irun(fmax=force, steps=self.config.steps):
                if self.should_stop():
                    raise Stopped
                largest = float(np.linalg.norm(np.reshape(target.get_forces(), (-1, 3)), axis=1).max())
                if not np.isfinite(largest):
                    raise SimulationError(
                        f"the forces of {key} are {largest} after {optimizer.nsteps} steps; expected numbers. The "
                        "model does not know such structures: look at the start, or train it on more."
                    )
                if converged:
                    return int(optimizer.nsteps)
        raise SimulationError(
            f"`steps` of the relaxation of {key} is {self.config.steps}, and its largest force is still {largest:.2g} "
            f"eV/A; expected {force:g}. Raise `steps` or `force`; the same command continues."
        )

    def _hash(self, asked: Mapping[str, Any]) -> str:
        text = json.dumps([dict(asked), dict(self.identity)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _saved(self, key: str, identity: str) -> Relaxed | None:
        try:
            with np.load(self._file(key, "npz")) as kept:
                if str(kept["identity"]) != identity:
                    return None
                return _relaxed({name: kept[name] for name in kept.files})
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # none, or not whole
            return None

    def _save(self, key: str, atoms: Atoms, identity: str, steps: int) -> Relaxed:
        from ase.io import write

        if not np.isfinite(energy := float(atoms.get_potential_energy())):
            raise SimulationError(f"the energy of {key} is {energy}; expected a number. Look at the structure.")
        kept = {
            "identity": np.array(identity), "numbers": atoms.numbers, "positions": atoms.positions,
            "cell": atoms.cell.array, "pbc": atoms.pbc, "energy": np.array(energy),
            "forces": atoms.get_forces(apply_constraint=False), "stress": _stress(atoms), "steps": np.array(steps),
        }  # fmt: skip
        relaxed = _relaxed(kept)
        self._file(key, "extxyz").parent.mkdir(parents=True, exist_ok=True)
        write(self._file(key, "extxyz"), relaxed.atoms, format="extxyz")
        content = io.BytesIO()
        np.savez(content, **kept)
        atomic_write(self._file(key, "npz"), content.getvalue())
        return relaxed

    def _file(self, key: str, ending: str) -> Path:
        return self.directory / STRUCTURES / f"{key}.{ending}"


def result(config: Static, name: str, label: str, value: float, error: float | None = None, why: str = "") -> Result:
    """A number of a static protocol: PASS or FAIL against its reference, INFO without one.

    PASS: |value - reference| <= tolerance; FAIL: more; UNDECIDED where twice the error would change the answer.
    """
    unit = config.unit_of(name)
    if unit is None:
        raise DataError(f"`{name}` is no result of {config.name}; expected one that `units` knows. Add it.")
    plain = Result(name, label, value, error, unit, explanation=why)
    reference = config.reference.get(name)
    if reference is None:
        return plain
    wanted, accepted = reference.number(unit), reference.accepted(unit, config.tolerance)
    difference, uncertain = abs(value - wanted), 2.0 * (error or 0.0)
    verdict: Verdict = "PASS" if difference <= accepted else "FAIL"
    if abs(difference - accepted) < uncertain:
        verdict = "UNDECIDED"
    share = f", {100.0 * (value - wanted) / abs(wanted):+.1f} %" if wanted else ""
    text = f"Reference {wanted:g} {unit}: differs by {value - wanted:+.3g}{share}."
    return replace(
        plain,
        threshold=f"{wanted:g} ± {accepted:.3g}",
        verdict=verdict,
        explanation=" ".join(filter(None, (text, why))),
    )


# ---- the three functions of a protocol's module --------------------------------------------------------------------


def run_protocol(
    config: Static,
    directory: Path,
    calculator_for: CalculatorFor = default_calculator,
    display: ProgressDisplay | None = None,
) -> RunOutcome:
    """Run, or continue, a static protocol: arguments and errors as of the runner of molecular dynamics."""
    atoms, calculator = check_protocol(config, calculator_for)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory), stop_on_signals() as should_stop, display or ProgressDisplay() as shown:
        atomic_write(directory / PROTOCOL, dump_yaml(config).encode())
        statics = Statics(config, atoms, calculator, directory, _identity(config), shown.say, should_stop)
        try:
            output = config.work(statics, directory / "figures")
        except Stopped:
            return stopped_outcome(directory, shown.say)
        missing = sorted(set(config.reference) - {r.name for r in output.results})
        output.results.extend(_not_found(config, name) for name in missing)
        output.warnings.extend(statics.warnings)
        output.sections.extend(_before_and_after(statics))
        speed = statics.speed or {"all structures": "taken from the folder of the run"}
        facts = {"structure": atoms.get_chemical_formula(), "atoms": str(len(atoms)), "force": f"{config.force:g} eV/A"}
        return conclude_run(directory, config.name, output, origin_of(config, speed), facts, shown.say)


def check_protocol(config: Static, calculator_for: CalculatorFor = default_calculator) -> tuple[Atoms, Any]:
    """The structure, and the calculator, which has been tried on it. Raises DpsimError naming what does not fit."""
    from dpsim.protocols.structures import load_structure

    atoms = load_structure(config.structure, config.seed)
    if not atoms.pbc.all():
        raise ConfigError(f"`pbc` of the structure is {atoms.pbc.tolist()}; expected a crystal, periodic in all.")
    atoms = type(atoms)(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    config.prepare(atoms)
    calculator = calculator_for(config, None)
    if "stress" not in calculator.implemented_properties:
        raise ConfigError("the calculator gives no stress; expected one, to relax the cell. Use another model.")
    trial = atoms.copy()
    trial.calc = calculator
    if not np.isfinite(trial.get_forces()).all():
        raise ConfigError("the model's forces on the structure are not numbers. Look at the structure.")
    return atoms, calculator


def plan_protocol(config: Static, calculator_for: CalculatorFor = default_calculator) -> Plan:
    """The parts, each relaxation counted as 12 steps, at the speed of a few evaluations of the structure given."""
    atoms, calculator = check_protocol(config, calculator_for)
    trial = atoms.copy()
    trial.calc = calculator
    began = time.monotonic()
    for _ in range(_TRIES):
        trial.rattle(1e-3, rng=np.random.default_rng(0))
        trial.get_forces()
    per_atom = (time.monotonic() - began) / (_TRIES * len(atoms))
    steps = []
    for part in config.parts(atoms):
        evaluations = part.n_structures * (_EXPECTED_STEPS if part.relaxed else 1)
        n_bytes = part.n_structures * part.n_atoms * 180.0
        steps.append(Step(part.what, part.n_atoms, evaluations, evaluations * part.n_atoms * per_atom, n_bytes))
    return Plan(config.name, steps, notes=[f"a relaxation is counted as {_EXPECTED_STEPS} steps"])


def structures_section() -> Section:
    """Where the structures are."""
    return Section("Structures", f"Every structure, with its energy and forces: `{STRUCTURES}/*.extxyz`.")


def atoms_section(title: str, frames: Mapping[str, Atoms], caption: str) -> list[Section]:
    """Structures of the same atoms, by label, in three dimensions; the last is shown first. [] if too large."""
    first = next(iter(frames.values()))
    if len(first) > MAX_ATOMS:
        return []
    positions = np.array([atoms.positions for atoms in frames.values()])
    cells = np.array([atoms.cell.array for atoms in frames.values()])
    symbols = first.get_chemical_symbols()
    labels = list(frames) if len(frames) > 1 else []
    return [Section(title, structure=StructureView(symbols, positions, cells, labels=labels, caption=caption))]


def _before_and_after(statics: Statics) -> list[Section]:
    """The structure of the file, and what the first relaxation of the same atoms made of it."""
    atoms = statics.atoms
    same = (r.atoms for r in statics.relaxed.values() if np.array_equal(r.atoms.numbers, atoms.numbers))
    relaxed = next(same, None)
    if relaxed is None:
        return atoms_section("Atoms", {"of the file": atoms}, "The structure of the file.")
    return atoms_section("Atoms", {"of the file": atoms, "relaxed": relaxed}, "The structure of the file, and relaxed.")


def _not_found(config: Static, name: str) -> Result:
    text = "The run has no such result; look at the names of the others."
    return Result(name, name, None, None, config.unit_of(name) or "", config.reference[name].value, "UNDECIDED", text)


def _identity(config: Static) -> dict[str, Any]:
    """What, besides start and settings, the energy of a structure depends on."""
    return {
        "model": [model_file(name) or name for name in config.models],
        "precision": config.precision,
        "fparam": config.fparam,
    }


def _number(text: str, unit: str) -> float:
    """Of text with a unit, or of a plain number where there is no unit."""
    if unit:
        return parse_quantity(text, unit, format_quantity(1.0, unit))
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f'"{text}" is no number; expected one, without a unit. Correct it.') from None


def _relaxed(kept: Mapping[str, Any]) -> Relaxed:
    """Of the arrays of a file."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = Atoms(kept["numbers"], positions=kept["positions"], cell=kept["cell"], pbc=kept["pbc"])
    energy, forces, stress = float(kept["energy"]), np.array(kept["forces"]), np.array(kept["stress"])
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=stress)
    return Relaxed(atoms, energy, forces, stress, int(kept["steps"]))


def _stress(atoms: Atoms) -> NDArray[np.float64]:
    stress: NDArray[np.float64] = atoms.get_stress(apply_constraint=False)
    return stress


def _fix_symmetry(atoms: Atoms) -> Any:
    """ASE's constraint, which wants spglib."""
    from ase.constraints import FixSymmetry

    try:
        return FixSymmetry(atoms)
    except ModuleNotFoundError as error:
        raise MissingDependencyError("spglib", "analysis", "Keeping the symmetry of a crystal") from error
