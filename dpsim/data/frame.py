"""`Frame` (one configuration, NumPy) and `Batch` (several, torch): what every other room is handed.

Vocabulary (shapes; units): positions (n_atoms, 3) A; cell (3, 3) A, rows are lattice vectors; pbc (3,);
types (n_atoms,) index into type_map; energy eV; forces (n_atoms, 3) eV/A; virial (3, 3) eV = -dE/d(strain);
fparam (n,), aparam (n_atoms, m): parameters of the frame and of the atoms, in any unit, that some models take.
atom_pref (n_atoms,): how much the error of each atom's force counts in a loss that weights atoms; no unit.
Edges are directed pairs i -> j: edge_vec = r_j - r_i + S.cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from dpsim.errors import DataError, ElementError
from dpsim.neighbors import Edges, neighbor_list


@dataclass(frozen=True)
class Frame:
    """One configuration of atoms, with labels where known.

    A frame without any periodic direction has `cell` = zeros and `pbc` = (False,)*3.
    """

    positions: np.ndarray
    types: np.ndarray
    type_map: tuple[str, ...]
    cell: np.ndarray
    pbc: np.ndarray
    energy: float | None = None
    forces: np.ndarray | None = None
    virial: np.ndarray | None = None
    source: str = ""  # where it came from, for error messages: "water/set.000 frame 12"
    fparam: np.ndarray | None = None
    aparam: np.ndarray | None = None
    atom_pref: np.ndarray | None = None

    @property
    def n_atoms(self) -> int:
        return len(self.types)

    @property
    def symbols(self) -> list[str]:
        return [self.type_map[t] for t in self.types]

    def with_type_map(self, type_map: Sequence[str]) -> Frame:
        """The same frame with types counted in another type_map. Raises KeyError-free ElementError on unknown names."""
        unknown = sorted({self.type_map[t] for t in np.unique(self.types)} - set(type_map))
        if unknown:
            raise ElementError(
                f"elements {unknown} of {self.source or 'the frame'} are not in type_map {list(type_map)}. "
                "Use a model (or a type_map) that knows them."
            )
        index = np.array([type_map.index(s) if s in type_map else -1 for s in self.type_map], dtype=np.int64)
        return replace(self, types=index[self.types], type_map=tuple(type_map))


@dataclass
class Batch:
    """Several frames as flat tensors, with the directed edge list of all of them, sorted by centre atom.

    center, neighbor: (n_edges,) atom indices i, j into the batch; shift (n_edges, 3) integer cell shifts S.
    frame_index: (n_atoms,) the frame each atom belongs to. has_*: (n_frames,) 1.0 where that label exists, else 0.
    fparam (n_frames, n), aparam (n_atoms, m): NaN where a frame has none; None where no frame has any.
    atom_pref (n_atoms,): 0 where a frame has none; None where no frame has any.
    Positions and cells stay float64: differences are taken in float64 and cast afterwards.
    """

    positions: torch.Tensor
    types: torch.Tensor
    frame_index: torch.Tensor
    cell: torch.Tensor
    center: torch.Tensor
    neighbor: torch.Tensor
    shift: torch.Tensor
    n_atoms_per_frame: torch.Tensor
    energy: torch.Tensor | None = None
    forces: torch.Tensor | None = None
    virial: torch.Tensor | None = None
    has_energy: torch.Tensor | None = None
    has_forces: torch.Tensor | None = None
    has_virial: torch.Tensor | None = None
    sources: tuple[str, ...] = ()
    fparam: torch.Tensor | None = None
    aparam: torch.Tensor | None = None
    atom_pref: torch.Tensor | None = None

    @property
    def n_frames(self) -> int:
        return len(self.cell)

    @property
    def n_atoms(self) -> int:
        return len(self.types)

    def edge_vectors(self) -> torch.Tensor:
        """edge_vec = r_j - r_i + S.cell, (n_edges, 3) A, float64."""
        frame = self.frame_index[self.center]
        shift = self.shift.to(self.cell.dtype)
        if self.n_frames == 1:
            shift = shift @ self.cell[0]
        else:
            shift = torch.einsum("es,esk->ek", shift, self.cell[frame])
        return self.positions[self.neighbor] - self.positions[self.center] + shift

    def to(self, device: torch.device | str) -> Batch:
        moved: dict[str, Any] = {
            f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)
        }
        return replace(self, **moved)

    @classmethod
    def from_frames(cls, frames: Sequence[Frame], cutoff: float, edges: Sequence[Edges] | None = None) -> Batch:
        """Concatenate frames (all in one type_map) and build their edges within `cutoff` (A).

        edges: what `neighbor_list` gives for each frame, if the caller has it already.
        """
        offsets = np.cumsum([0] + [f.n_atoms for f in frames])
        center, neighbor, shift = [], [], []
        if edges is None:
            edges = [neighbor_list(f.positions, f.cell, f.pbc, cutoff) for f in frames]
        for offset, (i, j, s) in zip(offsets, edges, strict=False):
            center.append(i + offset)
            neighbor.append(j + offset)
            shift.append(s)
        n_atoms = np.array([f.n_atoms for f in frames])

        def flag(name: str) -> torch.Tensor:
            return torch.tensor([float(getattr(f, name) is not None) for f in frames], dtype=torch.float64)

        def label(name: str, shape: tuple[int, ...]) -> np.ndarray:
            return np.stack([np.zeros(shape) if (v := getattr(f, name)) is None else np.asarray(v) for f in frames])

        forces = [np.zeros((f.n_atoms, 3)) if f.forces is None else f.forces for f in frames]
        as_f64 = lambda x: torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64))  # noqa: E731
        as_i64 = lambda x: torch.from_numpy(np.ascontiguousarray(x, dtype=np.int64))  # noqa: E731
        return cls(
            positions=as_f64(np.concatenate([f.positions for f in frames])),
            types=as_i64(np.concatenate([f.types for f in frames])),
            frame_index=as_i64(np.repeat(np.arange(len(frames)), n_atoms)),
            cell=as_f64(np.stack([f.cell for f in frames])),
            center=as_i64(np.concatenate(center)),
            neighbor=as_i64(np.concatenate(neighbor)),
            shift=as_i64(np.concatenate(shift)),
            n_atoms_per_frame=as_i64(n_atoms),
            energy=as_f64(label("energy", ())),
            forces=as_f64(np.concatenate(forces)),
            virial=as_f64(label("virial", (3, 3))),
            has_energy=flag("energy"),
            has_forces=flag("forces"),
            has_virial=flag("virial"),
            sources=tuple(f.source for f in frames),
            fparam=_joined([f.fparam for f in frames], [1] * len(frames), frames),
            aparam=_joined([f.aparam for f in frames], [f.n_atoms for f in frames], frames),
            atom_pref=as_f64(np.concatenate([_or_zeros(f.atom_pref, f.n_atoms) for f in frames]))
            if any(f.atom_pref is not None for f in frames)
            else None,
        )


def _or_zeros(values: np.ndarray | None, n: int) -> np.ndarray:
    return np.zeros(n) if values is None else values


def _joined(values: list[np.ndarray | None], rows: list[int], frames: Sequence[Frame]) -> torch.Tensor | None:
    """Parameters of frames, `rows` of them each, one below the other; NaN for the frames without, None if all are."""
    width = {np.shape(v)[-1] for v in values if v is not None}
    if len(width) > 1:
        raise DataError(
            f"the frames {', '.join(f.source or '?' for f in frames[:5])} carry parameters of {sorted(width)} numbers; "
            "expected the same number in all. Correct their fparam or aparam."
        )
    if not width:
        return None
    shapes = [(n, *width) for n in rows]
    blocks = [np.full(s, np.nan) if v is None else np.reshape(v, s) for v, s in zip(values, shapes, strict=True)]
    return torch.from_numpy(np.concatenate(blocks).astype(np.float64))


@dataclass
class Prediction:
    """What a model says of a batch. Sums over atoms are accumulated in float64.

    energy (n_frames,) eV; atom_energy (n_atoms,) eV; forces (n_atoms, 3) eV/A = -dE/dr;
    virial (n_frames, 3, 3) eV = -dE/d(strain), first index the force component;
    atom_virial (n_atoms, 3, 3) eV, summing to virial (each pair's share goes to the centre atom).
    """

    energy: torch.Tensor
    atom_energy: torch.Tensor
    forces: torch.Tensor | None = None
    virial: torch.Tensor | None = None
    atom_virial: torch.Tensor | None = None
