"""The figures of a phase scan: quantities against temperature or pressure, there and back, with their transitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpsim.analysis.figures import BLUE, GREEN, GREY, INK, RED, figure
from dpsim.analysis.statistics import Estimate
from dpsim.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_QUANTITY_COLOURS = (BLUE, RED, GREEN)
_MARKERS = ("o", "s", "^")


@dataclass(frozen=True)
class ScanBranch:
    """One way through the scan. values, settled: of each quantity at each x, and whether it had settled."""

    name: str
    x: Sequence[float]
    values: Mapping[str, Sequence[Estimate]]
    settled: Mapping[str, Sequence[bool]]


@dataclass(frozen=True)
class ScanPanel:
    """Quantities that share an axis. spans: (branch, low, high) of transitions; references: (x, value)."""

    label: str
    quantities: Sequence[str]
    spans: Sequence[tuple[str, float, float]] = field(default_factory=tuple)
    references: Sequence[tuple[float, float]] = field(default_factory=tuple)


def plot_phase_scan(path: str | Path, branches: Sequence[ScanBranch], panels: Sequence[ScanPanel], xlabel: str) -> Path:
    """A panel below the other, 95 % intervals; heating (compression) filled, cooling open; grey where not settled."""
    if not branches or not panels:
        raise DataError("`branches` or `panels` is empty; expected at least one of each. Finish a point first.")
    with figure(path, len(panels), 1, height=0.7 + 1.9 * len(panels), sharex=True) as (_, axes):
        for ax, panel in zip(axes[:, 0], panels, strict=True):
            _panel(ax, panel, branches)
        axes[-1, 0].set_xlabel(xlabel)
    return Path(path)


def _panel(ax: Axes, panel: ScanPanel, branches: Sequence[ScanBranch]) -> None:
    from matplotlib.ticker import MaxNLocator

    single = len(panel.quantities) == 1
    for k, branch in enumerate(branches):
        for low, high in ((a, b) for name, a, b in panel.spans if name == branch.name):
            ax.axvspan(low, high, color=(RED, BLUE)[k % 2], alpha=0.13, lw=0, zorder=0)
        for j, quantity in enumerate(panel.quantities):
            color = (RED, BLUE)[k % 2] if single else _QUANTITY_COLOURS[j % 3]
            label = branch.name if single else (quantity if k == 0 else None)
            _series(ax, branch, quantity, color, _MARKERS[j % 3], k == 0, label)
    if panel.references:
        x, y = zip(*panel.references, strict=True)
        ax.plot(x, y, ls="", marker="x", ms=7, mew=1.6, color=INK, zorder=6, label="reference")
    ax.set_ylabel(panel.label)
    ax.yaxis.set_major_locator(MaxNLocator(5))  # whatever the size of the panel, which depends on the ticks
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.2 * (high - low))
    ax.legend(loc="upper left", ncols=4, borderaxespad=0.0)


def _series(
    ax: Axes, branch: ScanBranch, quantity: str, color: str, marker: str, filled: bool, label: str | None
) -> None:
    values = branch.values[quantity]
    x, y = np.array(branch.x), np.array([v.value for v in values])
    half = np.array([0.5 * np.subtract(*v.interval()[::-1]) for v in values])
    dashes = "-" if filled else (0, (4, 3))
    face = color if filled else "white"
    ax.errorbar(x, y, yerr=half, ls="", color=color, capsize=2.5, lw=1.1, zorder=3)
    ax.plot(x, y, color=color, lw=0.9, ls=dashes, marker=marker, ms=5, mfc=face, zorder=4, label=label)
    late = ~np.array(branch.settled[quantity], dtype=bool)
    if late.any():
        ax.plot(x[late], y[late], ls="", marker=marker, ms=5, color=GREY, mfc=GREY if filled else "white", zorder=5)
