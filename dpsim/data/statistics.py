"""What a model needs to know of its data before training: energy bias per element, environment scale, neighbours.

Sums are accumulated frame by frame, so memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from dpsim.data.frame import Batch
from dpsim.data.system import System
from dpsim.errors import DataError
from dpsim.kernels.environment import environment_reference
from dpsim.neighbors import neighbor_list

_STD_FLOOR, _STD_DEFAULT = 1e-2, 1e-1  # DeePMD-kit's: smallest scale, and the scale where nothing was seen


@dataclass(frozen=True)
class Statistics:
    """energy_bias (n_types,) eV; davg, dstd (n_types, 4) 1/A: mean and standard deviation of environment rows of each
    centre type, empty slots counted; max_neighbors (n_types,): largest number of neighbours of each type around any
    atom; max_neighbors_total: of all types; min_distance A (inf if no two atoms are within the cutoff)."""

    energy_bias: np.ndarray
    davg: np.ndarray
    dstd: np.ndarray
    max_neighbors: np.ndarray
    max_neighbors_total: int
    min_distance: float
    n_frames: int = 0
    environment: EnvironmentSums | None = None

    def with_sel(self, sel: Sequence[int] | int) -> Statistics:
        """The same with other neighbour slots, for numbers of `compute_statistics`."""
        if self.environment is None:
            return self
        davg, dstd = self.environment.mean_and_std(int(np.sum(sel)))
        return replace(self, davg=davg, dstd=dstd)


def compute_statistics(
    systems: Sequence[System],
    type_map: Sequence[str],
    rcut: float,
    rcut_smth: float,
    *,
    sel: Sequence[int] | int | None = None,
    n_frames: int | None = 1000,
    seed: int = 0,
) -> Statistics:
    """Statistics of a seeded sample of frames: energy bias, environment matrix, neighbours.

    Args: rcut, rcut_smth A; sel: neighbour slots, per type or in all (None: `auto_sel` of these data), which fixes how
    many empty slots count in davg, dstd; n_frames: size of the sample, at least one frame per system (None: all).
    Raises: DataError if there are no frames, ElementError for an element outside type_map.
    """
    bias, environment = EnergyBias(len(type_map)), EnvironmentSums(len(type_map))
    taken = sample_frames(systems, n_frames, seed)
    for system, k in taken:
        frame = systems[system].frame(k).with_type_map(type_map)
        if frame.energy is not None:
            bias.add(np.bincount(frame.types, minlength=len(type_map)), frame.energy)
        environment.add(Batch.from_frames([frame], rcut), rcut, rcut_smth)
    if sel is None:
        sel = _wrap_up(environment.max_neighbors, 1.1)
    davg, dstd = environment.mean_and_std(int(np.sum(sel)))
    return Statistics(
        energy_bias=bias.solve(),
        davg=davg,
        dstd=dstd,
        max_neighbors=environment.max_neighbors,
        max_neighbors_total=environment.max_neighbors_total,
        min_distance=environment.min_distance,
        n_frames=len(taken),
        environment=environment,
    )


def energy_bias(
    systems: Sequence[System], type_map: Sequence[str], *, n_frames: int | None = 1000, seed: int = 0
) -> np.ndarray:
    """The energy bias (n_types,) eV of `compute_statistics`, alone: nothing but energies and compositions is used."""
    bias = EnergyBias(len(type_map))
    for system, k in sample_frames(systems, n_frames, seed):
        frame = systems[system].frame(k).with_type_map(type_map)
        if frame.energy is not None:
            bias.add(np.bincount(frame.types, minlength=len(type_map)), frame.energy)
    return bias.solve()


def auto_sel(stats: Statistics, factor: float = 1.1) -> list[int]:
    """Neighbour slots per type: the largest number seen, times `factor`, rounded up to a multiple of 4 (DeePMD-kit)."""
    return _wrap_up(stats.max_neighbors, factor)


def auto_sel_total(stats: Statistics, factor: float = 1.1) -> int:
    """Neighbour slots for all types together, by the rule of `auto_sel`: for descriptors that mix types (DPA-1)."""
    return _wrap_up(np.array([stats.max_neighbors_total]), factor)[0]


def sample_frames(systems: Sequence[System], n_frames: int | None, seed: int) -> list[tuple[int, int]]:
    """(system, frame) of a sample: each system by its share of frames, at least one, so that no element is missed."""
    total = sum(len(s) for s in systems)
    if total == 0:
        raise DataError("`systems` has no frames; expected at least one. Correct the data's path.")
    generator = np.random.default_rng(seed)
    taken = []
    for index, system in enumerate(systems):
        share = len(system) if n_frames is None else max(1, round(n_frames * len(system) / total))
        chosen = generator.choice(len(system), size=min(share, len(system)), replace=False)
        taken += [(index, int(k)) for k in np.sort(chosen)]
    return taken


@dataclass
class EnergyBias:
    """Least-squares energy per element: argmin_b sum_frames (E - sum_t n_t b_t)^2, of minimum norm.

    Frames of one composition enter through their number and mean energy, which leaves the solution the same.
    Where compositions cannot tell elements apart (one composition only), the minimum norm decides.
    Source: Zhang et al., DPA-2, npj Comput. Mater. 10, 293 (2024), Eq. 6.
    """

    n_types: int
    _sums: dict[tuple[int, ...], tuple[int, float]] = field(default_factory=dict)

    def add(self, counts: np.ndarray, energy: float) -> None:
        """counts (n_types,): atoms of each type; energy eV."""
        key = tuple(int(c) for c in counts)
        n, mean = self._sums.get(key, (0, 0.0))
        self._sums[key] = (n + 1, mean + (energy - mean) / (n + 1))

    def solve(self) -> np.ndarray:
        """Energy bias (n_types,) eV; zeros if no energies were seen."""
        if not self._sums:
            return np.zeros(self.n_types)
        root = np.sqrt([n for n, _ in self._sums.values()])
        counts = np.array(list(self._sums), dtype=np.float64)
        energies = np.array([mean for _, mean in self._sums.values()])
        return np.linalg.lstsq(root[:, None] * counts, root * energies, rcond=None)[0]


class EnvironmentSums:
    """Sums over the rows R = (s, s x/r, s y/r, s z/r) of each centre type, and neighbour counts.

    davg = [<s>, 0, 0, 0], dstd = [sigma_s, sigma_a, sigma_a, sigma_a] (sigma_a: of the three angular columns
    together), averages over n_atoms * sum(sel) slots, of which the empty ones are zero. (DeePMD-kit's convention.)
    """

    def __init__(self, n_types: int):
        self._n_types = n_types
        self._n_atoms = np.zeros(n_types)
        self._sum = np.zeros((n_types, 2))  # of s, and of the angular columns
        self._squares = np.zeros((n_types, 2))
        self.max_neighbors = np.zeros(n_types, dtype=np.int64)
        self.max_neighbors_total = 0
        self.min_distance = float("inf")

    def add(self, batch: Batch, rcut: float, rcut_smth: float) -> None:
        """Add a batch whose edges reach rcut."""
        types = batch.types.numpy()
        self._n_atoms += np.bincount(types, minlength=self._n_types)
        if len(batch.center) == 0:
            return
        edge_vec = batch.edge_vectors()
        self.min_distance = min(self.min_distance, float(torch.linalg.vector_norm(edge_vec, dim=1).min()))
        rows = environment_reference(edge_vec, rcut, rcut_smth)[0].numpy()
        center_type = types[batch.center.numpy()]
        for sums, values in ((self._sum, rows), (self._squares, rows * rows)):
            sums[:, 0] += np.bincount(center_type, values[:, 0], self._n_types)
            sums[:, 1] += np.bincount(center_type, values[:, 1:].sum(axis=1), self._n_types)
        slot = batch.center.numpy() * self._n_types + types[batch.neighbor.numpy()]
        counts = np.bincount(slot, minlength=batch.n_atoms * self._n_types).reshape(-1, self._n_types)
        self.max_neighbors = np.maximum(self.max_neighbors, counts.max(axis=0))
        self.max_neighbors_total = max(self.max_neighbors_total, int(counts.sum(axis=1).max()))

    def mean_and_std(self, n_slots: int) -> tuple[np.ndarray, np.ndarray]:
        """davg, dstd (n_types, 4), with n_slots = sum(sel) rows per atom."""
        davg, dstd = np.zeros((self._n_types, 4)), np.full((self._n_types, 4), _STD_DEFAULT)
        seen = self._n_atoms > 0
        number = np.maximum(self._n_atoms * max(n_slots, 1), 1)[:, None] * np.array([1, 3])
        mean = self._sum / number
        std = np.maximum(np.sqrt(np.maximum(self._squares / number - mean**2, 0)), _STD_FLOOR)
        davg[seen, 0] = mean[seen, 0]
        dstd[seen] = std[seen][:, [0, 1, 1, 1]]
        return davg, dstd


@dataclass(frozen=True)
class ParameterStatistics:
    """avg, std (k,): mean and standard deviation of parameters over the data."""

    avg: np.ndarray
    std: np.ndarray


def parameter_statistics(
    systems: Sequence[System],
    name: Literal["fparam", "aparam"],
    width: int,
    *,
    n_frames: int | None = 1000,
    seed: int = 0,
    default: Sequence[float] | None = None,
) -> ParameterStatistics:
    """Mean and standard deviation (at least 1e-2) of frame or atomic parameters of a sample of frames.

    Args: width: how many the model takes; default: those of frames without any.
    Raises: DataError naming the first frame that has none, or another number of them.
    """
    rows = []
    for system, k in sample_frames(systems, n_frames, seed):
        frame = systems[system].frame(k)
        value = getattr(frame, name) if getattr(frame, name) is not None else default
        where = "for each atom" if name == "aparam" else "for each frame"
        if value is None or np.shape(value)[-1] != width:
            got = "absent" if value is None else f"{np.shape(value)[-1]} numbers"
            raise DataError(
                f"{frame.source}: `{name}` is {got}; expected {width} numbers {where}, as `fitting.numb_{name}` says. "
                f"Add them to the data ({name}.npy, or `{name}` in extxyz), or correct the model."
            )
        rows.append(np.reshape(value, (-1, width)))
    values = np.concatenate(rows)
    return ParameterStatistics(values.mean(0), np.maximum(values.std(0), _STD_FLOOR))


def _wrap_up(max_neighbors: np.ndarray, factor: float) -> list[int]:
    sel = [4 * ((int(n * factor) + 3) // 4) for n in max_neighbors]
    return sel if sum(sel) else [4] * len(sel)  # no neighbours anywhere: still something to divide by


def core_distances(systems: Sequence[System], type_map: Sequence[str]) -> list[list[float]]:
    """Where the core of each pair of types begins, A; 0 where none is within 4 A. Symmetric.

        r0 = m - min(3 s, m/10)

    m: the shortest distance in all frames; s: standard deviation of the frames' own shortest distances. A long run
    holds shorter ones than some hundred frames do, most of all of pairs that do not touch, such as two cations: these
    must not meet a wall in what is a fluctuation.
    """
    n = len(type_map)
    shortest, count, mean, squares = np.full((n, n), np.inf), np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
    for system in systems:
        for k in range(len(system)):
            frame = system.frame(k).with_type_map(type_map)
            i, j, shift = neighbor_list(frame.positions, frame.cell, frame.pbc, 4.0)
            r = np.linalg.norm(frame.positions[j] - frame.positions[i] + shift @ frame.cell, axis=1)
            here = np.full((n, n), np.inf)
            np.minimum.at(here, (frame.types[i], frame.types[j]), r)
            here = np.minimum(here, here.T)
            met = np.isfinite(here)
            count[met] += 1.0
            change = here[met] - mean[met]  # Welford's sums
            mean[met] += change / count[met]
            squares[met] += change * (here[met] - mean[met])
            shortest = np.minimum(shortest, here)
    deviation = np.sqrt(squares / np.maximum(count, 1.0))
    met = count > 0
    r0 = np.zeros((n, n))
    r0[met] = shortest[met] - np.minimum(3.0 * deviation[met], 0.1 * shortest[met])
    return [[round(float(x), 4) for x in row] for row in r0]
