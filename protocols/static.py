"""What the static protocols (eos, elastic, defects, surface) share: relaxed structures, kept; numbers, judged.

A subclass of `Static` says what is computed and what follows from it:

    class EosProtocol(Static):
        protocol: Literal["eos"]
        units = {"V0": "A^3/atom", ...}                      # names of results, as patterns, and their units
        def work(self, statics, figures) -> AnalysisOutput: ...
        def parts(self, atoms) -> list[Part]: ...            # for the estimate of time

`Statics` (relaxations.py) evaluates and relaxes, and keeps what it found.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt, field_validator, model_validator

from dpsim.analysis.report import Result, Section, Verdict
from dpsim.analysis.structure_view import MAX_ATOMS, StructureView
from dpsim.config import Force, StrictModel, dump_yaml
from dpsim.errors import ConfigError, DataError
from dpsim.files import atomic_write
from dpsim.protocols.context import AnalysisOutput, CalculatorFor, Stopped
from dpsim.protocols.plan import Plan, Step
from dpsim.protocols.progress import ProgressDisplay
from dpsim.protocols.provenance import model_file, origin_of
from dpsim.protocols.relaxations import STRUCTURES, Statics
from dpsim.protocols.rundir import PROTOCOL, RunOutcome, conclude_run, locked, stopped_outcome
from dpsim.protocols.runner import default_calculator
from dpsim.protocols.schema import ProtocolHead
from dpsim.signals import stop_on_signals
from dpsim.units import EV_PER_A3_IN_BAR, format_quantity, parse_quantity

if TYPE_CHECKING:
    from ase import Atoms

GPA = EV_PER_A3_IN_BAR * 1e-4
"""1 eV/A^3 in GPa."""
_EXPECTED_STEPS = 12  # of a relaxation, for the estimate of time
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
