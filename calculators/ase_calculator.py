"""A Deep Potential as an ASE calculator: `atoms.calc = DPCalculator("water-pbe0ts")`.

Units are ASE's: energy eV, forces eV/A, stress eV/A^3 (tension positive, Voigt xx yy zz yz xz xy).
Results depend on numbers, positions, cell and pbc only, and, for a model that takes them, on the parameters given to
the calculator or, as `fparam` and `aparam`, in `atoms.info` and `atoms.arrays`.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpsim.calculators.evaluator import Evaluator, Memory, ModelEvaluator, StudentEvaluator, evaluator_of
from dpsim.calculators.selection import Precision, model_name, resolve_model
from dpsim.data.frame import Prediction
from dpsim.errors import ConfigError, DataError, ElementError, MissingDependencyError

try:
    from ase.calculators.calculator import Calculator as AseCalculator
    from ase.calculators.calculator import PropertyNotImplementedError, all_changes
    from ase.data import atomic_numbers, chemical_symbols
    from ase.stress import full_3x3_to_voigt_6_stress
except ImportError as error:
    raise MissingDependencyError("ase", "ase", "DPCalculator") from error

if TYPE_CHECKING:
    from ase import Atoms

    from dpsim.models.energy_model import EnergyModel
    from dpsim.models.potential import Potential
    from dpsim.models.student import Student

DEFAULT_SKIN = 1.0  # A; see DPCalculator


class EvaluatorCalculator(AseCalculator):
    """What every calculator of dpsim is to ASE; a subclass says what evaluates. `settings` become `parameters`."""

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "stresses"]
    ignored_changes = {"initial_charges", "initial_magmoms"}

    def __init__(
        self,
        evaluator: Evaluator,
        settings: dict[str, Any],
        fparam: Sequence[float] | None = None,
        aparam: ArrayLike | str | None = None,
    ):
        super().__init__()
        self.parameters.update(settings)
        self._evaluator = evaluator
        self._fparam, self._aparam = fparam, aparam
        if (fparam is not None or aparam is not None) and not evaluator.takes_parameters:
            raise ConfigError(f"`fparam`, `aparam` are {fparam!r}, {aparam!r}; expected none, as the model takes none.")
        self._type_of_number = _type_table(evaluator.type_map)

    @property
    def below_range(self) -> int:
        """Directed pairs of the last structure nearer than where a student's tables begin; 0 for other models."""
        return self._evaluator.below_range

    def memory(self) -> Memory:
        """What, besides the present structure, rounding depends on: arrays, to be kept with a restart point."""
        return self._evaluator.memory()

    def recall(self, memory: Memory) -> None:
        """Go on, bit by bit, as after `memory` was taken; {}: as if nothing had been calculated before."""
        self._evaluator.recall(memory)
        self.reset()

    def _get_name(self) -> str:
        return "dpsim"

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.parameters.items())
        return f"{type(self).__name__}({settings})"

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Settings are fixed at construction: raise ConfigError for any change."""
        if kwargs:
            raise ConfigError(
                f"{type(self).__name__}.set was given {sorted(kwargs)}; expected nothing, settings are fixed. "
                f"Construct a new {type(self).__name__} with them."
            )
        return {}

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What differs from the last structure, bit by bit whatever `tol`: ASE's comparison of floats is slow."""
        last = self.atoms
        if last is None:
            return list(all_changes)
        pairs = {
            "positions": (last.positions, atoms.positions),
            "numbers": (last.numbers, atoms.numbers),
            "cell": (last.cell.array, atoms.cell.array),
            "pbc": (last.pbc, atoms.pbc),
        }
        changes = [name for name, (old, new) in pairs.items() if not np.array_equal(old, new)]
        if self._evaluator.takes_parameters:
            old, new = self._parameters_of(last), self._parameters_of(atoms)
            changes += [name for name in old if not np.array_equal(old[name], new[name])]  # type: ignore[arg-type]
        return changes

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """As in ASE; stress and stresses of a structure without three lattice vectors are refused before any work."""
        structure = self.atoms if atoms is None else atoms
        if name in ("stress", "stresses") and structure is not None and structure.cell.rank < 3:
            raise PropertyNotImplementedError(
                f"`{name}` needs a cell of three lattice vectors; its cell has rank {structure.cell.rank}. "
                "Set atoms.cell, or do not ask for the stress of a molecule or slab."
            )
        return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results` with the asked properties (and those that come for free with them)."""
        if atoms is not None:
            self.atoms = atoms.copy()
        if self.atoms is None:
            raise ConfigError("`atoms` is None; expected the Atoms to calculate. Pass them to calculate().")
        if system_changes:
            self.results = {}
        asked = set(properties or ["energy"])
        has_volume = self.atoms.cell.rank == 3
        derivatives = bool(asked - {"energy", "free_energy", "energies"})
        types = self._types(self.atoms)
        positions, cell = _finite("positions", self.atoms.positions), _finite("cell", self.atoms.cell.array)
        # One backward pass gives forces and virial together; an NPT step asks for them in separate calls.
        prediction = self._evaluator.evaluate(
            types,
            positions,
            cell,
            self.atoms.pbc,
            forces=derivatives,
            virial=derivatives and has_volume,
            atom_virial="stresses" in asked and has_volume,
            **self._parameters_of(self.atoms),
        )
        self.results.update(_to_results(prediction, self.atoms.get_volume() if has_volume else None))

    def _parameters_of(self, atoms: Atoms) -> dict[str, NDArray[np.float64] | None]:
        """fparam (k,) and aparam (n_atoms, m), given or of the atoms; nothing where the model takes none."""
        if not self._evaluator.takes_parameters:
            return {}
        fparam = atoms.info.get("fparam") if self._fparam is None else self._fparam
        aparam: Any = "aparam" if self._aparam is None else self._aparam
        if isinstance(aparam, str):
            if self._aparam is not None and aparam not in atoms.arrays:
                raise DataError(
                    f"`aparam` is {aparam!r}; expected the name of an array of the atoms, which have "
                    f"{sorted(atoms.arrays)}. Set it with atoms.set_array."
                )
            aparam = atoms.arrays.get(aparam)
        return {"fparam": _numbers("fparam", fparam, 1), "aparam": _numbers("aparam", aparam, len(atoms))}

    def _types(self, atoms: Atoms) -> np.ndarray:
        """Types (n_atoms,) in the model's type_map. Raises ElementError naming every unknown element."""
        types: np.ndarray = self._type_of_number[atoms.numbers]
        if types.size and types.min() < 0:
            unknown = sorted({chemical_symbols[z] for z in atoms.numbers[types < 0]})
            raise ElementError(
                f"elements {unknown} of the structure are unknown to the model `{self.parameters['model']}`; "
                f"it knows {list(self._evaluator.type_map)}. Use a model trained on these elements."
            )
        return types


class DPCalculator(EvaluatorCalculator):
    """Energy, forces and stress of a Deep Potential, E = sum_i E_i(neighbours of i within rcut).

    forces = -dE/dr; stress = (1/V) dE/d(strain); stresses are the atoms' shares: stresses.sum(axis=0) = stress.
    Stress and stresses need a cell of three lattice vectors. Any pbc, triclinic and small cells are allowed.

    The neighbour list keeps pairs within rcut + skin until an atom has moved skin/2. A model takes from it the pairs
    within rcut, in a fixed order: equal structures give equal forces bit by bit, whatever was calculated before. A
    student on native kernels sums in the order that its list was built in: equal structures give equal forces but for
    rounding, and bit by bit after the same `memory`.

    Args:
        model: name of a bundled model, path of a .dpsim file or of one of DeePMD-kit's (.dp, .yaml, .json, .pt), or a
            model or student (used as it is, not copied).
        head: of a file with several; `"model.dpsim:head"` says the same.
        precision: "float32" or "float64"; None keeps the model's own.
        device: "cpu", "cuda", ...
        skin: A, >= 0; a speed setting only.
        fparam: numbers of the frame, for a model that takes them; None: `atoms.info["fparam"]`.
        aparam: numbers of each atom (n_atoms, m), or the name of such an array of the atoms; None: "aparam".

    Raises: ElementError (elements the model does not know), DataError (non-finite positions),
        SimulationError (non-finite energy or forces), PropertyNotImplementedError (stress without a cell).
    Source: ASE's calculator interface; Verlet, Phys. Rev. 159, 98 (1967) for the skin.
    """

    _evaluator: ModelEvaluator | StudentEvaluator

    def __init__(
        self,
        model: str | PathLike[str] | EnergyModel | Student = "water-pbe0ts",
        *,
        precision: Precision | None = None,
        device: str = "cpu",
        skin: float = DEFAULT_SKIN,
        head: str | None = None,
        fparam: Sequence[float] | None = None,
        aparam: ArrayLike | str | None = None,
    ):
        checked_skin(skin)
        name = model_name(model) if head is None else f"{model_name(model)}:{head}"
        settings: dict[str, Any] = {"model": name, "precision": precision, "device": str(device), "skin": float(skin)}
        if (given := _numbers("fparam", fparam, 1)) is not None:
            settings["fparam"] = given.tolist()
        evaluator = evaluator_of(resolve_model(model, precision, head), str(device), float(skin))
        super().__init__(evaluator, settings, fparam, aparam)
        if given is not None and len(given) != (n := self.model.numb_fparam):
            raise ConfigError(f"`fparam` is {given.tolist()}; expected {n} numbers, which the model takes. Correct it.")

    @property
    def model(self) -> Potential:
        """The EnergyModel or Student behind this calculator."""
        return self._evaluator.calculator.model

    @property
    def models(self) -> list[Potential]:
        """The model alone; of a committee, its members."""
        return [self.model]


def checked_skin(skin: float) -> None:
    """Raise ConfigError for a skin that is no length."""
    if not (np.isfinite(skin) and skin >= 0):
        raise ConfigError(f"`skin` is {skin}; expected a length >= 0 A. The default is {DEFAULT_SKIN} A.")


def _numbers(name: str, value: Any, rows: int) -> NDArray[np.float64] | None:
    """Parameters as float64: (k,) of a frame, (rows, k) of the atoms. Raises DataError."""
    if value is None:
        return None
    try:
        array = np.array(value, dtype=np.float64)
        array = array.reshape(-1) if name == "fparam" else array.reshape(rows, -1)
    except (TypeError, ValueError):
        array = np.array([np.nan])
    if not np.isfinite(array).all():
        whose = "of the frame" if name == "fparam" else f"for each of {rows} atoms"
        raise DataError(f"`{name}` is {repr(value)[:60]}; expected finite numbers {whose}. Correct it.")
    return array


def _finite(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`atoms.<name>` (n, 3) as a contiguous float64 array. Raises DataError naming the rows that are not finite."""
    if not np.isfinite(values).all():
        rows = np.flatnonzero(~np.isfinite(values).all(axis=1))[:5].tolist()
        raise DataError(
            f"`atoms.{name}` is not finite in rows {rows}; expected numbers in A. Restart from the last good structure."
        )
    return np.ascontiguousarray(values, dtype=np.float64)


def _type_table(type_map: tuple[str, ...]) -> np.ndarray:
    """Type of each atomic number, -1 where the model does not know the element, (n_elements,) int64."""
    table = np.full(len(chemical_symbols), -1, dtype=np.int64)
    for index, name in enumerate(type_map):
        if name in atomic_numbers:
            table[atomic_numbers[name]] = index
    return table


def _to_results(prediction: Prediction, volume: float | None) -> dict[str, Any]:
    """ASE's results: stress = -sym(virial)/V, stresses = -sym(atom_virial)/V, in Voigt order."""
    energy = float(prediction.energy[0])
    energies = prediction.atom_energy.detach().cpu().numpy().astype(np.float64)
    results: dict[str, Any] = {"energy": energy, "free_energy": energy, "energies": energies}
    if prediction.forces is not None:
        results["forces"] = prediction.forces.detach().cpu().numpy().astype(np.float64)
    if volume is not None:
        if prediction.virial is not None:
            virial = prediction.virial[0].detach().cpu().numpy().astype(np.float64)
            results["stress"] = full_3x3_to_voigt_6_stress(-virial / volume)
        if prediction.atom_virial is not None:
            atom_virial = prediction.atom_virial.detach().cpu().numpy().astype(np.float64)
            results["stresses"] = full_3x3_to_voigt_6_stress(-atom_virial / volume)
    return results
