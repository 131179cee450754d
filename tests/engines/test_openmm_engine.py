"""The OpenMM engine passes the conformance suite; and what is particular to OpenMM."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'dpsim[openmm]'")

from conformance import EngineConformance
from dpsim.engines.ase_engine import state_from_atoms
from dpsim.engines.base import State
from dpsim.engines.openmm_engine import OpenmmEngine
from pair_calculators import PairCalculator, argon
from test_ase_engine import FailingCalculator


class TestOpenmmEngine(EngineConformance):
    engine = OpenmmEngine()

    def state(self, periodic: bool = True) -> State:
        atoms = argon(pbc=periodic)
        if not periodic:
            atoms.cell = None
        return state_from_atoms(atoms)

    def calculator(self, fail_at_call: int | None = None, error: BaseException | None = None) -> Any:
        return PairCalculator() if fail_at_call is None else FailingCalculator(fail_at_call, error or RuntimeError())
