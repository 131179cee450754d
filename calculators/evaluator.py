"""One structure after another, as dynamics asks for them: what stands between an engine's calculator and a model.

An `Evaluator` keeps what can be kept from step to step, above all a neighbour list with a skin.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpsim.calculators.base import ModelCalculator, calculator_of
from dpsim.calculators.student import StudentCalculator
from dpsim.data.frame import Batch, Prediction
from dpsim.neighbors import Edges, VerletList

if TYPE_CHECKING:
    from dpsim.models.potential import Potential

Memory = dict[str, NDArray[Any]]


def evaluator_of(model: Potential, device: str, skin: float) -> ModelEvaluator | StudentEvaluator:
    """The fastest evaluator for a model on a device; pairs within rcut + skin (A) are kept."""
    calculator = calculator_of(model, device)
    if isinstance(calculator, StudentCalculator):
        return StudentEvaluator(calculator, skin)
    assert isinstance(calculator, ModelCalculator)
    return ModelEvaluator(calculator, skin)


class Evaluator(ABC):
    """Energy, forces and virial of one structure after another.

    type_map: names of the elements, in the order that `types` count.
    """

    type_map: tuple[str, ...]

    @property
    @abstractmethod
    def below_range(self) -> int:
        """Directed pairs of the last structure nearer than where a student's tables begin."""

    @property
    def takes_parameters(self) -> bool:
        """Whether a model takes parameters of frames or atoms."""
        return False

    @abstractmethod
    def evaluate(
        self,
        types: NDArray[np.int64],
        positions: NDArray[np.float64],
        cell: NDArray[np.float64],
        pbc: NDArray[np.bool_],
        *,
        forces: bool = True,
        virial: bool = True,
        atom_virial: bool = False,
        fparam: NDArray[np.float64] | None = None,
        aparam: NDArray[np.float64] | None = None,
    ) -> Prediction:
        """The prediction for one frame: types (n,), positions (n, 3) A, cell (3, 3) A, pbc (3,).

        Args: fparam (k,), aparam (n, m): parameters of the frame and of the atoms, for models that take them.
        Raises: SimulationError when a result is not finite, DataError for a model that lacks its parameters.
        """

    def memory(self) -> Memory:
        """What, besides the present structure, rounding depends on: arrays to keep with a restart point."""
        return {}

    def recall(self, memory: Memory) -> None:  # noqa: B027 (nothing to do without a memory)
        """Go on as after `memory` was taken; {}: as if nothing had been evaluated before."""


class ModelEvaluator(Evaluator):
    """Whatever PyTorch evaluates. Results are a function of the present structure alone, so it has no memory."""

    def __init__(self, calculator: ModelCalculator, skin: float):
        self.calculator, self._skin, self.type_map = calculator, skin, calculator.type_map
        self._edges = _CurrentEdges(calculator.rcut, skin)

    def evaluate(
        self,
        types: NDArray[np.int64],
        positions: NDArray[np.float64],
        cell: NDArray[np.float64],
        pbc: NDArray[np.bool_],
        *,
        forces: bool = True,
        virial: bool = True,
        atom_virial: bool = False,
        fparam: NDArray[np.float64] | None = None,
        aparam: NDArray[np.float64] | None = None,
    ) -> Prediction:
        batch = self.batch(types, positions, cell, pbc)
        batch.fparam = None if fparam is None else torch.from_numpy(fparam)[None]
        batch.aparam = None if aparam is None else torch.from_numpy(aparam)
        return self.calculator.compute(batch, forces=forces, virial=virial, atom_virial=atom_virial)

    @property
    def takes_parameters(self) -> bool:
        model = self.calculator.model  # or a module that only looks like one
        return any(getattr(model, name, 0) > 0 for name in ("numb_fparam", "numb_aparam"))

    def batch(
        self,
        types: NDArray[np.int64],
        positions: NDArray[np.float64],
        cell: NDArray[np.float64],
        pbc: NDArray[np.bool_],
    ) -> Batch:
        """One structure with its pairs within rcut."""
        center, neighbor, shift = self._edges.update(positions, cell, pbc)
        return Batch(
            positions=torch.from_numpy(positions),
            types=torch.from_numpy(types),
            frame_index=torch.zeros(len(types), dtype=torch.int64),
            cell=torch.from_numpy(cell)[None],
            center=torch.from_numpy(center),
            neighbor=torch.from_numpy(neighbor),
            shift=torch.from_numpy(shift),
            n_atoms_per_frame=torch.tensor([len(types)]),
        )

    @property
    def below_range(self) -> int:
        return self.calculator.below_range

    def __getstate__(self) -> dict[str, Any]:
        # The neighbour list is a cache (and may hold native handles): a pickled or copied evaluator builds its own.
        return {key: value for key, value in self.__dict__.items() if key != "_edges"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._edges = _CurrentEdges(self.calculator.rcut, self._skin)


class StudentEvaluator(Evaluator):
    """A student by native kernels, which keep the neighbour list themselves.

    They put atoms and pairs in an order that suits the machine when they build the list. Sums are rounded in this
    order, so the structure that the list was built from is what has to be remembered.
    """

    def __init__(self, calculator: StudentCalculator, skin: float):
        self.calculator, self._skin, self.type_map = calculator, skin, calculator.type_map
        self._listed: Memory = {}  # the structure that the present list was built from
        self._to_list: Memory = {}  # one to build a list from before anything else

    def evaluate(
        self,
        types: NDArray[np.int64],
        positions: NDArray[np.float64],
        cell: NDArray[np.float64],
        pbc: NDArray[np.bool_],
        *,
        forces: bool = True,
        virial: bool = True,
        atom_virial: bool = False,
        fparam: NDArray[np.float64] | None = None,
        aparam: NDArray[np.float64] | None = None,
    ) -> Prediction:
        if self._to_list:
            m = self._to_list
            self.calculator.evaluate(
                m["types"], m["positions"], m["cell"], m["pbc"], self._skin, forces=False, virial=False
            )
            self._listed, self._to_list = m, {}
        before = self.calculator.n_rebuilds
        try:
            return self.calculator.evaluate(
                types, positions, cell, pbc, self._skin, forces=forces, virial=virial, atom_virial=atom_virial
            )
        finally:  # also where a result is not finite
            if self.calculator.n_rebuilds != before:
                self._listed = {
                    "types": types.copy(), "positions": positions.copy(), "cell": cell.copy(), "pbc": np.array(pbc)
                }  # fmt: skip

    @property
    def below_range(self) -> int:
        return self.calculator.below_range

    def memory(self) -> Memory:
        return dict(self._to_list or self._listed)

    def recall(self, memory: Memory) -> None:
        self.calculator.forget()
        self._listed, self._to_list = {}, dict(memory)

    def __getstate__(self) -> dict[str, Any]:
        # A copied calculator has no list: it builds the same one again.
        return self.__dict__ | {"_listed": {}, "_to_list": self.memory()}


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
