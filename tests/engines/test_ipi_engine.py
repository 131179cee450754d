import pytest
from typing import Any
from conformance import EngineConformance
from dpsim.engines.ase_engine import state_from_atoms
from dpsim.engines.base import State
from dpsim.engines.ipi_engine import IpiEngine
from pair_calculators import PairCalculator, argon
from test_ase_engine import FailingCalculator


class TestIpiEngine(EngineConformance):
    engine = IpiEngine()

    def state(self, periodic: bool = True) -> State:
        atoms = argon(pbc=periodic)
        if not periodic:
            atoms.cell = None
        return state_from_atoms(atoms)

    def run(self, stage: Any, *args: Any, **kwargs: Any) -> Any:
        if stage.cell_change in ("anisotropic", "triclinic"):
            pytest.skip("refused: i-PI's other barostats need a reference cell")
        return super().run(stage, *args, **kwargs)

    def calculator(self, fail_at_call: int | None = None, error: BaseException | None = None) -> Any:
        return PairCalculator() if fail_at_call is None else FailingCalculator(fail_at_call, error or RuntimeError())
