"""What stops a stage at once: numbers that are none, an explosion, an atom that flies off, heat from nowhere.

    explodes         T > max_temperature, or NaN; an atom flies off where 2 K_i / 3 k_B > 10 max_temperature
    heats up         with a thermostat: <T> > 2 T_target, an exponential average over 20 relaxation times, so that heat
                     which the thermostat can take up in time does no harm;
                     at constant energy: |E - E_0| > 3 N k_B max_temperature / 10
    comes apart      npt: the volume is beyond 1/10 ... 10 times that at the start

`RunningDrift` is what a person is shown meanwhile.
"""

from __future__ import annotations

import math

import numpy as np

from dpsim.engines.base import Array, StageSettings, State
from dpsim.errors import MissingDependencyError, SimulationError
from dpsim.units import BOLTZMANN_EV_PER_K

try:
    from ase.data import chemical_symbols
except ImportError as error:
    raise MissingDependencyError("ase", "ase", "Every engine") from error

HOT_ATOM = 10.0  # times max_temperature
HEATED = 2.0  # times the thermostat's temperature
HEATED_OVER = 20.0  # relaxation times of the thermostat
DRIFTED = 0.1  # times max_temperature
VOLUME_CHANGE = 10.0


class Safety:
    """Checks of one stage; `start` is the state it begins or goes on from. Each raises SimulationError."""

    def __init__(self, stage: StageSettings, start: State):
        self.stage, self.start = stage, start
        self._average = stage.temperature_K
        self._energy: float | None = None
        self._volume = abs(float(np.linalg.det(start.cell)))
        self._step: int | None = None

    def check_motion(self, step: int, temperature: float, kinetic: Array, positions: Array) -> None:
        """temperature: K; kinetic: (n, 3) eV, p^2 / 2m of each component; positions: (n, 3) A."""
        limit = self.stage.max_temperature_K
        per_atom = np.nan_to_num(kinetic.sum(axis=1), nan=np.inf)
        atom = int(np.argmax(per_atom))
        own = 2.0 * float(per_atom[atom]) / (3.0 * BOLTZMANN_EV_PER_K)
        if not (temperature <= limit and np.isfinite(positions).all()):
            what = f"is {temperature:.0f} K" if np.isfinite(temperature) else "is not finite"
            raise SimulationError(
                f"`temperature` {what}; expected at most {limit:g} K. The fastest atom is "
                f"{self._place(atom, positions)}. {self._advice()}"
            )
        if own > HOT_ATOM * limit:
            raise SimulationError(
                f"{self._place(atom, positions)} flies off with {per_atom[atom]:.3g} eV, {own:.0f} K; expected at "
                f"most {HOT_ATOM:g} times max_temperature, {limit:g} K. {self._advice()}"
            )
        self._check_heating(step, temperature)

    def _check_heating(self, step: int, temperature: float) -> None:
        target, damping = self.stage.temperature_K, self.stage.thermostat_damping_fs
        if self._average is None or target is None or not damping:
            return
        passed = 0 if self._step is None else (step - self._step) * self.stage.timestep_fs
        self._average += (temperature - self._average) * -math.expm1(-passed / (HEATED_OVER * damping))
        self._step = step
        if self._average > HEATED * target:
            raise SimulationError(
                f"the atoms heat up: `temperature` is {self._average:.0f} K on average over {HEATED_OVER:g} relaxation "
                f"times of the thermostat; expected {target:g} K. {self._advice()}"
            )

    def check_energy(self, total: float, volume: float) -> None:
        """total: kinetic and potential energy, eV; volume: A^3, NaN where there is none."""
        if self._energy is None:
            self._energy = total
        change = total - self._energy
        allowed = 3.0 * self.start.n_atoms * BOLTZMANN_EV_PER_K * DRIFTED * self.stage.max_temperature_K
        if self.stage.kind == "nve" and abs(change) > allowed:
            raise SimulationError(
                f"`total energy` has changed by {change:.4g} eV, {change / self.start.n_atoms:.3g} eV/atom; expected a "
                f"constant. {self._advice()}"
            )
        if self.stage.kind == "npt" and not self._volume / VOLUME_CHANGE < volume < self._volume * VOLUME_CHANGE:
            raise SimulationError(
                f"the cell comes apart: `volume` is {volume:.4g} A^3; expected about {self._volume:.4g} A^3, as at the "
                "start. Reduce the time step, raise `pressure_damping`, or check that the model knows such densities."
            )

    def _place(self, atom: int, positions: Array) -> str:
        x, y, z = positions[atom]
        return f"{chemical_symbols[self.start.numbers[atom]]} atom {atom} at ({x:.4g}, {y:.4g}, {z:.4g}) A"

    def _advice(self) -> str:
        return (
            f"Reduce the time step ({self.stage.timestep_fs:g} fs), minimise the structure first, or check that the "
            "model knows such structures."
        )


class RunningDrift:
    """The slope of a least-squares line through all points so far (Welford's sums)."""

    def __init__(self) -> None:
        self.n, self.t, self.y, self.stt, self.sty = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, t: float, y: float) -> None:
        """One more point."""
        self.n += 1
        before = t - self.t
        self.t += before / self.n
        self.y += (y - self.y) / self.n
        self.stt += before * (t - self.t)
        self.sty += before * (y - self.y)

    @property
    def slope(self) -> float | None:
        """In units of y per unit of t; None of less than three times, or where y was no number."""
        return self.sty / self.stt if self.n > 2 and self.stt > 0.0 and math.isfinite(self.sty) else None
