"""Figures of what choices cost: the errors of time steps, time and memory of sizes. Style and saving: figures.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpsim.analysis.figures import GREEN, GREY, PALETTE, figure
from dpsim.analysis.scaling import MemoryLine, Size, fit_memory, fit_times
from dpsim.analysis.timesteps import ORDER, Conservation, StepLaw
from dpsim.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_DASHES, _DOTS = (0, (5, 3)), (0, (1, 2))
_MARKERS = "osD^"
_FEW_DECADES = 50.0
_APART = 1.03  # time steps of two precisions are drawn beside each other


def plot_timesteps(
    path: str | Path,
    series: Mapping[str, Sequence[Conservation]],
    laws: Mapping[str, StepLaw],
    drift: float,
    fluctuation: float,
    recommended: float | None = None,
    unstable: Sequence[float] = (),
    confidence: float = 0.95,
) -> Path:
    """|drift| and std(E)/std(K) against the time step, with thresholds, the law of dt^2 and the recommended step.

    series: runs of each precision, or whatever distinguishes them; laws: of those that follow dt^2.
    drift, fluctuation: thresholds. unstable: time steps of runs that exploded.
    """
    if not any(series.values()):
        raise DataError("`series` is empty; expected at least one run. Simulate one that does not explode.")
    with figure(path, 2, 1, height=5.2, sharex=True) as (canvas, axes):
        upper, lower = axes[:, 0]
        for k, (label, runs) in enumerate(series.items()):
            shift = _APART ** (k - 0.5 * (len(series) - 1))
            _drifts(upper, runs, PALETTE[k], label, shift, confidence)
            _ratios(lower, runs, PALETTE[k], label, shift, confidence)
            if (law := laws.get(label)) is not None:
                _law(lower, law, PALETTE[k])
        for ax, threshold in ((upper, drift), (lower, fluctuation)):
            ax.axhline(threshold, color="black", lw=1.0, ls=_DASHES, zorder=1)
            ax.set_yscale("log")
            for step in unstable:
                ax.axvline(step, color=GREY, lw=0.8, ls=_DOTS, zorder=0)
                ax.annotate(" unstable", (step, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=8,
                            color=GREY, va="bottom", ha="right")  # fmt: skip
            if recommended is not None:
                ax.axvline(recommended, color=GREEN, lw=6.0, alpha=0.25, zorder=0)
        if recommended is not None:
            upper.annotate(f"recommended: {recommended:g} fs", (recommended, 1.02), color=GREEN, fontsize=8.5,
                           xycoords=("data", "axes fraction"), ha="center")  # fmt: skip
        steps = sorted({run.timestep_fs for runs in series.values() for run in runs} | set(unstable))
        lower.set_xscale("log")
        lower.set_xticks(steps, [f"{step:g}" for step in steps])
        lower.minorticks_off()
        lower.set_xlim(steps[0] / 1.2, steps[-1] * 1.2)
        lower.set_xlabel("time step (fs)")
        upper.set_ylabel("|drift| (meV/atom/ps)")
        lower.set_ylabel("std($E$) / std($K$)")
        handles, labels = lower.get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper left", ncols=4, borderaxespad=0.2)
        canvas.align_ylabels(axes[:, 0])
    return Path(path)


def _drifts(ax: Axes, runs: Sequence[Conservation], color: str, label: str, shift: float, confidence: float) -> None:
    """Sizes with their intervals; a triangle at the upper end where the interval holds zero."""
    zero, sure = [], []
    for run in runs:
        low, high = run.drift.interval(confidence)
        if low <= 0.0 <= high:
            zero.append((run.timestep_fs, max(abs(low), abs(high))))
        else:
            value = abs(run.drift.drift)
            sure.append((run.timestep_fs, value, value - min(abs(low), abs(high)), max(abs(low), abs(high)) - value))
    if sure:
        x, y, below, above = np.array(sure).T
        ax.errorbar(shift * x, y, (below, above), fmt="o", ms=6, color=color, mec="white", capsize=3, label=label)
    if zero:
        x, y = np.array(zero).T
        ax.plot(shift * x, y, "v", ms=6, color=color, mec="white", label=None if sure else label)


def _ratios(ax: Axes, runs: Sequence[Conservation], color: str, label: str, shift: float, confidence: float) -> None:
    x, y = np.array([run.timestep_fs for run in runs]), np.array([run.ratio for run in runs])
    low, high = np.array([run.ratio_interval(confidence) for run in runs]).T
    bars = y - np.maximum(low, 0.05 * y), high - y  # a logarithmic axis has no zero
    ax.errorbar(shift * x, y, bars, fmt="o", ms=6, color=color, mec="white", capsize=3, label=label)


def _law(ax: Axes, law: StepLaw, color: str) -> None:
    """dt^2 where it holds, and a little beyond."""
    step, ratio, _ = law.points[len(law.points) // 2]
    grid = np.geomspace(law.first_fs / 1.3, law.last_fs * 1.3, 30)
    ax.plot(grid, ratio * (grid / step) ** ORDER, color=color, lw=1.2, ls=_DOTS, zorder=1)


def plot_scaling(path: str | Path, series: Mapping[str, Sequence[Size]], memory_GB: float) -> Path:
    """Time of a step and peak of memory against the number of atoms, with the fits and the memory there is."""
    if not any(series.values()):
        raise DataError("`series` is empty; expected at least one size. Measure one first.")
    with figure(path, 1, 2, height=3.7) as (canvas, axes):
        left, right = axes[0]
        for k, (label, sizes) in enumerate(series.items()):
            color, marker = PALETTE[k % len(PALETTE)], _MARKERS[k // len(PALETTE) % len(_MARKERS)]
            n, t = np.array([s.n_atoms for s in sizes]), np.array([s.time for s in sizes])
            low, high = np.array([s.quartiles for s in sizes]).T
            law, line = fit_times(sizes), fit_memory(sizes)
            power = "" if law is None else f", $N^{{{law.exponent:.2f}}}$"
            left.errorbar(n, t, (np.maximum(t - low, 0.0), np.maximum(high - t, 0.0)), fmt=marker, ms=6, color=color,
                          mec="white", capsize=3, label=f"{label}{power}", zorder=3)  # fmt: skip
            if law is not None:
                left.plot(n[[0, -1]], law(n[[0, -1]]), color=color, lw=1.2)
            right.plot(n, [1e-9 * s.peak for s in sizes], marker, ms=6, color=color, mec="white", zorder=3)
            if line is not None:
                _memory_line(right, line, n, memory_GB, color)
        last = max((sizes[-1] for sizes in series.values() if sizes), key=lambda s: (s.n_atoms, s.time))
        first = min(sizes[0].n_atoms for sizes in series.values() if sizes)
        linear = [last.time * first / last.n_atoms, last.time]
        left.plot([first, last.n_atoms], linear, color="black", lw=0.9, ls=_DOTS, zorder=1)
        right.axhline(memory_GB, color="black", lw=1.0, ls=_DASHES)
        left.set_ylabel("time (s/step)")
        right.set_ylabel("peak memory (GB)")
        for ax in (left, right):
            ax.set_xscale("log")
            ax.set_yscale("log")
            for axis in (ax.xaxis, ax.yaxis):
                _label_decades(axis)
            ax.set_xlabel("atoms")
        handles, labels = left.get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper left", ncols=3, borderaxespad=0.2, columnspacing=1.0)
    return Path(path)


def _memory_line(ax: Axes, line: MemoryLine, n: np.ndarray, memory_GB: float, color: str) -> None:
    """Through what was measured, thinner beyond, to where it fills the memory: an open point with its error."""
    most, error = line.atoms_in(1e9 * memory_GB)
    for first, last, width in ((n[0], n[-1], 1.3), (n[-1], most, 0.6)):
        if last > first:
            grid = np.geomspace(first, last, 60)
            ax.plot(grid, [1e-9 * line(x) for x in grid], color=color, lw=width)
    if most > n[0]:
        bars = None if error is None else [[min(error, 0.95 * most)], [error]]
        ax.errorbar([most], [memory_GB], xerr=bars, fmt="o", ms=6, mfc="white", color=color, capsize=3, zorder=4)


def _label_decades(axis: Axis) -> None:
    """Of a logarithmic axis; 1, 2, 5 where there are few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if high < _FEW_DECADES * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())
