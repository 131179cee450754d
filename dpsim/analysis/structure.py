"""Radial distribution functions of a trajectory with block-averaged error bars, their shells, and a comparison.

The histogram is MDAnalysis' InterRDF, run block by block; everything with an error bar is made from the blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpsim.analysis.rdf_reference import RDFComparison, RDFReference, compare_rdf, load_rdf_reference, save_rdf
from dpsim.analysis.rdf_shells import RDF, Array, Pair, Shell, Value, coordination_number, find_shells
from dpsim.errors import ConfigError, DataError, did_you_mean
from dpsim.trajectory import open_universe

if TYPE_CHECKING:
    from MDAnalysis import Universe

__all__ = [
    "RDF",
    "RDFComparison",
    "RDFReference",
    "Shell",
    "Value",
    "compare_rdf",
    "coordination_number",
    "load_rdf_reference",
    "rdf",
    "save_rdf",
]

BIN_WIDTH = 0.05  # A; the customary resolution, and that of the reference files


def rdf(
    source: Universe | tuple[str | Path, str | Path],
    pairs: Sequence[Pair] | None = None,
    r_max: float | None = None,
    bins: int | None = None,
    blocks: int = 10,
    *,
    start: int = 0,
    frames: Sequence[int] | None = None,
) -> list[RDF]:
    """Radial distribution functions g_ab(r) = V/(N_pairs 4 pi r^2 dr) <n_pairs(r, r + dr)> of a trajectory.

    N_pairs = N_a N_b, and N_a (N_a - 1) for like species, so an ideal gas has g = 1 at any size. No pair is left out:
    bonds of molecules are peaks too. The volume is averaged within each block, as the number of pairs is. Errors are
    std(blocks)/sqrt(n_blocks), times sqrt((1 + rho)/(1 - rho)) if neighbouring blocks are correlated by rho > 0.

    Args:
        source: an MDAnalysis Universe, or the paths (topology, trajectory).
        pairs: element pairs, [("O", "H"), ...]; all of them by default.
        r_max: upper end, A; by default the largest multiple of 0.05 A within half the smallest cell height.
        bins: number of bins; by default those of width 0.05 A.
        blocks: number of blocks for the error bars.
        start: first frame to use.
        frames: indices of the frames to use, ascending, such as range(100, 2000, 5), instead of all from `start` on.

    Returns:
        One RDF per pair.

    Raises:
        ConfigError: r_max beyond half the smallest cell height, an element that is not there.
        DataError: no periodic cell (g has no density to refer to), fewer than two frames.
        MissingDependencyError: MDAnalysis is not installed.

    Source: MDAnalysis, R. J. Gowers et al., Proc. SciPy 98 (2016).
    """
    universe = open_source(source)
    n_frames = len(universe.trajectory)
    chosen = list(range(start, n_frames) if frames is None else frames)
    if len(chosen) < 2 or min(chosen) < 0 or max(chosen) >= n_frames:
        raise DataError(
            f"`frames` are {len(chosen)} of the {n_frames} in the trajectory; expected at least 2 that exist, for "
            "error bars. Run longer or write the trajectory more often."
        )
    limit = half_smallest_height(universe, chosen)
    if r_max is None:
        r_max = BIN_WIDTH * math.floor(limit / BIN_WIDTH + 1e-6)
    if not 0.0 < r_max <= limit + 1e-4:
        raise ConfigError(
            f"`r_max` is {r_max:g} A; expected at most {limit:.3f} A, half the smallest height of the cell over the "
            "trajectory: beyond it an atom's periodic images are counted wrongly. Lower r_max or use a larger cell."
        )
    n_bins = bins if bins is not None else max(1, round(r_max / BIN_WIDTH))
    if n_bins < 1 or blocks < 2:
        raise ConfigError(f"`bins` is {n_bins} and `blocks` {blocks}; expected at least 1 and 2. Leave them out.")
    elements = elements_of(universe)
    wanted = _check_pairs(pairs, list(dict.fromkeys(elements.tolist())))
    parts = [part.tolist() for part in np.array_split(np.array(chosen), min(blocks, len(chosen)))]
    return [_pair_rdf(universe, elements, pair, float(r_max), n_bins, parts) for pair in wanted]


def open_source(source: Universe | tuple[str | Path, str | Path]) -> Universe:
    """The Universe of the trajectory."""
    return open_universe(*source) if isinstance(source, tuple) else source


def elements_of(universe: Universe) -> NDArray[np.str_]:
    """Element symbol of each atom: the topology's elements, else the letters of the atom names or types."""
    for attribute in ("elements", "names", "types"):
        if hasattr(universe.atoms, attribute):
            labels = [re.sub(r"[^A-Za-z].*", "", str(x)).capitalize() for x in getattr(universe.atoms, attribute)]
            if all(labels):
                return np.array(labels)
    raise DataError("`elements` is missing in the topology; expected one per atom. Write a topology with elements.")


