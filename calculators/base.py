"""The contract every calculator fulfils: a `Batch` of configurations in, a `Prediction` out.

An engine (ASE, LAMMPS, OpenMM, i-PI), a protocol or a distillation loop sees only `Calculator`; `ModelCalculator` is
the one that evaluates an `EnergyModel`. `evaluate_frames` runs over any number of frames in bounded memory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from dpsim.data.frame import Batch, Frame, Prediction
from dpsim.errors import ConfigError, SimulationError

if TYPE_CHECKING:
    from dpsim.models.energy_model import EnergyModel


class Calculator(ABC):
    """Energies and their derivatives of configurations of known elements, from interactions within `rcut`.

    type_map: names of the elements, in the order that `Batch.types` counts; rcut: interaction range (A).
    """

    type_map: tuple[str, ...]
    rcut: float

    @abstractmethod
    def compute(
        self, batch: Batch, *, forces: bool = True, virial: bool = True, atom_virial: bool = False
    ) -> Prediction:
        """Energy E (eV) per frame and, where asked, forces -dE/dr (eV/A) and virials -dE/d(strain) (eV).

        Args: batch: frames counted in this calculator's `type_map`, with edges within `rcut`.
        Returns: Prediction, shapes as documented there; tensors detached from any graph.
        Raises: SimulationError when a result is not finite, naming the atoms.
        """


class ModelCalculator(Calculator):
    """Evaluate an `EnergyModel`; without any graph for its parameters."""

    def __init__(self, model: EnergyModel, device: str | torch.device = "cpu"):
        self.model = model
        self.device = torch.device(device)
        self.type_map = tuple(model.type_map)
        self.rcut = float(model.rcut)

    def compute(
        self, batch: Batch, *, forces: bool = True, virial: bool = True, atom_virial: bool = False
    ) -> Prediction:
        if batch.n_atoms == 0:
            return _nothing(batch.n_frames, forces, virial, atom_virial)
        if self.device.type != "cpu":
            batch = batch.to(self.device)
        prediction: Prediction = self.model(batch, forces=forces, virial=virial, atom_virial=atom_virial)
        _require_finite(prediction, batch, self.type_map)
        return prediction

    def __getstate__(self) -> dict[str, Any]:
        """A copied or pickled model travels as its config and weights: compiled functions inside cannot be pickled."""
        state = dict(self.__dict__)
        if hasattr(self.model, "config"):
            state["model"] = (type(self.model), self.model.config, self.model.state_dict(), self.model.metadata)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.model, tuple):
            kind, config, weights, metadata = self.model
            self.model = kind(config)
            self.model.load_state_dict(weights)
            self.model.metadata = metadata
            self.model.to(self.device).eval()


def _nothing(n_frames: int, forces: bool, virial: bool, atom_virial: bool) -> Prediction:
    """The prediction for frames without atoms: zero energy, zero virial, no forces."""
    zeros = lambda *shape: torch.zeros(shape, dtype=torch.float64)  # noqa: E731
    return Prediction(
        energy=zeros(n_frames),
        atom_energy=zeros(0),
        forces=zeros(0, 3) if forces else None,
        virial=zeros(n_frames, 3, 3) if virial else None,
        atom_virial=zeros(0, 3, 3) if atom_virial else None,
    )


def _require_finite(prediction: Prediction, batch: Batch, type_map: Sequence[str]) -> None:
    """Raise SimulationError naming the first atoms whose energy or force is NaN or infinite."""
    values = [prediction.atom_energy, prediction.forces, prediction.virial, prediction.energy]
    # A sum is finite only if every term is: one number decides, and the search below runs only after a failure.
    if all(math.isfinite(v.sum()) for v in values if v is not None):
        return
    bad = ~torch.isfinite(prediction.atom_energy)
    if prediction.forces is not None:
        bad |= ~torch.isfinite(prediction.forces).all(dim=-1)
    atoms = torch.nonzero(bad).flatten().tolist()
    offsets = torch.cumsum(batch.n_atoms_per_frame, 0) - batch.n_atoms_per_frame
    named = []
    for a in atoms[:5]:
        frame = int(batch.frame_index[a])
        where = f" of frame {frame}" if batch.n_frames > 1 else ""
        x, y, z = batch.positions[a].tolist()
        local = a - int(offsets[frame])
        named.append(f"{type_map[int(batch.types[a])]} atom {local}{where} at ({x:.4g}, {y:.4g}, {z:.4g}) A")
    more = f" and {len(atoms) - 5} more" if len(atoms) > 5 else ""
    raise SimulationError(
        f"the model's energy or force is not finite for {'; '.join(named) or 'the whole frame'}{more}. "
        "Check the structure for overlapping atoms or NaN positions; in dynamics, reduce the time step."
    )


def evaluate_frames(
    calculator: Calculator | EnergyModel,
    frames: Iterable[Frame],
    *,
    batch_atoms: int = 1024,
    forces: bool = True,
    virial: bool = True,
    atom_virial: bool = False,
) -> Iterator[Prediction]:
    """Yield one `Prediction` per frame, in order, evaluating at most `batch_atoms` atoms at a time.

    A frame larger than `batch_atoms` forms a batch by itself. Frames may be counted in another type_map. Memory is
    bounded by one batch, so `frames` can be a generator over a set larger than memory.

    Args: calculator: a Calculator, or a model to wrap in `ModelCalculator`; frames: configurations.
    Raises: ElementError for a frame with unknown elements; ConfigError if batch_atoms < 1.
    """
    if batch_atoms < 1:
        raise ConfigError(f"`batch_atoms` is {batch_atoms}; expected at least 1. The default, 1024, suits 2 cores.")
    if not isinstance(calculator, Calculator):
        parameter = next(calculator.parameters(), None)
        calculator = ModelCalculator(calculator, "cpu" if parameter is None else parameter.device)
    wanted = {"forces": forces, "virial": virial, "atom_virial": atom_virial}
    for group in _group_by_atoms(frames, batch_atoms):
        batch = Batch.from_frames([f.with_type_map(calculator.type_map) for f in group], calculator.rcut)
        yield from split_prediction(calculator.compute(batch, **wanted), batch)


def _group_by_atoms(frames: Iterable[Frame], batch_atoms: int) -> Iterator[list[Frame]]:
    """Consecutive frames in groups of at most `batch_atoms` atoms (or one larger frame)."""
    group: list[Frame] = []
    n_atoms = 0
    for frame in frames:
        if group and n_atoms + frame.n_atoms > batch_atoms:
            yield group
            group, n_atoms = [], 0
        group.append(frame)
        n_atoms += frame.n_atoms
    if group:
        yield group


def split_prediction(prediction: Prediction, batch: Batch) -> Iterator[Prediction]:
    """One prediction per frame: energy (1,), atom_energy (n_atoms,), forces (n_atoms, 3), virial (1, 3, 3)."""
    start = 0
    for k, n in enumerate(batch.n_atoms_per_frame.tolist()):
        atoms = slice(start, start + n)
        yield Prediction(
            energy=prediction.energy[k : k + 1],
            atom_energy=prediction.atom_energy[atoms],
            forces=None if prediction.forces is None else prediction.forces[atoms],
            virial=None if prediction.virial is None else prediction.virial[k : k + 1],
            atom_virial=None if prediction.atom_virial is None else prediction.atom_virial[atoms],
        )
        start += n
