"""How the cost of a step grows with the number of atoms N.

    t(N) = a N^p              p = 1: linear; least squares in logarithms, the error from the scatter about the line
    m(N) = m0 + m1 N          the peak of memory: what a process needs anyway, and what each atom needs; scatter about
                              the line below 2 MiB, which an allocator takes at once, is chance and counts as 2 MiB
    N_max = (M - m0)/m1       atoms in the memory M

A step costs something even without atoms, so that p of small systems is below 1. Times are medians over blocks of
steps: what else the machine does only ever adds to some of them. The error of a median is 1.2533 times that of a mean
of a normal distribution whose sigma is 1.4826 times the median of the absolute deviations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpsim.analysis.power_law import PowerLaw, fit_power_law
from dpsim.analysis.statistics import student_t

_MEDIAN, _MAD = 1.2533, 1.4826
_GRAIN = 2.0**21  # bytes: a huge page
DAY, FS_IN_NS = 86400.0, 1e-6


@dataclass(frozen=True)
class Size:
    """What was measured of one system. seconds: of a step, in each block; peak, empty: bytes, at most and before."""

    n_atoms: int
    seconds: tuple[float, ...]
    peak: float
    empty: float

    @property
    def time(self) -> float:
        """Of a step, s: the median over blocks."""
        return float(np.median(self.seconds))

    @property
    def error(self) -> float:
        """Standard error of `time`, s."""
        deviation = float(np.median(np.abs(np.asarray(self.seconds) - self.time)))
        return _MEDIAN * _MAD * deviation / math.sqrt(len(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        """s."""
        low, high = np.percentile(self.seconds, (25.0, 75.0))
        return float(low), float(high)

    @property
    def spread(self) -> float:
        """Difference of the quartiles, as a part of the median."""
        low, high = self.quartiles
        return (high - low) / self.time

    @property
    def per_atom(self) -> tuple[float, float]:
        """us/step/atom, and its error."""
        return 1e6 * self.time / self.n_atoms, 1e6 * self.error / self.n_atoms

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Of us/step/atom."""
        value, error = self.per_atom
        half = student_t(confidence, len(self.seconds) - 1) * error
        return value - half, value + half

    def ns_per_day(self, timestep_fs: float) -> float:
        """Simulated time."""
        return timestep_fs * FS_IN_NS * DAY / self.time


@dataclass(frozen=True)
class MemoryLine:
    """m = fixed + per_atom N, bytes; covariance (2, 2) of both, from the scatter: None for two sizes."""

    fixed: float
    per_atom: float
    covariance: NDArray[np.float64] | None
    freedom: int

    def __call__(self, n_atoms: float) -> float:
        """Bytes."""
        return self.fixed + self.per_atom * n_atoms

    @property
    def per_atom_error(self) -> float | None:
        return None if self.covariance is None else math.sqrt(self.covariance[1, 1])

    def atoms_in(self, memory: float) -> tuple[float, float | None]:
        """How many atoms so many bytes hold, with the standard error."""
        n = max(0.0, (memory - self.fixed) / self.per_atom)
        if self.covariance is None:
            return n, None
        gradient = np.array([1.0, n]) / self.per_atom
        return n, math.sqrt(float(gradient @ self.covariance @ gradient))


def fit_times(sizes: Sequence[Size]) -> PowerLaw | None:
    """t = a N^p through three sizes or more by their scatter, through two by the errors of each; None with fewer."""
    if len(sizes) < 2:
        return None
    n, t = [s.n_atoms for s in sizes], [s.time for s in sizes]
    return fit_power_law(n, t, [max(s.error, 1e-4 * s.time) for s in sizes] if len(sizes) == 2 else None)


def fit_memory(sizes: Sequence[Size]) -> MemoryLine | None:
    """m = m0 + m1 N by least squares; None with fewer than two sizes, or where memory does not grow."""
    if len(sizes) < 2:
        return None
    n = np.array([s.n_atoms for s in sizes], dtype=np.float64)
    m = np.array([s.peak for s in sizes])
    design = np.stack([np.ones_like(n), n], axis=1)
    (fixed, per_atom), *_ = np.linalg.lstsq(design, m, rcond=None)
    if per_atom <= 0.0:
        return None
    freedom = len(n) - 2
    left = m - design @ (fixed, per_atom)
    covariance = None
    if freedom:
        variance = max(float(left @ left) / freedom, _GRAIN**2)
        covariance = np.asarray(variance * np.linalg.inv(design.T @ design), dtype=np.float64)
    return MemoryLine(float(fixed), float(per_atom), covariance, freedom)


def memory_bend(sizes: Sequence[Size]) -> float | None:
    """Ratio of bytes per further atom in the last interval of sizes to that before: 1 if memory is linear in N."""
    if len(sizes) < 3:
        return None
    n, m = np.array([s.n_atoms for s in sizes]), np.array([s.peak for s in sizes])
    slopes = np.diff(m) / np.diff(n)
    return float(slopes[-1] / slopes[-2]) if slopes[-2] > 0.0 else None
