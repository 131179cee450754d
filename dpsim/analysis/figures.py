"""The figures of a report, in one style: print-ready, colour-blind-safe, error bands where there are errors.

Every function writes one PNG and returns its path. The palette is that of P. Tol (2021): it keeps its contrast for
colour-blind readers and in greyscale. References are black, simulations blue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dpsim.analysis.diffusion import Diffusion
from dpsim.analysis.dynamics import MEV_PER_EV, DriftResult, ScalingResult
from dpsim.analysis.figure_data import figure_data, with_data
from dpsim.analysis.rdf_reference import RDFComparison
from dpsim.analysis.rdf_shells import RDF
from dpsim.analysis.statistics import format_value, mean_with_error, student_t
from dpsim.errors import DataError, MissingDependencyError
from dpsim.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, RED, GREEN, YELLOW, PURPLE, GREY = "#2f6fb2", "#c8443c", "#2a8a5a", "#b8860b", "#8a3a86", "#8a8f98"
PALETTE = (BLUE, RED, GREEN, YELLOW, PURPLE)
INK = "#1d2329"
_DPI = 200
_WIDTH = 6.4  # inches; single-panel figures are 6.4 x 3.6
_MAX_POINTS = 4000  # more points than pixels only blur a line

STYLE: dict[str, object] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.labelsize": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": "#4a515a",
    "axes.labelcolor": INK,
    "axes.formatter.useoffset": False,
    "axes.formatter.use_mathtext": True,
    "text.color": INK,
    "xtick.color": "#4a515a",
    "ytick.color": "#4a515a",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def figure(
    path: str | Path, rows: int = 1, columns: int = 1, height: float = 3.6, sharex: bool = False
) -> Iterator[tuple[Figure, Any]]:
    """A figure of rows x columns axes in the house style, saved to `path` as PNG when the block ends.

    The PNG carries its data (figure_data.py), from which the report draws it again, to zoom and to point at.

    Yields:
        (figure, axes), axes as an array (rows, columns).
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "analysis", "A figure") from error
    path = Path(path)
    with rc_context(STYLE):  # type: ignore[arg-type]
        canvas = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasAgg(canvas)
        yield canvas, canvas.subplots(rows, columns, squeeze=False, sharex=sharex)
        path.parent.mkdir(parents=True, exist_ok=True)
        image = BytesIO()
        canvas.savefig(image, dpi=_DPI, format="png", metadata={"Software": "dpsim"})
        data = figure_data(canvas)
        atomic_write(path, image.getvalue() if data is None else with_data(image.getvalue(), data))


def plot_rdf(
    path: str | Path,
    rdfs: Sequence[RDF],
    comparisons: Sequence[RDFComparison] = (),
    reference_label: str = "reference",
    label: str = "this run",
) -> Path:
    """g(r) with its 95 % band, one panel per pair, the reference in black.

    Intramolecular peaks taller than the rest are cut off; their height is written beside the cut.
    """
    if not rdfs:
        raise DataError("`rdfs` is empty; expected at least one RDF. Compute one first.")
    by_label = {c.label: c for c in comparisons}
    with figure(path, len(rdfs), 1, height=0.9 + 2.0 * len(rdfs), sharex=True) as (canvas, axes):
        for ax, item in zip(axes[:, 0], rdfs, strict=True):
            _rdf_panel(ax, item, by_label.get(item.label), reference_label, label)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper right", ncols=3, borderaxespad=0.2)
        axes[-1, 0].set_xlabel("$r$ (Å)")
        axes[-1, 0].set_xlim(0.0, max(item.edges[-1] for item in rdfs))
    return Path(path)


def _rdf_panel(ax: Axes, item: RDF, comparison: RDFComparison | None, reference_label: str, label: str) -> None:
    """One pair."""
    half = student_t(0.95, item.n_blocks - 1) * item.g_error
    ax.axhline(1.0, color=GREY, lw=0.7, ls=(0, (4, 3)), zorder=0)
    ax.fill_between(item.r, item.g - half, item.g + half, color=BLUE, alpha=0.25, lw=0, zorder=2, label="95 % interval")
    ax.plot(item.r, item.g, color=BLUE, lw=2.0, zorder=3, label=label)
    if comparison is not None:
        ax.plot(comparison.r, comparison.g_reference, color="black", lw=0.9, zorder=4, label=reference_label)
    top = _visible_maximum(item, comparison)
    ax.set_ylim(0.0, 1.12 * top)
    for shell in item.shells:
        if shell.peak_height.value > 1.12 * top:
            ax.annotate(
                f"↑ {shell.peak_height.value:.1f}",
                (shell.peak_position.value + 0.14, 1.08 * top),
                color=BLUE,
                fontsize=8.5,
                va="top",
            )
    a, b = item.pair
    ax.set_ylabel(rf"$g_{{\mathrm{{{a}{b}}}}}(r)$")