def _check_pairs(pairs: Sequence[Pair] | None, species: list[str]) -> list[Pair]:
    """The requested pairs, checked; all pairs of species by default."""
    if pairs is None:
        return list(combinations_with_replacement(species, 2))
    for element in (e for pair in pairs for e in pair):
        if element not in species:
            raise ConfigError(
                f"`pairs` has the element {element!r}; expected elements of the trajectory, {species}."
                f"{did_you_mean(element, species)} Correct the pair."
            )
    return [(a, b) for a, b in pairs]


def half_smallest_height(universe: Universe, frames: Sequence[int]) -> float:
    """Half the smallest distance between opposite faces of the cell over all frames, A: V / |a x b| / 2."""
    smallest = math.inf
    for ts in universe.trajectory[list(frames)]:
        if ts.dimensions is None or not np.all(ts.dimensions[:3] > 0.0):
            raise DataError(
                f"`cell` of frame {ts.frame} is {ts.dimensions}; expected a periodic cell, which gives the density "
                "that g(r) refers to. Leave the RDF out for molecules in vacuum."
            )
        a, b, c = ts.triclinic_dimensions.astype(np.float64)
        volume = abs(float(np.dot(a, np.cross(b, c))))
        faces = max(np.linalg.norm(np.cross(u, v)) for u, v in ((a, b), (b, c), (c, a)))
        smallest = min(smallest, 0.5 * volume / float(faces))
    return smallest


def _pair_rdf(
    universe: Universe, elements: NDArray[np.str_], pair: Pair, r_max: float, n_bins: int, blocks: list[list[int]]
) -> RDF:
    """InterRDF of one pair in each block of frames."""
    from MDAnalysis.analysis.rdf import InterRDF  # a Universe is at hand, so it is installed

    first, second = (universe.atoms[elements == e] for e in pair)
    like = pair[0] == pair[1]
    n_pairs = len(first) * (len(second) - (1 if like else 0))
    counter = InterRDF(first, second, nbins=n_bins, range=(0.0, r_max), exclusion_block=(1, 1) if like else None)
    g, coordination, weights, volumes = [], [], [], []
    for frames in blocks:
        counter.run(frames=frames)
        g.append(np.nan_to_num(counter.results.rdf))  # 0/0 where a lone atom has no partner
        coordination.append(np.cumsum(counter.results.count) / counter.n_frames / len(first))
        weights.append(counter.n_frames)
        volumes.append(counter.results.volume_cum / counter.n_frames)
    edges = np.asarray(counter.results.edges, dtype=np.float64)
    weight = np.array(weights) / np.sum(weights)
    shell_volume = 4.0 / 3.0 * np.pi * np.diff(edges**3)
    return _assemble(
        pair=pair,
        edges=edges,
        block_g=np.array(g),
        block_coordination=np.array(coordination),
        weight=weight,
        ideal_pairs=n_pairs / (2 if like else 1) * shell_volume / float(weight @ volumes),
        n_frames=int(np.sum(weights)),
    )


def _assemble(
    pair: Pair,
    edges: Array,
    block_g: Array,
    block_coordination: Array,
    weight: Array,
    ideal_pairs: Array,
    n_frames: int,
) -> RDF:
    """Means, errors and shells from the blocks."""
    n_blocks = len(block_g)
    inflation = correlation_inflation(block_g)
    scale = inflation / math.sqrt(n_blocks)
    g = weight @ block_g
    g_error = scale * block_g.std(axis=0, ddof=1)
    return RDF(
        pair=pair,
        r=0.5 * (edges[:-1] + edges[1:]),
        edges=edges,
        g=g,
        g_error=g_error,
        coordination=weight @ block_coordination,
        coordination_error=scale * block_coordination.std(axis=0, ddof=1),
        ideal_pairs=ideal_pairs,
        n_frames=n_frames,
        block_g=block_g,
        block_coordination=block_coordination,
        inflation=inflation,
        shells=find_shells(edges, g, g_error, block_g, block_coordination, inflation),
    )


def correlation_inflation(blocks: Array) -> float:
    """sqrt((1 + rho)/(1 - rho)) with rho the correlation of neighbouring blocks, pooled over all bins; at least 1."""
    n_blocks = len(blocks)
    if n_blocks < 5:
        return 1.0
    deviation = blocks - blocks.mean(axis=0)
    spread = np.sum(deviation**2, axis=0)
    used = spread > 1e-12 * max(1e-300, float(spread.max()))
    if not used.any():
        return 1.0
    lagged = np.sum(deviation[1:] * deviation[:-1], axis=0)
    rho = float(np.mean(lagged[used] / spread[used])) + 1.0 / n_blocks  # removing the mean makes rho 1/n too small
    rho = min(max(rho, 0.0), 0.8)
    return math.sqrt((1.0 + rho) / (1.0 - rho))
