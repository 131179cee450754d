"""Figures of structure and motion: angle distributions, spectra, densities, diffusion. Style and saving: figures.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dpsim.analysis.arrhenius import Arrhenius, ArrheniusLine
from dpsim.analysis.curves import BlockCurve, CurveComparison
from dpsim.analysis.diffusion import CM2_PER_S, Diffusion
from dpsim.analysis.figures import BLUE, GREY, PALETTE, RED, figure
from dpsim.analysis.statistics import Estimate, format_value, student_t
from dpsim.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLD_TO_HOT = ("#2f6fb2", "#4f8f9f", "#b8860b", "#d0632f", "#c8443c", "#8a3a86")


def plot_curves(
    path: str | Path,
    curves: Sequence[BlockCurve],
    x_label: str,
    y_label: str,
    comparisons: Sequence[CurveComparison] = (),
    x_max: float | None = None,
) -> Path:
    """Curves with their 95 % bands, a panel each, the reference in black."""
    if not curves:
        raise DataError("`curves` is empty; expected at least one. Compute one first.")
    references = {item.label: item for item in comparisons}
    with figure(path, len(curves), 1, height=1.0 + 1.9 * len(curves), sharex=True) as (canvas, axes):
        for ax, curve in zip(axes[:, 0], curves, strict=True):
            half = student_t(0.95, curve.n_blocks - 1) * curve.y_error
            ax.fill_between(
                curve.x, curve.y - half, curve.y + half, color=BLUE, alpha=0.25, lw=0, label="95 % interval"
            )
            ax.plot(curve.x, curve.y, color=BLUE, label="this run")
            if (reference := references.get(curve.label)) is not None:
                ax.plot(reference.x, reference.y_reference, color="black", lw=0.9, label="reference")
            if curve.y.min() < 0.0:
                ax.axhline(0.0, color=GREY, lw=0.7)
            else:
                ax.set_ylim(bottom=0.0)
            ax.set_title(curve.label)
            ax.set_ylabel(y_label)
        axes[-1, 0].set_xlabel(x_label)
        axes[-1, 0].set_xlim(curves[0].x[0], x_max if x_max is not None else curves[0].x[-1])
        handles, labels = axes[-1, 0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper right", ncols=3, borderaxespad=0.2)
    return Path(path)


def plot_density(
    path: str | Path,
    runs: Sequence[tuple[ArrayLike, ArrayLike, float]],
    density: Estimate,
    reference: float | None = None,
) -> Path:
    """Density (g/cm^3) against time (ps) of one or more stages; what was left out before equilibrium is grey.

    runs: (time, density, time at which equilibrium begins) of each.
    """
    with figure(path) as (_, axes):
        ax = axes[0, 0]
        for k, (time, values, start) in enumerate(runs):
            t, y = np.asarray(time), np.asarray(values)
            before = t < start
            if before.any():
                ax.plot(t[before], y[before], color=GREY, lw=0.8, label=None if k else "left out")
            color = PALETTE[k % len(PALETTE)]
            ax.plot(t[~before], y[~before], color=color, lw=0.8, alpha=0.8, label=None if k else "density")
        low, high = density.interval()
        ax.axhspan(low, high, color=RED, alpha=0.2, lw=0)
        ax.axhline(density.value, color=RED, label=f"mean {format_value(density.value, density.error)} g/cm³")
        if reference is not None:
            ax.axhline(reference, color="black", lw=1.1, ls="--", label=f"reference {reference:g}")
        ax.set_xlabel("time (ps)")
        ax.set_ylabel("density (g/cm³)")
        ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, borderaxespad=0.0, columnspacing=1.0)
    return Path(path)


def plot_msd(path: str | Path, items: Mapping[str, Diffusion]) -> Path:
    """How the diffusive regime was found, for any number of labelled runs (such as temperatures, cold to hot).

    Left: mean squared displacements; the line 6 D t + c is drawn where D was taken. Right: slopes D(t) with their 95 %
    bands; the D taken is a point with its interval. Where none was, there is neither.
    """
    if not items:
        raise DataError("`items` is empty; expected at least one. Compute one first.")
    colors = _shades(len(items))
    with figure(path, 1, 2, height=3.4) as (canvas, axes):
        left, right = axes[0]
        for color, (label, item) in zip(colors, items.items(), strict=True):
            text = label if item.estimate is not None else f"{label} (no D)"
            left.plot(item.lags_ps, item.msd, color=color, lw=1.3, marker=".", ms=4, label=text)
            slope, half = CM2_PER_S * item.slopes, 1.96 * CM2_PER_S * item.slope_errors
            right.fill_between(item.lags_ps, slope - half, slope + half, color=color, alpha=0.18, lw=0)
            right.plot(item.lags_ps, slope, color=color, lw=1.3)
            if item.estimate is not None:
                _mark_estimate(left, right, item, color)
        for ax in (left, right):
            ax.set_xscale("log")
            ax.set_xlabel("lag (ps)")
        left.set_yscale("log")
        left.set_ylabel("mean squared displacement (Å²)")
        right.set_ylabel("slope / 6 (cm²/s)")
        right.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        _frame_slopes(right, list(items.values()))
        handles, labels = left.get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper left", ncols=5, borderaxespad=0.2, columnspacing=1.0)
    return Path(path)


def plot_arrhenius(
    path: str | Path,
    points: Sequence[tuple[float, Estimate]],
    fit: Arrhenius | None,
    references: Sequence[tuple[float, float]] = (),
    bounds: Sequence[tuple[float, float]] = (),
) -> Path:
    """D (cm^2/s, logarithmic) against 1000/T with 95 % intervals, and the line, or both where it breaks.

    points: (T in K, D). references: (T, D). bounds: (T, D) where atoms stay on their sites: D is below.
    """
    with figure(path, height=4.0) as (_, axes):
        ax = axes[0, 0]
        if references:
            t, d = np.array(references).T
            ax.plot(1000.0 / t, d, "s", ms=6, mfc="none", mec="black", color="black", label="reference")
        for lines, style, color in _lines(fit):
            for line in lines:
                t = np.linspace(min(line.temperatures_K), max(line.temperatures_K), 60)
                ax.plot(1000.0 / t, line.predict(t), color=color, ls=style, lw=1.3, label=_line_label(line))
        if points:
            t = np.array([temperature for temperature, _ in points])
            d = np.array([estimate.value for _, estimate in points])
            low, high = np.array([estimate.interval() for _, estimate in points]).T
            low = np.maximum(low, 0.05 * d)  # a logarithmic axis has no zero
            ax.errorbar(1000.0 / t, d, (d - low, high - d), fmt="o", ms=6, color=BLUE, mec="white", capsize=3,
                        label="this run, 95 %", zorder=4)  # fmt: skip
        for k, (temperature, bound) in enumerate(bounds):
            ax.plot([1000.0 / temperature], [bound], marker="v", ls="none", ms=7, color=GREY,
                    label="upper bound: caged" if k == 0 else None)  # fmt: skip
        ax.set_yscale("log")
        ax.set_xlabel("1000 K / $T$")
        ax.set_ylabel("$D$ (cm²/s)")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="best")
    return Path(path)


def _lines(fit: Arrhenius | None) -> list[tuple[list[ArrheniusLine], str, str]]:
    """What to draw: one line; where it breaks, thin and beside the two."""
    if fit is None:
        return []
    if not fit.broken() or fit.below is None or fit.above is None:
        return [([fit.line], "-", BLUE)]
    return [([fit.line], ":", GREY), ([fit.below, fit.above], "-", RED)]


def _line_label(line: ArrheniusLine) -> str:
    first, last = line.temperatures_K[0], line.temperatures_K[-1]
    return f"{first:g}–{last:g} K: $E_a$ = {format_value(line.activation_energy_eV, line.error_eV)} eV"


def _mark_estimate(left: Axes, right: Axes, item: Diffusion, color: str) -> None:
    """The line 6 D t + c through the lags from which D was taken, and D with its interval."""
    low, high = (CM2_PER_S * d for d in item.interval())
    value = CM2_PER_S * item.value
    right.errorbar([item.lag_ps], [value], [[value - low], [high - value]], fmt="o", color=color, ms=6, mec="white",
                   capsize=3, zorder=4)  # fmt: skip
    lags = item.lags_ps[item.lags_ps >= item.lag_ps]
    if len(lags) > 1:
        start = float(np.interp(lags[0], item.lags_ps, item.msd))
        left.plot(lags, start + 6.0 * item.value * (lags - lags[0]), color="black", lw=0.9, ls="--", zorder=4)


def _frame_slopes(ax: Axes, items: Sequence[Diffusion]) -> None:
    """Limits by what was taken as D, not by the fast motion at short lags."""
    taken = [item for item in items if item.estimate is not None]
    tops = [max(item.interval()[1], 1.6 * item.value) for item in taken] or [
        float(item.slopes[len(item.slopes) // 3]) for item in items
    ]
    top = CM2_PER_S * 1.3 * max(tops)
    if top > 0.0:
        ax.set_ylim(-0.05 * top, top)


def _shades(n: int) -> list[str]:
    """n colors from cold to hot."""
    if n == 1:
        return [BLUE]
    return [_COLD_TO_HOT[round(k * (len(_COLD_TO_HOT) - 1) / (n - 1))] for k in range(n)]