def _visible_maximum(item: RDF, comparison: RDFComparison | None) -> float:
    """Top of the axis: the highest peak, but sharp bonds at least twice as tall as the others are cut off."""
    heights = sorted((shell.peak_height.value for shell in item.shells), reverse=True)
    top = float(item.g.max())
    if len(heights) > 1 and heights[0] > 4.0 * heights[1]:
        top = 1.3 * heights[1]
    elif comparison is not None:
        top = max(top, float(comparison.g_reference.max()))
    return max(top, 1.3)


def plot_energy_drift(path: str | Path, time_ps: ArrayLike, total_energy_eV: ArrayLike, drift: DriftResult) -> Path:
    """Total energy per atom against time, with the fitted drift and the 95 % band of the line."""
    times, energy = _paired(time_ps, total_energy_eV)
    per_atom = MEV_PER_EV / drift.n_atoms * (energy - energy[0])
    line = drift.fit.predict(times)
    half = student_t(0.95, drift.fit.degrees_of_freedom) * drift.fit.predict_error(times)
    center = float(drift.fit.predict(drift.fit.t_mean))
    value, error = drift.drift, drift.error
    with figure(path) as (_, axes):
        ax = axes[0, 0]
        _series_line(ax, times, per_atom - center, "total energy")
        ax.fill_between(times, line - center - half, line - center + half, color=RED, alpha=0.2, lw=0, zorder=3)
        label = f"drift {format_value(value, error)} meV/atom/ps"
        ax.plot(times, line - center, color=RED, lw=1.8, zorder=4, label=label)
        ax.set_xlabel("time (ps)")
        ax.set_ylabel("total energy − mean (meV/atom)")
        _time_axis(ax, times)
        _room_for_legend(ax)
        ax.legend(loc="upper left", ncols=2, borderaxespad=0.0)
    return Path(path)


def plot_temperature(
    path: str | Path, time_ps: ArrayLike, temperature_K: ArrayLike, target_K: float | None = None
) -> Path:
    """Temperature against time, with its running and total mean, and the target if there is one."""
    times, temperature = _paired(time_ps, temperature_K)
    estimate = mean_with_error(temperature)
    with figure(path) as (_, axes):
        ax = axes[0, 0]
        _series_line(ax, times, temperature, "instantaneous")
        label = f"mean {format_value(estimate.value, estimate.error)} K"
        ax.axhline(estimate.value, color=RED, lw=1.8, zorder=4, label=label)
        if target_K is not None:
            ax.axhline(target_K, color="black", lw=1.1, ls=(0, (5, 3)), zorder=5, label=f"target {target_K:g} K")
        ax.set_xlabel("time (ps)")
        ax.set_ylabel("temperature (K)")
        _time_axis(ax, times)
        _room_for_legend(ax)
        ax.legend(loc="upper left", ncols=3, borderaxespad=0.0)
    return Path(path)


