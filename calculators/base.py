"""The contract every calculator fulfils: a `Batch` of configurations in, a `Prediction` out.

An engine (ASE, LAMMPS, OpenMM, i-PI), a protocol or a distillation loop sees only `Calculator`. `calculator_of` makes
the one for a model: `ModelCalculator` for whatever PyTorch evaluates, `StudentCalculator` (student.py) for a student
with native kernels. `evaluate_frames` runs over any number of frames in bounded memory.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from dpsim.data.frame import Batch, Frame, Prediction
from dpsim.errors import ConfigError, SimulationError
from dpsim.kernels import student as native_student
from dpsim.models.student import Student

if TYPE_CHECKING:
    from dpsim.models.potential import Potential


class Calculator(ABC):
    """Energies and their derivatives of configurations of known elements, from interactions within `rcut`.

    type_map: names of the elements, in the order that `Batch.types` counts; rcut: interaction range (A).
    below_range: directed pairs of the last frames nearer than where a student's tables begin; 0 for other models.
    """

    type_map: tuple[str, ...]
    rcut: float
    below_range: int = 0
    _warned_of_range = False

    @abstractmethod
    def compute(
        self, batch: Batch, *, forces: bool = True, virial: bool = True, atom_virial: bool = False
    ) -> Prediction:
        """Energy E (eV) per frame and, where asked, forces -dE/dr (eV/A) and virials -dE/d(strain) (eV).

        Args: batch: frames counted in this calculator's `type_map`, with edges within `rcut`.
        Returns: Prediction, shapes as documented there; tensors detached from any graph.
        Raises: SimulationError when a result is not finite, naming the atoms.
        """

    def compute_frames(
        self, frames: Sequence[Frame], *, forces: bool = True, virial: bool = True, atom_virial: bool = False
    ) -> Iterator[Prediction]:
        """The same of frames counted in this calculator's `type_map`: one prediction for each."""
        batch = Batch.from_frames(frames, self.rcut)
        yield from split_prediction(self.compute(batch, forces=forces, virial=virial, atom_virial=atom_virial), batch)

    def _count_below_range(self, count: int, r_min: float) -> None:
        """Keep the count in `below_range`, and warn of the first that is not zero."""
        self.below_range = count
        if count and not self._warned_of_range:
            self._warned_of_range = True
            warnings.warn(
                f"{count} pairs are nearer than {r_min:g} A, where the student's tables begin: the table is continued "
                "smoothly; the model knows nothing there. Check the structure; in dynamics, reduce the time step. "
                "(Said once; `below_range` keeps counting.)",
                RuntimeWarning,
                stacklevel=3,
            )


class ModelCalculator(Calculator):
    """Evaluate a model with PyTorch, on any device, without any graph for its parameters."""

    def __init__(self, model: Potential, device: str | torch.device = "cpu"):
        self.model = model
        self.device = torch.device(device)
        self.type_map = tuple(model.type_map)
        self.rcut = float(model.rcut)

    def compute(
        self, batch: Batch, *, forces: bool = True, virial: bool = True, atom_virial: bool = False
    ) -> Prediction:
        if batch.n_atoms == 0:
            return nothing(batch.n_frames, forces, virial, atom_virial)
        if self.device.type != "cpu":
            batch = batch.to(self.device)
        prediction: Prediction = self.model(batch, forces=forces, virial=virial, atom_virial=atom_virial)
        if isinstance(self.model, Student):
            self._count_below_range(self.model.below_range, self.model.config.r_min)
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


def nothing(n_frames: int, forces: bool, virial: bool, atom_virial: bool) -> Prediction:
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


def calculator_of(model: Potential, device: str | torch.device | None = None) -> Calculator:
    """The fastest calculator for a model on a device (None: where its parameters are).

    A student runs by native kernels where these are; by PyTorch otherwise, after one warning.
    """
    from dpsim.calculators.student import StudentCalculator

    if caveat := getattr(getattr(model, "config", None), "caveat", ""):
        warnings.warn(caveat, UserWarning, stacklevel=2)
    if device is None:
        device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    if isinstance(model, Student) and native_student.usable(device):
        return StudentCalculator(model, device)
    return ModelCalculator(model.to(device), device)


def evaluate_frames(
    calculator: Calculator | Potential,
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

    Args: calculator: a Calculator, or a model, for which `calculator_of` makes one; frames: configurations.
    Raises: ElementError for a frame with unknown elements; ConfigError if batch_atoms < 1.
    """
    if batch_atoms < 1:
        raise ConfigError(f"`batch_atoms` is {batch_atoms}; expected at least 1. The default, 1024, suits 2 cores.")
    if not isinstance(calculator, Calculator):
        calculator = calculator_of(calculator)
    wanted = {"forces": forces, "virial": virial, "atom_virial": atom_virial}
    for group in _group_by_atoms(frames, batch_atoms):
        yield from calculator.compute_frames([f.with_type_map(calculator.type_map) for f in group], **wanted)


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


def join_predictions(predictions: Sequence[Prediction]) -> Prediction:
    """One prediction of all frames from those of one or more frames each, all of the same quantities."""

    def joined(name: str) -> Any:
        values = [getattr(p, name) for p in predictions]
        return None if values[0] is None else torch.cat(values)

    return Prediction(**{f.name: joined(f.name) for f in fields(Prediction)})


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
