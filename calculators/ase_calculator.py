"""A Deep Potential as an ASE calculator: `atoms.calc = DPCalculator("water-pbe0ts")`.

Units are ASE's: energy eV, forces eV/A, stress eV/A^3 (tension positive, Voigt xx yy zz yz xz xy).
Results depend on numbers, positions, cell and pbc only; `atoms.info` is never read.
"""

from __future__ import annotations

from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from dpsim.calculators.base import ModelCalculator
from dpsim.data.frame import Batch, Prediction
from dpsim.errors import ConfigError, DataError, ElementError, MissingDependencyError
from dpsim.neighbors import Edges, VerletList

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

Precision = Literal["float32", "float64"]
DEFAULT_SKIN = 1.0  # A; see DPCalculator


class DPCalculator(AseCalculator):
    """Energy, forces and stress of a Deep Potential, E = sum_i E_i(neighbours of i within rcut).

    forces = -dE/dr; stress = (1/V) dE/d(strain); stresses are the atoms' shares: stresses.sum(axis=0) = stress.
    Stress and stresses need a cell of three lattice vectors. Any pbc, triclinic and small cells are allowed.

    The neighbour list keeps pairs within rcut + skin until an atom has moved skin/2; each step takes the pairs within
    rcut from it, in a fixed order, so equal positions give equal forces whatever was calculated before.

    Args:
        model: name of a bundled model, path of a .dpsim file, or an EnergyModel (used as it is, not copied).
        precision: "float32" or "float64"; None keeps the model's own.
        device: "cpu", "cuda", ...
        skin: A, >= 0; a speed setting only.

    Raises: ElementError (elements the model does not know), DataError (non-finite positions),
        SimulationError (non-finite energy or forces), PropertyNotImplementedError (stress without a cell).
    Source: ASE's calculator interface; Verlet, Phys. Rev. 159, 98 (1967) for the skin.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "stresses"]
    ignored_changes = {"initial_charges", "initial_magmoms"}

    def __init__(
        self,
        model: str | PathLike[str] | EnergyModel = "water-pbe0ts",
        *,
        precision: Precision | None = None,
        device: str = "cpu",
        skin: float = DEFAULT_SKIN,
    ):
        super().__init__()
        if not (np.isfinite(skin) and skin >= 0):
            raise ConfigError(f"`skin` is {skin}; expected a length >= 0 A. The default is {DEFAULT_SKIN} A.")
        name = fspath(model) if isinstance(model, str | PathLike) else f"{type(model).__name__} object"
        self.parameters.update(model=name, precision=precision, device=str(device), skin=float(skin))
        self._evaluator = ModelCalculator(_resolve_model(model, precision, device), device)
        self._type_of_number = _type_table(self._evaluator.type_map)
        self._edges = _CurrentEdges(self._evaluator.rcut, float(skin))

    @property
    def model(self) -> EnergyModel:
        """The EnergyModel behind this calculator."""
        return self._evaluator.model

    def _get_name(self) -> str:
        return "dpsim"

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.parameters.items())
        return f"DPCalculator({settings})"

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Settings are fixed at construction: raise ConfigError for any change."""
        if kwargs:
            raise ConfigError(
                f"DPCalculator.set was given {sorted(kwargs)}; expected nothing, settings are fixed. "
                "Construct a new DPCalculator with them."
            )
        return {}

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
        derivatives = bool(asked & {"forces", "stress", "stresses"})
        # One backward pass gives forces and virial together; an NPT step asks for them in separate calls.
        prediction = self._evaluator.compute(
            self._make_batch(self.atoms),
            forces=derivatives,
            virial=derivatives and has_volume,
            atom_virial="stresses" in asked and has_volume,
        )
        self.results.update(_to_results(prediction, self.atoms.get_volume() if has_volume else None))

    def _make_batch(self, atoms: Atoms) -> Batch:
        """One frame with the edges within rcut. Raises ElementError, DataError."""
        types = self._types(atoms)
        positions = np.ascontiguousarray(atoms.positions, dtype=np.float64)
        cell = np.asarray(atoms.cell.array, dtype=np.float64)
        for name, values in (("positions", positions), ("cell", cell)):
            if not np.isfinite(values).all():
                rows = np.flatnonzero(~np.isfinite(values).all(axis=1))[:5].tolist()
                raise DataError(
                    f"`atoms.{name}` is not finite in rows {rows}; expected numbers in A. "
                    "Restart from the last good structure."
                )
        center, neighbor, shift = self._edges.update(positions, cell, np.asarray(atoms.pbc))
        n_atoms = len(positions)
        return Batch(
            positions=torch.from_numpy(positions),
            types=torch.from_numpy(types),
            frame_index=torch.zeros(n_atoms, dtype=torch.int64),
            cell=torch.from_numpy(cell)[None],
            center=torch.from_numpy(center),
            neighbor=torch.from_numpy(neighbor),
            shift=torch.from_numpy(shift),
            n_atoms_per_frame=torch.tensor([n_atoms]),
        )

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

    def __getstate__(self) -> dict[str, Any]:
        # The neighbour list is a cache (and may hold native handles): a pickled or copied calculator builds its own.
        return {key: value for key, value in self.__dict__.items() if key != "_edges"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._edges = _CurrentEdges(self._evaluator.rcut, self.parameters["skin"])


class _CurrentEdges:
    """The directed pairs within `rcut`, taken each step from a Verlet list of those within rcut + skin.

    The list is put in the order (i, j, S) when it changes, and distances are elementwise sums, so the pairs and their
    order are a function of the present structure alone. Coordinates are handled one by one: contiguous gathers of a
    column are four times faster than gathers of rows.
    """

    def __init__(self, rcut: float, skin: float):
        self._rcut_squared = rcut * rcut
        self._verlet = VerletList(rcut, skin)
        self._listed: Edges | None = None  # what VerletList returned last
        self._candidates: Edges
        self._counts: np.ndarray  # candidates of each centre
        self._cell = np.full((3, 3), np.nan)
        self._offsets: list[np.ndarray]  # the columns of S.cell

    def update(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Edges:
        """i, j (n_edges,) and S (n_edges, 3), int64, of the pairs with |r_j - r_i + S.cell| <= rcut."""
        listed = self._verlet.update(positions, cell, pbc)
        changed = self._listed is None or any(a is not b for a, b in zip(listed, self._listed, strict=True))
        if changed:
            i, j, shift = listed
            order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], j, i))
            self._listed, self._candidates = listed, (i[order], j[order], shift[order])
            self._counts = np.bincount(i, minlength=len(positions))
        i, j, shift = self._candidates
        if changed or not np.array_equal(cell, self._cell):
            s = [np.ascontiguousarray(shift[:, k], dtype=np.float64) for k in range(3)]
            self._offsets = [s[0] * cell[0, k] + s[1] * cell[1, k] + s[2] * cell[2, k] for k in range(3)]
            self._cell = cell.copy()
        squared = np.zeros(len(i))
        for k in range(3):
            x = np.ascontiguousarray(positions[:, k])
            component = x.take(j)
            component -= np.repeat(x, self._counts)  # x.take(i): i is sorted
            component += self._offsets[k]
            component *= component
            squared += component
        within = np.flatnonzero(squared <= self._rcut_squared)
        return i.take(within), j.take(within), shift.take(within, axis=0)


def _resolve_model(model: str | PathLike[str] | EnergyModel, precision: Precision | None, device: str) -> EnergyModel:
    """Load by name or path; an EnergyModel is used as it is, or copied where `precision` asks for another dtype."""
    if isinstance(model, str | PathLike):
        from dpsim.models.checkpoint import load_model

        return load_model(fspath(model), device=device, precision=precision)
    if precision not in (None, "float32", "float64"):
        raise ConfigError(f"`precision` is {precision!r}; expected 'float32', 'float64' or None (the model's own).")
    if precision is not None and getattr(torch, precision) != model.dtype:
        config = model.config.model_copy(update={"precision": precision})
        converted = type(model)(config)
        converted.load_state_dict(model.state_dict())
        converted.metadata = model.metadata
        model = converted
    return model.to(device)


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
