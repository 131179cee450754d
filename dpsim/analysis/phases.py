"""What a crystal is at one temperature and pressure: lattice, mean structure, its symmetry, order parameters.

Cells have their first vector along x and the second in the xy plane (rows h_1, h_2, h_3), so that rotations of the
crystal do not count. Positions are taken in fractions s of the cell, unwrapped, from their mean over the atoms:

    mean structure   <h>, <s_i>: averages over the equilibrated frames
    lattice          a, b, c (A), alpha, beta, gamma (degrees), volume (A^3), of one of n_1 n_2 n_3 unit cells
    c over a         L_u / mean of the other two lengths of the unit cell; u the axis that differs most, or a given one
    strain           e = (F F^T - 1)/2, F = h_0^-1 h (V_0/V)^(1/3): the change of shape with respect to the cell h_0
    off-centring     D = mean_i (r_i - mean_j r_j): of the atoms i from the centres of their neighbours j (A)

Of strain and off-centring the order parameter is the length of the mean vector, less what noise adds to it:
q^2 = |<x>|^2 - sum_k error(<x_k>)^2, so that a disordered phase has 0 within its error. The error is that of the
projection of x(t) onto <x>, or, where |<x>| is below three errors, that of all components together. The length of the
strain at each moment, |e(t)|, is not 0 in a cubic phase, as its shape fluctuates, but does not average out either where
the axes of a crystal turn in a run.

Equilibrium is found, and asked for, in each quantity by itself (statistics.equilibrated_part): axes that turn do not
make the volume uncertain. For the mean structure the latest start of lengths, volume and order parameters counts.

Symmetry: spglib (A. Togo et al., Sci. Technol. Adv. Mater. Meth. 4, 2384822 (2024)) at several tolerances (A): what is
left of thermal motion in a mean structure is larger than the tolerances fit for relaxed ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpsim.analysis.statistics import Estimate, equilibrated_part, mean_with_error
from dpsim.errors import DataError, MissingDependencyError
from dpsim.trajectory import open_universe

Array = NDArray[np.float64]

LATTICE = ("a", "b", "c", "alpha", "beta", "gamma", "volume")
FEWEST_FRAMES = 20
_ANGLES = ("alpha", "beta", "gamma")  # which fluctuate about 90 degrees, and say nothing of their own
_NOISE_TIMES = 9.0  # a vector whose square is less than this many times that of its error has no direction
_CONSTANT = 1e-6  # relative: what single precision does to numbers that do not change


@dataclass(frozen=True)
class Snapshots:
    """A run of one crystal. cells: (n_frames, 3, 3) A; fractions: (n_frames, n_atoms, 3); times_ps: (n_frames,)."""

    cells: Array
    fractions: Array
    times_ps: Array
    symbols: tuple[str, ...]

    def from_frame(self, start: int) -> Snapshots:
        """Without the frames before `start`."""
        return Snapshots(self.cells[start:], self.fractions[start:], self.times_ps[start:], self.symbols)

    def without(self, elements: Sequence[str]) -> Snapshots:
        """Without the atoms of some elements, in fractions from the mean of the others."""
        rest = [i for i, symbol in enumerate(self.symbols) if symbol not in elements]
        fractions = self.fractions[:, rest]
        centred = fractions - fractions.mean(axis=1, keepdims=True)
        return Snapshots(self.cells, centred, self.times_ps, tuple(self.symbols[i] for i in rest))

    @property
    def mean_cell(self) -> Array:
        """(3, 3) A."""
        return np.asarray(self.cells.mean(axis=0))

    @property
    def mean_fractions(self) -> Array:
        """(n_atoms, 3)."""
        return np.asarray(self.fractions.mean(axis=0))


OrderParameter = Callable[[Snapshots], Array]
"""The series of an order parameter: (n_frames,), or (n_frames, m) of the vector whose length it is."""


@dataclass(frozen=True)
class PhasePoint:
    """values: by name, LATTICE and the order parameters; late: of these what still drifts in the half that is kept.

    equilibration_ps: left out of the mean structure, cell, fractions, symbols; symmetries: (tolerance A, number,
    symbol) of that structure.
    """

    values: Mapping[str, Estimate]
    late: frozenset[str]
    equilibration_ps: float
    n_frames: int
    cell: Array
    fractions: Array
    symbols: tuple[str, ...]
    symmetries: tuple[tuple[float, int, str], ...]

    @property
    def settled(self) -> bool:
        """Whether everything has."""
        return not self.late


def read_snapshots(topology: str | Path, trajectory: str | Path, start: int = 0) -> Snapshots:
    """The frames of a run, from frame `start` on. Raises DataError for fewer than 20, or atoms without a cell."""
    universe = open_universe(topology, trajectory)
    n_frames = len(universe.trajectory) - start
    if n_frames < FEWEST_FRAMES:
        raise DataError(
            f"`trajectory` has {n_frames} frames after what is left out; expected at least {FEWEST_FRAMES}. Run "
            "longer, or write frames more often (`trajectory_every`)."
        )
    symbols = tuple(str(e).capitalize() for e in universe.atoms.elements)
    cells, times = np.empty((n_frames, 3, 3)), np.empty(n_frames)
    fractions = np.empty((n_frames, len(symbols), 3))
    for k, frame in enumerate(universe.trajectory[start:]):
        if frame.dimensions is None:
            raise DataError("`trajectory` has no cell; expected that of a crystal. Use a periodic structure.")
        cells[k], times[k] = frame.triclinic_dimensions, frame.time
        fractions[k] = frame.positions @ np.linalg.inv(cells[k])
    return Snapshots(cells, fractions - fractions.mean(axis=1, keepdims=True), times, symbols)


def phase_point(
    snapshots: Snapshots,
    order_parameters: Mapping[str, OrderParameter],
    unit_cells: Sequence[int] = (1, 1, 1),
    repeat: Sequence[int] = (1, 1, 1),
    tolerances: Sequence[float] = (0.05, 0.1, 0.2, 0.3),
    mobile: Sequence[str] = (),
) -> PhasePoint:
    """Everything about one temperature and pressure.

    Args:
        snapshots: at least 20 frames.
        order_parameters: by name.
        unit_cells: how many unit cells there are along a, b, c.
        repeat: how often the structure's own cell was repeated, in ASE's order: its copies are averaged for the
            symmetry, (1, 1, 1) for that of all atoms together.
        tolerances: of the symmetry, A.
        mobile: elements that leave their sites and so have no mean position: the mean structure is without them.
    """
    series = lattice_series(snapshots.cells, unit_cells)
    series |= {name: order(snapshots) for name, order in order_parameters.items()}
    parts = {name: (0, True) if _is_constant(s) else equilibrated_part(_along_mean(s)) for name, s in series.items()}
    watched = [name for name in series if name not in _ANGLES]
    start = max(parts[name][0] for name in watched)
    kept = snapshots.from_frame(start)
    cell, fractions, symbols = folded(kept.without(mobile), repeat)
    return PhasePoint(
        values={name: length_of_mean(s[parts[name][0] :]) for name, s in series.items()},
        late=frozenset(name for name in watched if not parts[name][1]),
        equilibration_ps=float(snapshots.times_ps[start] - snapshots.times_ps[0]),
        n_frames=len(kept.times_ps),
        cell=cell,
        fractions=fractions,
        symbols=symbols,
        symmetries=tuple((t, *space_group(cell, fractions, symbols, t)) for t in tolerances),
    )


def lattice_series(cells: Array, unit_cells: Sequence[int] = (1, 1, 1)) -> dict[str, Array]:
    """a, b, c, alpha, beta, gamma, volume of a unit cell, each (n_frames,), of cells (n_frames, 3, 3)."""
    lengths = np.linalg.norm(cells, axis=2)
    angles = [
        np.degrees(np.arccos(np.einsum("ti,ti->t", cells[:, i], cells[:, j]) / (lengths[:, i] * lengths[:, j])))
        for i, j in ((1, 2), (0, 2), (0, 1))
    ]
    volume = np.abs(np.linalg.det(cells)) / math.prod(unit_cells)
    return dict(zip(LATTICE, [*(lengths / np.asarray(unit_cells)).T, *angles, volume], strict=True))


def length_of_mean(series: Array) -> Estimate:
    """The mean of a scalar series, or the length of the mean of a vector series less what noise adds (the module)."""
    if series.ndim == 1:
        return mean_with_error(series)
    noise = sum(mean_with_error(component).error ** 2 for component in series.T)
    square = float(np.sum(series.mean(axis=0) ** 2))
    along = mean_with_error(_along_mean(series))
    error = along.error if square > _NOISE_TIMES * noise else math.sqrt(noise)
    value = math.sqrt(max(0.0, square - noise))
    return Estimate(value, error, along.n_effective, along.tau, along.degrees_of_freedom, along.reliable)


def _along_mean(series: Array) -> Array:
    """A vector series projected onto its mean; a scalar one as it is."""
    if series.ndim == 1:
        return series
    mean = series.mean(axis=0)
    return np.asarray(series @ (mean / (float(np.linalg.norm(mean)) or 1.0)))


# ---- order parameters ----------------------------------------------------------------------------------------------


def c_over_a(unit_cells: Sequence[int], axis: int | None = None) -> OrderParameter:
    """The length along one axis of the unit cell over the mean of the others; None: the one that differs most."""

    def series(snapshots: Snapshots) -> Array:
        lengths = np.linalg.norm(snapshots.cells, axis=2) / np.asarray(unit_cells)
        others = (lengths.sum(axis=1, keepdims=True) - lengths) / 2.0
        ratios = lengths / others
        unique = int(np.argmax(np.abs(ratios.mean(axis=0) - 1.0))) if axis is None else axis
        return np.asarray(ratios[:, unique])

    return series


def strain(reference: ArrayLike, magnitude: bool = False) -> OrderParameter:
    """The change of shape, six components whose squares add up to sum_ij e_ij^2, from a cell (3, 3), A.

    Args: magnitude: the length at each moment instead, which axes that turn do not average out.
    """
    h0 = standard(np.asarray(reference, dtype=np.float64))

    def series(snapshots: Snapshots) -> Array:
        scale = np.cbrt(np.linalg.det(h0) / np.abs(np.linalg.det(snapshots.cells)))
        f = np.linalg.inv(h0) @ snapshots.cells * scale[:, None, None]
        e = 0.5 * (f @ np.swapaxes(f, 1, 2) - np.eye(3))
        shear = np.sqrt(2.0) * e[:, (1, 0, 0), (2, 2, 1)]
        components = np.concatenate([e[:, (0, 1, 2), (0, 1, 2)], shear], axis=1)
        return np.linalg.norm(components, axis=1) if magnitude else components

    return series


def off_centring(atoms: ArrayLike, neighbours: ArrayLike, count: int, magnitude: bool = False) -> OrderParameter:
    """Displacement of atoms from the centres of their neighbours, A.

    Args:
        atoms, neighbours: indices; the neighbours of an atom are the `count` nearest in the mean structure.
        magnitude: the mean length over the atoms instead of the mean vector: local displacements, which a disordered
            phase has too.
    """
    centres, around = np.asarray(atoms), np.asarray(neighbours)

    def series(snapshots: Snapshots) -> Array:
        f = snapshots.fractions
        chosen, shifts = _nearest(snapshots.mean_fractions, snapshots.mean_cell, centres, around, count)
        local = f[:, centres] - f[:, chosen].mean(axis=2) - shifts.mean(axis=1)
        vectors = np.einsum("tik,tkl->til", local, snapshots.cells)
        return np.linalg.norm(vectors, axis=2).mean(axis=1) if magnitude else np.asarray(vectors.mean(axis=1))

    return series


def _nearest(
    fractions: Array, cell: Array, centres: NDArray[np.int64], around: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], Array]:
    """Indices (n, count) of the nearest, images included, and the lattice vectors (n, count, 3) to add to them."""
    images = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    chosen, shifts = np.empty((len(centres), count), dtype=np.int64), np.empty((len(centres), count, 3))
    for row, i in enumerate(centres):
        others = around[around != i]
        base = -np.round(fractions[others] - fractions[i])
        all_shifts = base[:, None] + images
        vectors = (fractions[others, None] + all_shifts - fractions[i]) @ cell
        order = np.argsort(np.linalg.norm(vectors, axis=2), axis=None, kind="stable")[:count]
        which, image = np.unravel_index(order, vectors.shape[:2])
        if len(which) < count:
            raise DataError(f"`count` is {count}; expected at most the {vectors[..., 0].size} neighbours. Lower it.")
        chosen[row], shifts[row] = others[which], all_shifts[which, image]
    return chosen, shifts


# ---- the mean structure --------------------------------------------------------------------------------------------


def folded(snapshots: Snapshots, repeat: Sequence[int]) -> tuple[Array, Array, tuple[str, ...]]:
    """The mean structure, its copies averaged: cell (3, 3) A, fractions (n, 3), symbols (n,)."""
    copies = math.prod(repeat)
    n = np.asarray(repeat)
    steps = np.stack(np.meshgrid(*[np.arange(k) for k in repeat], indexing="ij"), axis=-1).reshape(copies, 1, 3)
    by_copy = snapshots.mean_fractions.reshape(copies, -1, 3) * n - steps
    by_copy = by_copy - np.round(by_copy - by_copy[:1])  # a copy that was wrapped
    return (
        snapshots.mean_cell / n[:, None],
        np.asarray(by_copy.mean(axis=0)),
        snapshots.symbols[: len(snapshots.symbols) // copies],
    )


def space_group(cell: Array, fractions: Array, symbols: Sequence[str], tolerance: float) -> tuple[int, str]:
    """Number and symbol of the space group within a tolerance, A; (1, "P1") where spglib finds none."""
    try:
        import spglib
    except ImportError as error:
        raise MissingDependencyError("spglib", "analysis", "The symmetry of a mean structure") from error
    kinds = sorted(set(symbols))
    crystal = (cell.tolist(), (fractions % 1.0).tolist(), [1 + kinds.index(s) for s in symbols])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of how it reports errors, which changes
        try:
            found = spglib.get_symmetry_dataset(crystal, symprec=tolerance)
        except Exception:  # atoms closer than the tolerance: its errors differ between versions
            found = None
    return (1, "P1") if found is None else (int(found.number), str(found.international))


def standard(cell: Array) -> Array:
    """The same cell, its first vector along x, the second in the xy plane."""
    return np.asarray(np.linalg.cholesky(cell @ cell.T))


def _is_constant(series: Array) -> bool:
    return bool(np.ptp(series) <= _CONSTANT * float(np.abs(series).max()))
