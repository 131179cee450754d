"""Has a quantity settled, and is its mean known? The evidence, for a table and a figure.

What comes before equilibrium is found (statistics.equilibration_start) and left out; then the running mean

    m(t) = 1/n(t) sum_{t0 <= t_i <= t} x_i

with its 95 % interval, correlated samples counted as such, has to come to rest within a narrowing band.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpsim.analysis.figures import BLUE, GREY, figure
from dpsim.analysis.statistics import Estimate, equilibration_start, format_value, mean_with_error, student_t
from dpsim.errors import DataError

Array = NDArray[np.float64]

MIN_SAMPLES = 40
_BLOCKS = 4096  # a longer series is averaged down to this many blocks: slow changes are what matters here
_POINTS = 60  # of the running mean
_LATEST = 0.5  # of the series: what settles later leaves too little to be trusted


@dataclass(frozen=True)
class Convergence:
    """time: (n,), ps, and values: (n,), averaged down if long; start: t0, ps; mean: of what follows.

    running_time, running_mean, running_half: (m,), the running mean and half its 95 % interval. settled: equilibrium
    was reached within the first half. correlation_time: integrated, ps.
    """

    time: Array
    values: Array
    start: float
    mean: Estimate
    running_time: Array
    running_mean: Array
    running_half: Array
    settled: bool
    correlation_time: float


def convergence(time_ps: ArrayLike, values: ArrayLike) -> Convergence:
    """The running mean of a series and what it says.

    Args:
        time_ps: evenly spaced times, (n,), ps.
        values: (n,).

    Returns:
        Convergence.

    Raises:
        DataError: fewer than MIN_SAMPLES samples, different lengths, or numbers that are not finite.
    """
    t, x = np.asarray(time_ps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if t.shape != x.shape or t.ndim != 1 or len(x) < MIN_SAMPLES:
        raise DataError(
            f"`time_ps` has shape {t.shape} and `values` {x.shape}; expected equal vectors of at least {MIN_SAMPLES} "
            "numbers. Run longer, or write thermo.csv more often."
        )
    size = -(-len(x) // _BLOCKS)
    n = len(x) // size
    t, x = (a[: n * size].reshape(n, size).mean(axis=1) for a in (t, x))
    first = min(equilibration_start(x), n - MIN_SAMPLES // 2)
    ends = np.unique(np.linspace(first + MIN_SAMPLES // 2, n, _POINTS).astype(int))
    estimates = [mean_with_error(x[first:end]) for end in ends]
    mean = estimates[-1]
    return Convergence(
        time=t,
        values=x,
        start=float(t[first] - t[0]),
        mean=mean,
        running_time=t[ends - 1],
        running_mean=np.array([e.value for e in estimates]),
        running_half=np.array([student_t(0.95, e.degrees_of_freedom) * e.error for e in estimates]),
        settled=first <= _LATEST * n,
        correlation_time=mean.tau * float(t[1] - t[0]),
    )


def plot_convergence(path: str | Path, series: Mapping[str, Convergence]) -> Path:
    """The quantities with their running means and 95 % bands, a panel each; what is left out is shaded.

    series: axis labels with units -> Convergence.
    """
    if not series:
        raise DataError("`series` is empty; expected at least one quantity. Leave the figure out.")
    with figure(path, len(series), 1, height=0.8 + 1.5 * len(series), sharex=True) as (canvas, axes):
        for ax, (label, item) in zip(axes[:, 0], series.items(), strict=True):
            if item.start > 0.0:
                ax.axvspan(item.time[0], item.time[0] + item.start, color=GREY, alpha=0.18, lw=0, label="left out")
            ax.plot(item.time, item.values, color=GREY, lw=0.6, alpha=0.6, zorder=1, label="samples")
            low, high = item.running_mean - item.running_half, item.running_mean + item.running_half
            ax.fill_between(item.running_time, low, high, color=BLUE, alpha=0.25, lw=0, zorder=2)
            ax.plot(item.running_time, item.running_mean, color=BLUE, zorder=3, label="running mean, 95 % interval")
            ax.set_ylabel(label)
            ax.set_xlim(item.time[0], item.time[-1])
            ax.set_title(format_value(item.mean.value, item.mean.error), fontsize=9, fontweight="normal", loc="right")
        handles = {name: h for ax in axes[:, 0] for h, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        canvas.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=3, borderaxespad=0.2)
        axes[-1, 0].set_xlabel("time (ps)")
        canvas.align_ylabels(axes[:, 0])
    return Path(path)
