"""Forces of an ASE calculator for an engine that asks again for those it has just had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsim.engines.ase_engine import atoms_from_state
from dpsim.engines.base import Array, State
from dpsim.errors import MissingDependencyError, SimulationError

try:
    from ase.calculators.calculator import PropertyNotImplementedError
    from ase.data import chemical_symbols
    from ase.stress import voigt_6_to_full_3x3_stress
except ImportError as error:
    raise MissingDependencyError("ase", "ase", "Every engine") from error


@dataclass(frozen=True)
class Evaluated:
    """A structure and what the calculator said: energy eV, forces (n, 3) eV/A, virial (3, 3) eV, NaN if not given."""

    positions: Array
    cell: Array
    energy: float
    forces: Array
    virial: Array

    def arrays(self) -> dict[str, NDArray[Any]]:
        """To be kept with a restart point."""
        return {name: np.array(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Evaluated:
        """From what `arrays` gave."""
        values = {name: arrays[name] for name in ("positions", "cell", "forces", "virial")}
        return cls(energy=float(arrays["energy"]), **values)


class LastForces:
    """Evaluates structures of the atoms of `state`; the last one is kept and not evaluated again.

    Equal structures are recognised bit by bit: what is kept is part of a restart point, because a calculator that
    remembers may round the same structure differently the second time.
    """

    def __init__(self, calculator: Any, state: State):
        self._atoms = atoms_from_state(state)
        self._atoms.calc = calculator
        self._gives_stress = state.has_volume and "stress" in getattr(calculator, "implemented_properties", ())
        self.last: Evaluated | None = None

    def at(self, positions: Array, cell: Array) -> Evaluated:
        """Energy, forces and virial of positions (n, 3) and cell (3, 3), A. Raises SimulationError for NaN."""
        last = self.last
        if last is not None and np.array_equal(positions, last.positions) and np.array_equal(cell, last.cell):
            return last
        self._require_finite("position", positions)
        atoms = self._atoms
        atoms.set_cell(cell)
        atoms.set_positions(positions)
        forces = np.array(atoms.get_forces(), dtype=np.float64)  # first: the energy comes with them
        self._require_finite("force", forces)
        self.last = Evaluated(
            positions.copy(), cell.copy(), float(atoms.get_potential_energy()), forces, self._virial()
        )
        return self.last

    def _virial(self) -> Array:
        if self._gives_stress:
            try:
                stress: Array = voigt_6_to_full_3x3_stress(self._atoms.get_stress())
                return -self._atoms.get_volume() * stress
            except PropertyNotImplementedError:
                self._gives_stress = False
        return np.full((3, 3), np.nan)

    def _require_finite(self, name: str, values: Array) -> None:
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            atom = int(bad[0])
            symbol = chemical_symbols[self._atoms.numbers[atom]]
            raise SimulationError(
                f"the {name} of {symbol} atom {atom} is {values[atom].tolist()}; expected numbers. Reduce the time "
                "step, minimise the structure first, or check that the model knows such structures."
            )
