"""ASE calculators that distillation tests name by their Python path: honest ones, and some that go wrong."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones


def lennard_jones(epsilon: float = 0.05) -> LennardJones:
    """A world in which labels cost nothing."""
    return LennardJones(sigma=2.3, epsilon=epsilon, rc=5.0, smooth=True)


class Odd(Calculator):
    """Goes wrong as `mode` says wherever the first atom has x > 10 A; otherwise 1 eV and no forces anywhere."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, mode: str = "raises"):
        super().__init__()
        self.mode, self.converged, self.broken = mode, True, False

    def calculate(
        self, atoms: Any = None, properties: list[str] | None = None, system_changes: list[str] = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        if self.broken:
            raise RuntimeError("an earlier failure broke this calculator")
        forces = np.zeros((len(atoms), 3))
        self.results = {"energy": 1.0, "forces": forces}
        if atoms.positions[0, 0] <= 10.0:
            return
        self.broken = True
        match self.mode:
            case "raises":
                raise RuntimeError("SCF\ncycle limit")
            case "nan":
                forces[1, 2] = np.nan
            case "unconverged":
                self.converged = False
            case "no energy":
                del self.results["energy"]
            case "no forces":
                del self.results["forces"]
            case "wrong shape":
                self.results["forces"] = forces[:1]
            case "full disk":
                raise OSError(28, "No space left on device")


class Deadly(Odd):
    """Takes its process with it on the frame whose first atom is at `x` (A)."""

    def __init__(self, x: float):
        super().__init__()
        self.x = x

    def calculate(
        self, atoms: Any = None, properties: list[str] | None = None, system_changes: list[str] = all_changes
    ) -> None:
        if abs(atoms.positions[0, 0] - self.x) < 1e-6:
            os.kill(os.getpid(), signal.SIGKILL)
        super().calculate(atoms, properties, system_changes)


def nothing() -> None:
    """Not a calculator."""


def refuses() -> None:
    raise FileNotFoundError("no such program: vasp_std")
