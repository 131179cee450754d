"""A `Student` by the native kernels: `StudentCalculator`, frame by frame, neighbour lists included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dpsim.calculators.base import Calculator, join_predictions, nothing
from dpsim.data.frame import Batch, Frame, Prediction
from dpsim.errors import SimulationError
from dpsim.kernels.native import NativeError
from dpsim.kernels.student import Array, NativeStudent, Workspace
from dpsim.models.checkpoint import model_bytes

if TYPE_CHECKING:
    from dpsim.models.student import Student


class StudentCalculator(Calculator):
    """Evaluate a `Student` with the native kernels, on a CPU or a CUDA device, in the student's precision.

    Args: threads: CPU threads; default: what torch has at the first call.
    Raises: NativeError where there is no native library, or no such device for it (dpsim.kernels.student.usable).
    """

    def __init__(self, model: Student, device: str | torch.device = "cpu", threads: int | None = None):
        self.model = model
        self.device = torch.device(device)
        self.type_map = tuple(model.type_map)
        self.rcut = float(model.rcut)
        self._threads = threads
        self._native = NativeStudent(model_bytes(model))
        self._workspace: Workspace | None = None

    def compute(
        self, batch: Batch, *, forces: bool = True, virial: bool = True, atom_virial: bool = False
    ) -> Prediction:
        """As documented in Calculator. The batch's edges only say which directions are periodic."""
        if batch.n_atoms == 0:
            return nothing(batch.n_frames, forces, virial, atom_virial)
        # A direction that no pair within rcut crosses is as good as open.
        crossed = torch.zeros(batch.n_frames, 3).index_add(
            0, batch.frame_index[batch.center].cpu(), (batch.shift != 0).float().cpu()
        )
        atoms = np.split(np.arange(batch.n_atoms), np.cumsum(batch.n_atoms_per_frame.tolist())[:-1])
        types, positions, cell = (x.cpu().numpy() for x in (batch.types, batch.positions.detach(), batch.cell))
        wanted = {"forces": forces, "virial": virial, "atom_virial": atom_virial}
        return join_predictions(
            [
                self.evaluate(types[a], positions[a], cell[k], pbc, **wanted)
                for k, (a, pbc) in enumerate(zip(atoms, (crossed > 0).numpy(), strict=True))
            ]
        )

    def compute_frames(
        self, frames: Sequence[Frame], *, forces: bool = True, virial: bool = True, atom_virial: bool = False
    ) -> Iterator[Prediction]:
        """As documented in Calculator, without edges in Python."""
        for f in frames:
            yield self.evaluate(
                f.types, f.positions, f.cell, f.pbc, forces=forces, virial=virial, atom_virial=atom_virial
            )

    def evaluate(
        self,
        types: np.ndarray,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        skin: float = 0.0,
        *,
        forces: bool = True,
        virial: bool = True,
        atom_virial: bool = False,
    ) -> Prediction:
        """One structure: types (n,), positions (n, 3) A, cell (3, 3) A, pbc (3,); pairs within rcut + skin are kept.

        Raises: SimulationError when a result is not finite, or atoms overlap.
        """
        if self._workspace is None:
            self._workspace = Workspace(self._threads, device=self.device)
        wanted = {"forces": forces, "virial": virial, "atom_virial": atom_virial}
        try:
            found = self._native.compute(self._workspace, types, positions, cell, pbc, skin, **wanted)
        except NativeError as error:
            if error.refused:  # overlapping atoms, a flat cell, ...
                raise SimulationError(f"the structure cannot be computed: {error}") from error
            raise
        self._count_below_range(found.below_range, self._native.r_min)
        return Prediction(
            energy=torch.tensor([found.energy], dtype=torch.float64),
            atom_energy=torch.from_numpy(found.atom_energy),
            forces=_tensor(found.forces),
            virial=None if found.virial is None else torch.from_numpy(found.virial)[None],
            atom_virial=_tensor(found.atom_virial),
        )

    @property
    def n_rebuilds(self) -> int:
        """Neighbour lists built since the start, or since `forget`."""
        return 0 if self._workspace is None else self._workspace.n_rebuilds

    def forget(self) -> None:
        """Drop the neighbour list: the next structure is evaluated as if it were the first."""
        self._workspace = None

    def __getstate__(self) -> dict[str, Any]:
        # The workspace is a cache: a pickled or copied calculator makes its own.
        return self.__dict__ | {"_workspace": None}


def _tensor(array: Array | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array)
