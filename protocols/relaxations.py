"""Structures evaluated and relaxed with a calculator, and kept, for the static protocols.

Each structure lies, when done, in structures/KEY.extxyz for people and KEY.npz for the run itself: with the hash of
what was asked (start, settings, model), so that the same command after a kill computes only what is missing, and a
changed model or structure computes anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpsim.errors import MissingDependencyError, SimulationError
from dpsim.files import atomic_write
from dpsim.protocols.context import Stopped
from dpsim.protocols.provenance import structure_hash

if TYPE_CHECKING:
    from ase import Atoms

    from dpsim.protocols.static import Static

Cell = Literal["fixed", "shape", "free"]
STRUCTURES = "structures"
_LARGEST_STEP = 0.1  # A


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
