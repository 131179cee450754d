"""What a radial distribution function is made of: values with errors, its coordination shells, neighbour counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import find_peaks

from dpsim.errors import ConfigError

Array = NDArray[np.float64]
Pair = tuple[str, str]

_PROMINENCE = 0.15  # a maximum counts as a peak if it stands out by this much, and by 5 error bars
_TOP = 0.85  # the peak is fitted where g exceeds this part of its maximum
_MAX_INFLATION = 1.35  # what Monte Carlo gives for a slow process of a tenth of the run
_FLAT = 0.01  # below this g is empty: the gap between a bond and the next shell
_MINIMUM_HALF_WIDTH = 0.25  # A; minima are fitted at most this far to either side ...
_BOTTOM = 0.1  # ... and where g has risen by less than this, or than this part of the peak before it


class Value(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Shell:
    """One coordination shell: a peak of g(r), the minimum that closes it, and the neighbours inside the minimum.

    peak_position, minimum_position: A. coordination: neighbours of the pair's second species around an atom of the
    first, from r = 0 to the minimum; its error is also that of where the minimum lies. The last shell may have no
    minimum within r_max: then those are None.
    """

    peak_position: Value
    peak_height: Value
    minimum_position: Value | None
    minimum_height: Value | None
    coordination: Value | None


@dataclass(frozen=True)
class RDF:
    """A radial distribution function with block-averaged standard errors.

    r: bin centres, A, (bins,); edges: (bins + 1,); g, g_error: (bins,); block_g: (blocks, bins).
    coordination, coordination_error: number of neighbours within the upper edge of each bin, (bins,).
    ideal_pairs: distinct pairs per frame expected in each bin at g = 1, (bins,).
    inflation: factor by which the block errors were enlarged because neighbouring blocks are correlated.
    shells: the peaks, by distance, intramolecular ones included.
    """

    pair: Pair
    r: Array
    edges: Array
    g: Array
    g_error: Array
    coordination: Array
    coordination_error: Array
    ideal_pairs: Array
    n_frames: int
    block_g: Array = field(repr=False)
    block_coordination: Array = field(repr=False)
    inflation: float = 1.0
    shells: tuple[Shell, ...] = ()

    @property
    def label(self) -> str:
        """ "O-H" """
        return "-".join(self.pair)

    @property
    def n_blocks(self) -> int:
        return len(self.block_g)

    @property
    def reliable(self) -> bool:
        """Whether the run is longer than about ten correlation times of the structure.

        In a shorter one even the enlarged errors are too small: their 95 % intervals then cover less than 90 %.
        """
        return self.inflation < _MAX_INFLATION


def coordination_number(rdf: RDF, r: float) -> Value:
    """Neighbours within r (A) of an atom of the pair's first species: n(r) = rho_b int_0^r g 4 pi r'^2 dr'.

    Raises:
        ConfigError: r beyond the end of the RDF.
    """
    if not 0.0 <= r <= rdf.edges[-1] + 1e-9:
        raise ConfigError(f"`r` is {r:g} A; expected 0 ... {rdf.edges[-1]:g} A, the range of the RDF. Lower r.")
    return jackknife(rdf.block_coordination, lambda counts: _neighbors_within(rdf.edges, counts, r), rdf.inflation)


def _neighbors_within(edges: Array, counts: Array, r: float) -> float:
    """The running number of neighbours at r, from its values at the upper edge of each bin; g constant in a bin."""
    return float(np.interp(r**3, edges**3, np.concatenate([[0.0], counts])))


def jackknife(blocks: Array, function: Callable[[Array], float], inflation: float) -> Value:
    """function(mean of blocks) with its jackknife error: sqrt((n - 1)/n sum_k (f_k - <f>)^2), f_k without block k."""
    n_blocks = len(blocks)
    total = blocks.sum(axis=0)
    leave_out = np.array([function((total - block) / (n_blocks - 1)) for block in blocks])
    error = math.sqrt((n_blocks - 1) * float(np.mean((leave_out - leave_out.mean()) ** 2)))
    return Value(float(function(total / n_blocks)), inflation * error)


def jackknife_pair(
    blocks: Array, function: Callable[[Array], tuple[float, float]], inflation: float
) -> tuple[Value, Value]:
    """`jackknife` of both numbers of a function that returns two."""
    return (
        jackknife(blocks, lambda x: function(x)[0], inflation),
        jackknife(blocks, lambda x: function(x)[1], inflation),
    )


def find_shells(
    edges: Array, g: Array, g_error: Array, block_g: Array, block_n: Array, inflation: float
) -> tuple[Shell, ...]:
    """The peaks of g(r) and the minima between them, with jackknife errors over the blocks.

    A maximum is a peak if it rises by 0.15 and by 5 error bars above the higher of its two valleys. Its position and
    height come from a parabola through log g over the top 15 % (exact for a Gaussian), those of a minimum from a
    parabola through the flat part of g within 0.25 A; an empty gap, as behind a covalent bond, has its minimum in the
    middle.

    Args:
        edges: bin edges (A), (bins + 1,). g, g_error: mean and standard error, (bins,).
        block_g, block_n: g and the running coordination number of each block, (blocks, bins).
        inflation: factor on all errors.

    Returns:
        Shells in order of distance.
    """
    r = 0.5 * (edges[:-1] + edges[1:])
    tops = find_tops(g, g_error)
    shells = []
    for k, top in enumerate(tops):
        end = tops[k + 1] if k + 1 < len(tops) else len(g)
        position, height = jackknife_pair(block_g, partial(fit_peak, r, top=top), inflation)
        low = _lowest(g, top, end)
        if low is None:
            shells.append(Shell(position, height, None, None, None))
            continue
        closing, depth = jackknife_pair(block_g, partial(_fit_minimum, r, low=low, top=top), inflation)
        count = partial(_inside_minimum, edges, low=low, top=top)
        inside = jackknife(np.concatenate([block_g, block_n], axis=1), count, inflation)
        shells.append(Shell(position, height, closing, depth, inside))
    return tuple(shells)


def find_tops(g: Array, g_error: Array) -> list[int]:
    """The bins of the maxima that stand out by 0.15 and by 5 error bars."""
    padded = np.concatenate([[0.0], g])  # a peak in the first bin is a peak
    found, properties = find_peaks(padded, prominence=_PROMINENCE)
    return [int(k) - 1 for k, p in zip(found, properties["prominences"], strict=True) if p > 5.0 * g_error[k - 1]]


def _lowest(g: Array, top: int, end: int) -> int | None:
    """The bin of the minimum between a peak and the next (or the end of the range, where it does not count)."""
    valley = g[top:end]
    empty = np.flatnonzero(valley < _FLAT)
    if len(empty):
        return top + int(empty[len(empty) // 2])
    low = top + int(np.argmin(valley))
    return None if low >= len(g) - 2 else low


def fit_peak(r: Array, g: Array, top: int) -> tuple[float, float]:
    """Position and height of the peak at bin `top`, from a parabola through log g over its top 15 %."""
    near = slice(max(0, top - 1), min(len(g), top + 2))
    top = near.start + int(np.argmax(g[near]))  # a jackknife sample may have its maximum in the next bin
    left = right = top
    while left > 0 and g[left - 1] > _TOP * g[top]:
        left -= 1
    while right < len(g) - 1 and g[right + 1] > _TOP * g[top]:
        right += 1
    left, right = max(0, min(left, top - 1)), min(len(g) - 1, max(right, top + 1))
    window = slice(left, right + 1)
    x, y = r[window] - r[top], np.log(np.maximum(g[window], 1e-3 * g[top]))
    return _vertex(r[top], x, y, g[top], np.exp)


def _fit_minimum(r: Array, g: Array, low: int, top: int) -> tuple[float, float]:
    """Position and height of the minimum at bin `low` behind the peak at `top`; an empty gap is flat."""
    if g[low] < _FLAT:
        return float(r[low]), float(g[low])
    limit = g[low] + _BOTTOM * max(1.0, g[top] - g[low])
    left = right = low
    while left > 0 and r[low] - r[left - 1] <= _MINIMUM_HALF_WIDTH and g[left - 1] < limit:
        left -= 1
    while right < len(g) - 1 and r[right + 1] - r[low] <= _MINIMUM_HALF_WIDTH and g[right + 1] < limit:
        right += 1
    window = slice(max(0, min(left, low - 1)), max(right, low + 1) + 1)
    return _vertex(r[low], r[window] - r[low], g[window], g[low], lambda y: y)


def _inside_minimum(edges: Array, both: Array, low: int, top: int) -> float:
    """Neighbours within the minimum of this very g(r), whose place is no better known than its height."""
    g, counts = np.split(both, 2)
    r = 0.5 * (edges[:-1] + edges[1:])
    return _neighbors_within(edges, counts, _fit_minimum(r, g, low, top)[0])


def _vertex(
    center: float, x: Array, y: Array, fallback: float, inverse: Callable[[float], float]
) -> tuple[float, float]:
    """Vertex of the least-squares parabola through (x, y); the middle point if it lies outside the points."""
    if len(x) >= 3:
        a, b, c = np.polyfit(x, y, 2)
        if a != 0.0 and x[0] <= -b / (2.0 * a) <= x[-1]:
            return center - b / (2.0 * a), float(inverse(c - b * b / (4.0 * a)))
    return float(center), float(fallback)
