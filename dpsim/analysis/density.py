"""The mean density of runs at constant pressure, with an error that allows for correlated samples.

rho = M / <V>: the volume is averaged, which is what the barostat's ensemble gives its conjugate of. What comes before
equilibrium is found in each run and left out; what is left of independent runs is joined end to end, so that runs that
disagree make the error larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dpsim.analysis.statistics import Estimate, equilibration_start, mean_with_error
from dpsim.errors import DataError

G_PER_CM3 = 1.66053906660  # of 1 amu/A^3
_LATEST = 0.5  # of a run: equilibration that takes longer leaves too little to be trusted


@dataclass(frozen=True)
class Density:
    """density: g/cm^3; volume: A^3. equilibration_ps: what was left out of each run.

    equilibrated: every run settled within its first half. `density.reliable` is False where the runs are short beside
    the correlation time of the volume.
    """

    density: Estimate
    volume: Estimate
    equilibration_ps: tuple[float, ...]
    equilibrated: bool


def mean_density(
    runs: Sequence[tuple[ArrayLike, ArrayLike]], mass_amu: float, skip_ps: float = 0.0, find_equilibration: bool = True
) -> Density:
    """Mean density of one system from one or more independent runs.

    Args:
        runs: (time in ps, volume in A^3) of each run, as in the columns of thermo.csv.
        mass_amu: of all atoms, amu.
        skip_ps: left out at the start of each run in any case.
        find_equilibration: leave out what comes before the start that leaves most effective samples
            (statistics.equilibration_start).

    Returns:
        Density; errors are standard errors.

    Raises:
        DataError: no runs, a mass or a volume that is not positive (a run at constant volume has none to average), too
            few samples.
    """
    if not runs or not mass_amu > 0.0:
        raise DataError(
            f"`runs` are {len(runs)} and `mass_amu` is {mass_amu:g}; expected at least one run and a positive mass. "
            "Pass the mass of all atoms."
        )
    kept: list[np.ndarray] = []
    starts: list[float] = []
    settled = True
    for times, volumes in runs:
        time, volume = np.asarray(times, dtype=np.float64), np.asarray(volumes, dtype=np.float64)
        if time.shape != volume.shape or not np.all(volume > 0.0) or len(volume) < 2 or np.ptp(volume) == 0.0:
            raise DataError(
                "`runs` have times and volumes of different length, or volumes that are not positive numbers or never "
                "change; expected those of a run at constant pressure. Give the condition a `pressure`."
            )
        chosen = time >= time[0] + skip_ps - 1e-9
        time, volume = time[chosen], volume[chosen]
        start = equilibration_start(volume) if find_equilibration else 0
        settled = settled and start <= _LATEST * len(volume)
        starts.append(float(time[start] - time[0]) + skip_ps)
        kept.append(volume[start:])
    volume_mean = mean_with_error(np.concatenate(kept))
    value = G_PER_CM3 * mass_amu / volume_mean.value
    density = Estimate(
        value=value,
        error=value * volume_mean.error / volume_mean.value,
        n_effective=volume_mean.n_effective,
        tau=volume_mean.tau,
        degrees_of_freedom=volume_mean.degrees_of_freedom,
        reliable=volume_mean.reliable,
    )
    return Density(density, volume_mean, tuple(starts), settled)
