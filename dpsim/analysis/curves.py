"""A curve y(x) with block-averaged error bars, and by how much it differs from a reference curve.

What angle distributions and vibrational spectra have in common. Each block of a trajectory gives a curve; the error of
their mean is std(blocks)/sqrt(n_blocks), enlarged where neighbouring blocks are correlated, as for g(r). Radial
distribution functions have shells and neighbours besides: rdf_shells.py, rdf_reference.py.

    difference = sum |y - y_ref| / sum |y_ref|
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from dpsim.analysis.rdf_shells import Array, Value, fit_peak, jackknife, jackknife_pair
from dpsim.analysis.statistics import student_t
from dpsim.analysis.structure import correlation_inflation
from dpsim.errors import DataError
from dpsim.files import atomic_write

_MAX_INFLATION = 1.35  # as for g(r): beyond it the run is short beside what changes in it


@dataclass(frozen=True)
class BlockCurve:
    """y(x), its standard error, and the blocks: x, y, y_error (n,), blocks (n_blocks, n)."""

    label: str
    x: Array
    y: Array
    y_error: Array
    blocks: Array = field(repr=False)
    inflation: float = 1.0

    @property
    def n_blocks(self) -> int:
        return len(self.blocks)

    @property
    def reliable(self) -> bool:
        """Whether the run is longer than about ten correlation times of what the curve shows."""
        return self.inflation < _MAX_INFLATION


@dataclass(frozen=True)
class ReferenceCurve:
    """y(x) from elsewhere; y_error may be unknown (None)."""

    label: str
    x: Array
    y: Array
    y_error: Array | None = None


@dataclass(frozen=True)
class CurveComparison:
    """By how much a curve differs from its reference, where both are.

    x, y_reference: (bins,). difference: that of the module, with its error; noise: what error bars alone give for it.
    rms_in_errors: root mean square of (y - y_ref)/error, about `rms_expected` where the two agree. largest_x: where
    they differ most, in errors. reference_error: "given" or "unknown" (taken as 0).
    """

    label: str
    x: Array
    y_reference: Array
    difference: Value
    noise: float
    rms_in_errors: float
    rms_expected: float
    largest_x: float
    reference_error: str
    n_blocks: int


def distance_without_noise(measured: Value, noise: float, n_blocks: int) -> tuple[float, float, float]:
    """How far two curves are apart, less what noise adds to sum |y - y_ref| / sum |y_ref|, and its 95 % interval.

        d = sqrt(m^2 - n^2),        m: measured, n: what error bars alone give

    as differences and noise add in quadrature; the interval is that of m +- t error(m) by Student's t. Of made-up
    curves, shifted, scaled or disordered, with 4 and 10 blocks, a d above the noise is the true distance in the mean,
    and the interval misses it in at most 8 % on the lower and 5 % on the upper side.
    """
    half = student_t(0.95, n_blocks - 1) * measured.error if math.isfinite(measured.error) else math.inf
    low, value, high = (max(0.0, m) for m in (measured.value - half, measured.value, measured.value + half))
    found = [math.sqrt(max(0.0, m * m - noise * noise)) for m in (value, low, high)]
    return found[0], found[1], found[2]


def curve_of_blocks(label: str, x: ArrayLike, blocks: ArrayLike) -> BlockCurve:
    """The mean of the blocks' curves, (n_blocks, n), at least two, with its error."""
    rows = np.asarray(blocks, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 2:
        raise DataError(f"`blocks` has shape {rows.shape}; expected at least two curves. Use more blocks.")
    inflation = correlation_inflation(rows)
    error = inflation * rows.std(axis=0, ddof=1) / math.sqrt(len(rows))
    return BlockCurve(label, np.asarray(x, dtype=np.float64), rows.mean(axis=0), error, rows, inflation)


def highest_peak(curve: BlockCurve) -> tuple[Value, Value]:
    """Position and height of the highest maximum, with jackknife errors over the blocks."""
    top = int(np.argmax(curve.y))

    def peak(y: Array) -> tuple[float, float]:
        return fit_peak(curve.x, y, top)

    return jackknife_pair(curve.blocks, peak, curve.inflation)


def compare_curve(curve: BlockCurve, reference: ReferenceCurve) -> CurveComparison:
    """Quantify the difference from a reference, brought to the points of `curve` by linear interpolation.

    Raises: DataError where they have fewer than three points in common, or the reference is zero there.
    """
    x = curve.x
    step = float(np.median(np.diff(reference.x)))  # a histogram's bins reach half a bin beyond their centres
    inside = (x >= reference.x[0] - 0.5 * step) & (x <= reference.x[-1] + 0.5 * step)
    y_ref = np.interp(x, reference.x, reference.y)
    norm = float(np.sum(np.abs(y_ref[inside])))
    if inside.sum() < 3 or norm == 0.0:
        raise DataError(
            f"`reference` of {curve.label} covers {reference.x[0]:g} ... {reference.x[-1]:g}; expected an overlap with "
            f"{x[0]:g} ... {x[-1]:g} in which it is not zero. Check its unit."
        )
    given = reference.y_error is not None
    ref_error = np.interp(x, reference.x, reference.y_error) if reference.y_error is not None else np.zeros_like(x)
    combined = np.sqrt(curve.y_error**2 + ref_error**2)
    used = inside & (combined > 0.0)
    pulls = np.zeros_like(x)
    pulls[used] = (curve.y - y_ref)[used] / combined[used]
    freedom = curve.n_blocks - 1

    def difference(y: Array) -> float:
        return float(np.sum(np.abs(y - y_ref)[inside])) / norm

    return CurveComparison(
        label=curve.label,
        x=x[inside],
        y_reference=y_ref[inside],
        difference=jackknife(curve.blocks, difference, curve.inflation),
        noise=math.sqrt(2.0 / math.pi) * float(np.sum(combined[inside])) / norm,
        rms_in_errors=float(np.sqrt(np.mean(pulls[used] ** 2))) if used.any() else 0.0,
        rms_expected=math.sqrt(freedom / (freedom - 2)) if freedom > 2 else math.inf,
        largest_x=float(x[np.argmax(np.abs(pulls))]),
        reference_error="given" if given else "unknown",
        n_blocks=curve.n_blocks,
    )


def reference_curve(label: str, x: ArrayLike, y: ArrayLike, y_error: ArrayLike | None = None) -> ReferenceCurve:
    """A reference whose arrays are checked. Raises DataError."""
    arrays = [np.asarray(a, dtype=np.float64) for a in (x, y, y if y_error is None else y_error)]
    if any(a.shape != arrays[0].shape or a.ndim != 1 or len(a) < 3 for a in arrays):
        raise DataError(
            f"`reference` has the shapes {[a.shape for a in arrays[:2]]} for {label}; expected two equal vectors of at "
            "least 3 values. Correct the file."
        )
    if not all(np.isfinite(a).all() for a in arrays) or np.any(np.diff(arrays[0]) <= 0.0):
        raise DataError(
            f"`reference` has NaN, or x that does not increase, for {label}; expected a clean table. Correct the file."
        )
    return ReferenceCurve(label, arrays[0], arrays[1], None if y_error is None else arrays[2])


def save_curves(path: str | Path, x_name: str, curves: Sequence[tuple[str, BlockCurve]]) -> Path:
    """Write curves on one grid as CSV, atomically: x, name, name_error, ..."""
    header = [x_name] + [column for name, _ in curves for column in (name, f"{name}_error")]
    columns = [curves[0][1].x] + [column for _, curve in curves for column in (curve.y, curve.y_error)]
    rows = [",".join(f"{value:.6g}" for value in row) for row in zip(*columns, strict=True)]
    atomic_write(path, "\n".join([",".join(header), *rows, ""]).encode())
    return Path(path)
