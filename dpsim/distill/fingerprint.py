"""How alike two frames are, and which of many differ most: fingerprints and farthest-point selection.

The surroundings of atom i are seen through Gaussians of the distances to its neighbours of each element b,

    phi_ibk = sum_{j of b} exp[-(r_ij - r_k)^2 / 2 w^2] (1 - (r_ij / r_c)^2)^2,     r_k = k w, k = 1 ... r_c / w

and a frame by their mean and standard deviation over its atoms of each element. Features are measured in the spread
that phi has over the atoms of a frame, so that distances have no unit, and averaged over the features:

    d(A, B) = sqrt( mean_f [(A_f - B_f) / s_f]^2 )

Two frames of one liquid with N atoms differ by about (2 / N)^1/2. No model is asked, and a frame of 200 atoms takes
some milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dpsim.data.frame import Frame
from dpsim.neighbors import neighbor_list

Array = NDArray[np.float64]
_WIDTH = 0.5  # A
_SMALL = 1e-3  # of a Gaussian's height: what varies less counts as constant


def fingerprints(frames: Iterable[Frame], rcut: float) -> Array:
    """(n_frames, 2, n_features): means, and standard deviations, over the atoms of each element.

    Args: frames: all of one type_map; rcut: A.
    """
    rows = [_of_frame(frame, rcut) for frame in frames]
    return np.array(rows) if rows else np.zeros((0, 2, 0))


def _of_frame(frame: Frame, rcut: float) -> Array:
    n_types, grid = len(frame.type_map), np.arange(_WIDTH, rcut, _WIDTH)
    i, j, shift = neighbor_list(frame.positions, frame.cell, frame.pbc, rcut)
    r = np.linalg.norm(frame.positions[j] - frame.positions[i] + shift @ frame.cell, axis=1)
    seen = np.exp(-0.5 * ((r[:, None] - grid) / _WIDTH) ** 2) * ((1.0 - (r / rcut) ** 2) ** 2)[:, None]
    phi = np.zeros((frame.n_atoms * n_types, len(grid)))
    np.add.at(phi, i * n_types + frame.types[j], seen)
    phi = phi.reshape(frame.n_atoms, -1)
    out = np.zeros((2, n_types, phi.shape[1]))
    for t in np.unique(frame.types):
        own = phi[frame.types == t]
        out[:, t] = own.mean(axis=0), own.std(axis=0)
    return out.reshape(2, -1)


def normalised(pool: Array, others: Array) -> tuple[Array, Array]:
    """Both as rows whose Euclidean distance is d, in the spread of the pool; what is constant in both is left out."""
    others = others if len(others) else pool[:0]
    spread = np.sqrt((pool[:, 1] ** 2).mean(axis=0))
    varies = (np.concatenate([pool, others]).std(axis=0).max(axis=0) > 0) & (spread > _SMALL)
    scale = spread[varies] * np.sqrt(2 * max(1, int(varies.sum())))
    a, b = ((x[..., varies] / scale).reshape(len(x), 2 * len(scale)) for x in (pool, others))
    return a, b


def farthest_points(
    pool: Array, known: Array, n: int, min_distance: float = 0.0, first: int = 0
) -> list[tuple[int, float]]:
    """At most n rows of `pool`, each the one farthest from `known` and from those before it, and that distance.

    Args: pool, known: (., n_features), see `normalised`; first: taken first where nothing is known.
    Returns: rows and their distances, which fall; none is below min_distance. The first of no known ones has inf.
    """
    distance = np.full(len(pool), np.inf)
    for row in known:
        distance = np.minimum(distance, np.linalg.norm(pool - row, axis=1))
    chosen: list[tuple[int, float]] = []
    while len(chosen) < min(n, len(pool)):
        k = first if np.isinf(distance).all() else int(np.argmax(distance))
        if distance[k] < min_distance or distance[k] <= 0.0:
            break
        chosen.append((k, float(distance[k])))
        distance = np.minimum(distance, np.linalg.norm(pool - pool[k], axis=1))
        distance[k] = -1.0
    return chosen


def most_different(
    pool: Sequence[Frame], known: Sequence[Frame], rcut: float, n: int, min_distance: float = 0.0, first: int = 0
) -> list[tuple[int, float]]:
    """`farthest_points` of frames: which of `pool`, and how far from all others chosen or known."""
    if not pool:
        return []
    a, b = normalised(fingerprints(pool, rcut), fingerprints(known, rcut))
    return farthest_points(a, b, n, min_distance, first)