def plot_deviation(
    path: str | Path,
    time_ps: ArrayLike,
    series: Mapping[str, ArrayLike],
    levels: Sequence[tuple[str, float]] = (),
) -> Path:
    """Model deviations of the forces (eV/A) against time: `series` of max, avg and min over atoms, named `levels`."""
    with figure(path) as (_, axes):
        ax = axes[0, 0]
        for color, (name, values) in zip((RED, BLUE, GREEN), series.items(), strict=False):
            times, y = _paired(time_ps, values)
            _series_line(ax, times, y, f"{name} over atoms", color)
        if all((np.asarray(values) > 0.0).all() for values in series.values()):
            ax.set_yscale("log")
        for name, level in ((n, x) for n, x in levels if x > 0.0):
            ax.axhline(level, color="black", lw=1.0, ls=(0, (1, 2) if name == "trust" else (5, 3)), zorder=5)
            ax.annotate(name, (1.0, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
        ax.set_xlabel("time (ps)")
        ax.set_ylabel("model deviation (eV/Å)")
        _time_axis(ax, times)
        ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, borderaxespad=0.0)
    return Path(path)


def plot_thermo(path: str | Path, time_ps: ArrayLike, series: Mapping[str, ArrayLike]) -> Path:
    """Several quantities against one time axis, a panel each; `series` maps axis labels with units to values."""
    if not series:
        raise DataError("`series` is empty; expected at least one quantity. Name one, as {'pressure (bar)': values}.")
    with figure(path, len(series), 1, height=0.6 + 1.6 * len(series), sharex=True) as (canvas, axes):
        for k, (ax, (label, values)) in enumerate(zip(axes[:, 0], series.items(), strict=True)):
            times, y = _paired(time_ps, values)
            _series_line(ax, times, y, None, PALETTE[k % len(PALETTE)])
            ax.axhline(float(y.mean()), color=INK, lw=1.0, zorder=4)
            ax.set_ylabel(label)
            _time_axis(ax, times)
        axes[-1, 0].set_xlabel("time (ps)")
        canvas.align_ylabels(axes[:, 0])
    return Path(path)


def plot_timestep_scaling(path: str | Path, scaling: ScalingResult, errors: ArrayLike | None = None) -> Path:
    """Energy fluctuation against time step on logarithmic axes, with the fitted power and the ideal dt^2."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    steps, values = np.array(scaling.timesteps_fs), np.array(scaling.fluctuations)
    grid = np.geomspace(0.8 * steps.min(), 1.25 * steps.max(), 50)
    middle = float(np.exp(np.mean(np.log(steps))))
    anchor = scaling.prefactor * middle**scaling.exponent
    with figure(path, height=3.8) as (_, axes):
        ax = axes[0, 0]
        ax.plot(grid, anchor * (grid / middle) ** 2, color="black", lw=1.0, ls=(0, (5, 3)), label=r"ideal $\Delta t^2$")
        power = (
            f"{scaling.exponent:.2f}"
            if not np.isfinite(scaling.error)
            else format_value(scaling.exponent, scaling.error)
        )
        ax.plot(grid, scaling.prefactor * grid**scaling.exponent, color=RED, label=f"fit: exponent {power}")
        ax.errorbar(steps, values, yerr=errors, fmt="o", ms=6, color=BLUE, mec="white", capsize=3, zorder=4)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xticks(steps, [f"{s:g}" for s in steps])
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.minorticks_off()
        ax.set_xlabel("time step (fs)")
        ax.set_ylabel("energy fluctuation (meV/atom)")
        ax.legend(loc="upper left", borderaxespad=0.0)
    return Path(path)


def plot_parity(path: str | Path, panels: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Path:
    """Predicted against reference values, one square panel per quantity: {"forces (eV/Å)": (reference, predicted)}."""
    if not panels:
        raise DataError("`panels` is empty; expected at least one quantity. Pass {'forces (eV/Å)': (ref, predicted)}.")
    n = len(panels)
    with figure(path, 1, n, height=min(4.6, _WIDTH / n + 0.25)) as (_, axes):
        for ax, (label, (reference, predicted)) in zip(axes[0], panels.items(), strict=True):
            x, y = _paired(np.ravel(reference), np.ravel(predicted), "reference", "predicted")
            _parity_panel(ax, x, y, label)
    return Path(path)


def _parity_panel(ax: Axes, x: np.ndarray, y: np.ndarray, label: str) -> None:
    """Points thinned to what a page can show, the diagonal, and the errors over all of them."""
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    margin = 0.05 * (high - low or 1.0)
    shown = np.random.default_rng(0).permutation(len(x))[: 5 * _MAX_POINTS]
    ax.plot([low - margin, high + margin], [low - margin, high + margin], color="black", lw=0.9, zorder=3)
    alpha = float(np.clip(300.0 / max(len(shown), 1), 0.08, 0.8))
    ax.scatter(x[shown], y[shown], s=9, color=BLUE, alpha=alpha, linewidths=0, zorder=2, rasterized=True)
    rmse, mae = float(np.sqrt(np.mean((x - y) ** 2))), float(np.mean(np.abs(x - y)))
    ax.set_xlim(low - margin, high + margin)
    ax.set_ylim(low - margin, high + margin)
    ax.set_aspect("equal")
    name, _, unit = label.partition("(")
    unit = unit.rstrip(")")
    ax.text(0.05, 0.95, f"RMSE {rmse:.3g} {unit}\nMAE {mae:.3g} {unit}", transform=ax.transAxes, va="top", fontsize=8.5)
    ax.set_title(name.strip().capitalize())
    ax.set_xlabel(f"reference ({unit})" if unit else "reference")
    ax.set_ylabel(f"predicted ({unit})" if unit else "predicted")


def plot_diffusion(path: str | Path, runs: Mapping[str, Diffusion], reference: str = "") -> Path:
    """Mean squared displacements, and their slopes D(t) with 95 % bands; the D taken is marked.

    runs: {"student": Diffusion, ...}, at most five; the one named `reference` is drawn in black.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if not runs:
        raise DataError("`runs` is empty; expected at least one diffusion coefficient. Compute one first.")
    with figure(path, 1, 2, height=3.0) as (_, axes):
        left, right = axes[0]
        colors = iter(PALETTE)
        for label, item in runs.items():
            color = "black" if label == reference else next(colors)
            left.plot(item.lags_ps, item.msd, color=color, label=label)
            half = 1.96 * item.slope_errors
            right.fill_between(item.lags_ps, item.slopes - half, item.slopes + half, color=color, alpha=0.2, lw=0)
            right.plot(item.lags_ps, item.slopes, color=color, label=label)
            if item.estimate is not None:
                low, high = item.interval()
                error = [[item.value - low], [high - item.value]]
                right.errorbar(item.lag_ps, item.value, error, fmt="o", color=color, ms=5, mec="white", capsize=3)
        left.set_yscale("log")
        left.set_ylabel("mean squared displacement (Å²)")
        right.set_ylabel("slope / 6 (Å²/ps)")
        right.set_ylim(bottom=min(0.0, right.get_ylim()[0]))
        for ax in (left, right):
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_xlabel("lag (ps)")
        left.legend(loc="upper left", borderaxespad=0.0)
    return Path(path)


def plot_learning_curve(path: str | Path, step: ArrayLike, curves: Mapping[str, Mapping[str, ArrayLike]]) -> Path:
    """RMSE against training step, logarithmic: {"forces (meV/Å)": {"training": y, "validation": y}}, a panel each."""
    if not curves:
        raise DataError("`curves` is empty; expected at least one quantity. Pass {'forces (meV/Å)': {'training': y}}.")
    colors = {"training": GREY, "validation": BLUE}
    with figure(path, len(curves), 1, height=0.6 + 2.0 * len(curves), sharex=True) as (canvas, axes):
        for ax, (label, lines) in zip(axes[:, 0], curves.items(), strict=True):
            for k, (name, values) in enumerate(lines.items()):
                x, y = _paired(step, values)
                ax.plot(x, y, color=colors.get(name, PALETTE[k % len(PALETTE)]), lw=1.3, label=name)
            ax.set_yscale("log")
            ax.set_ylabel(label)
        axes[0, 0].legend(loc="upper right", ncols=2, borderaxespad=0.0)
        axes[-1, 0].set_xlabel("step")
        axes[-1, 0].set_xlim(left=0)
        canvas.align_ylabels(axes[:, 0])
    return Path(path)


def _series_line(ax: Axes, times: np.ndarray, values: np.ndarray, label: str | None, color: str = BLUE) -> None:
    """A noisy series: light samples, thinned by envelope, and a dark moving average."""
    n = len(values)
    if n > 2 * _MAX_POINTS:
        size = n // _MAX_POINTS
        blocks = values[: n // size * size].reshape(-1, size)
        envelope = times[: n // size * size].reshape(-1, size).mean(axis=1)
        ax.fill_between(envelope, blocks.min(axis=1), blocks.max(axis=1), color=color, alpha=0.35, lw=0, label=label)
    else:
        ax.plot(times, values, color=color, lw=0.6, alpha=0.55, zorder=1, label=label)
    width = n // 25
    if width > 3:
        kernel = np.hanning(width + 2)[1:-1]  # no side lobes: vibrations leave no ripple
        kernel /= kernel.sum()
        half = width // 2
        smooth = np.convolve(values, kernel, mode="valid")
        ax.plot(times[half : half + len(smooth)], smooth, color=color, lw=1.5, zorder=2)


def _time_axis(ax: Axes, times: np.ndarray) -> None:
    """From the first to the last time, and the tick a step behind it: 2 ps where the run ends at 1.9995 ps."""
    ax.set_xlim(times[0], times[-1] + 2.0 * float(np.median(np.diff(times))))


def _room_for_legend(ax: Axes) -> None:
    """Raise the upper limit so that a one-line legend covers no data."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.16 * (high - low))


def _paired(x: ArrayLike, y: ArrayLike, x_name: str = "time", y_name: str = "values") -> tuple[np.ndarray, np.ndarray]:
    """Both as equally long vectors of at least two numbers."""
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) < 2:
        raise DataError(
            f"`{x_name}` has shape {first.shape} and `{y_name}` {second.shape}; expected two equal vectors of at least "
            "2 numbers. Pass one value per point."
        )
    return first, second
