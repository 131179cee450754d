"""Constant pressure by Monte Carlo moves of the cell, for any engine that can evaluate a trial structure.

A move strains cell and positions by exp(s G), s uniform in -s_max ... s_max, and is accepted with the probability

    min(1, exp(-(dU + P dV)/kT + (n + 1) ln(V'/V)))

for n free atoms. G is 1/3 for `isotropic` (s = d ln V); stretches one lattice vector for `anisotropic`; is one of the
six symmetric strains for `triclinic`. The power n + 1: in the measure that s is uniform in, d ln V, a product of
d ln a_k, or dh / V^3, the distributions V^n dV, V^n da db dc and V^(n-2) dh of constant pressure become V^(n+1).

Source: K.-H. Chow and D. M. Ferguson, Comput. Phys. Commun. 91, 283 (1995); G. J. Martyna, D. J. Tobias and
M. L. Klein, J. Chem. Phys. 101, 4177 (1994) for V^(n-2) dh; s_max adapts as OpenMM's does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dpsim.engines.base import Array
from dpsim.units import BOLTZMANN_EV_PER_K, EV_PER_A3_IN_BAR

_FIRST, _LARGEST = 0.01, 0.3  # s_max at the start and at most
_JUDGED_AFTER = 10  # moves of a kind
_TOO_FEW, _TOO_MANY, _FACTOR = 0.25, 0.75, 1.1  # shares of accepted moves beyond which s_max changes by the factor


@dataclass(frozen=True)
class Trial:
    """A proposed structure; `kind` counts the strains that the barostat chooses from."""

    positions: Array
    cell: Array
    kind: int
    volume_change: float
    log_volume_ratio: float


class MonteCarloBarostat:
    """Proposes and accepts moves. n_free: (degrees of freedom)/3, so that 2K/3V + tr(virial)/3V averages to P."""

    def __init__(
        self,
        cell_change: Literal["isotropic", "anisotropic", "triclinic"],
        pressure_bar: float,
        temperature_K: float,
        n_free: float,
    ):
        self._cell_change = cell_change
        self._pressure = pressure_bar / EV_PER_A3_IN_BAR
        self._kT = BOLTZMANN_EV_PER_K * temperature_K
        self._n_free = n_free
        n_kinds = {"isotropic": 1, "anisotropic": 3, "triclinic": 6}[cell_change]
        self._largest = np.full(n_kinds, _FIRST)
        self._tried, self._accepted = np.zeros(n_kinds), np.zeros(n_kinds)

    def propose(self, positions: Array, cell: Array, random: np.random.Generator) -> Trial:
        """A strained structure of positions (n, 3) and cell (3, 3), A; atoms keep their scaled coordinates."""
        kind = int(random.integers(len(self._largest)))
        s = float(random.uniform(-1.0, 1.0) * self._largest[kind])
        if self._cell_change == "anisotropic":
            stretch = np.eye(3)
            stretch[kind, kind] = math.exp(s)
            strained = stretch @ cell
        else:
            strained = cell @ self._strain(kind, s)
        moved = np.linalg.solve(cell.T, positions.T).T @ strained
        volume, new = (abs(float(np.linalg.det(h))) for h in (cell, strained))
        return Trial(moved, strained, kind, new - volume, math.log(new / volume))

    def _strain(self, kind: int, s: float) -> Array:
        """exp(s G): symmetric, (3, 3)."""
        if self._cell_change == "isotropic":
            return math.exp(s / 3.0) * np.eye(3)
        strain = np.eye(3)
        if kind < 3:
            strain[kind, kind] = math.exp(s)
        else:
            a, b = ((1, 2), (0, 2), (0, 1))[kind - 3]
            strain[a, a] = strain[b, b] = math.cosh(s)
            strain[a, b] = strain[b, a] = math.sinh(s)
        return strain

    def accept(self, trial: Trial, energy_change: float, random: np.random.Generator) -> bool:
        """Whether the move is made; energy_change eV."""
        work = energy_change + self._pressure * trial.volume_change
        log_probability = -work / self._kT + (self._n_free + 1.0) * trial.log_volume_ratio
        accepted = math.log(1.0 - random.uniform()) < log_probability
        self._adapt(trial.kind, accepted)
        return accepted

    def _adapt(self, kind: int, accepted: bool) -> None:
        self._tried[kind] += 1
        self._accepted[kind] += accepted
        if self._tried[kind] < _JUDGED_AFTER:
            return
        share = self._accepted[kind] / self._tried[kind]
        if share < _TOO_FEW:
            self._largest[kind] /= _FACTOR
        elif share > _TOO_MANY:
            self._largest[kind] = min(_FACTOR * self._largest[kind], _LARGEST)
        else:
            return
        self._tried[kind] = self._accepted[kind] = 0.0

    def memory(self) -> Array:
        """(3, n_kinds): s_max, moves tried and accepted since it last changed."""
        return np.stack([self._largest, self._tried, self._accepted])

    def recall(self, memory: Array) -> None:
        """Go on as after `memory` was taken."""
        self._largest, self._tried, self._accepted = memory.copy()
