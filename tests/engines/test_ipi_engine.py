"""The i-PI engine passes the conformance suite; and what is particular to i-PI."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ipi", reason="i-PI is not installed: pip install 'dpsim[ipi]'")

from conformance import STAGES, EngineConformance
from dpsim.engines.ase_engine import AseEngine, state_from_atoms
from dpsim.engines.base import RunControl
from dpsim.engines.ipi_engine import IpiEngine
from dpsim.engines.output import THERMO, read_thermo
from dpsim.errors import ConfigError
from kills import assert_kills_change_nothing
from pair_calculators import PairCalculator, argon
from test_ase_engine_model import check_interruptions, student

CONTROL = RunControl(seed=0, name="argon")


class TestIpiEngine(EngineConformance):
    engine = IpiEngine()

    def run(self, stage: Any, *args: Any, **control: Any) -> Any:
        if stage.cell_change in ("anisotropic", "triclinic"):
            pytest.skip("refused; see test_other_barostats_are_refused")
        return super().run(stage, *args, **control)


@pytest.mark.slow
def test_kills_change_nothing(tmp_path: Path) -> None:
    assert_kills_change_nothing(IpiEngine(), "langevin", tmp_path, steps=200, kills=1)


@pytest.mark.parametrize("kind", ["nvt", "npt"])
def test_interrupted_student_equals_uninterrupted(kind: str, tmp_path: Path) -> None:
    settings = {"cell_change": "isotropic"} if kind == "npt" else {}
    check_interruptions(student("float32"), kind, tmp_path, IpiEngine(), **settings)


def test_other_barostats_are_refused() -> None:
    for name in ("npt anisotropic", "npt triclinic"):
        with pytest.raises(ConfigError, match="expected isotropic with the engine ipi"):
            IpiEngine().require(STAGES[name], state_from_atoms(argon()))


def test_newtonian_dynamics_is_that_of_the_ase_engine(tmp_path: Path) -> None:
    """Both are velocity Verlet; units differ by 1e-8."""
    state = state_from_atoms(argon())
    ends = [
        engine.run_stage(state, PairCalculator(), STAGES["nve"], tmp_path / engine.name, CONTROL).state
        for engine in (AseEngine(), IpiEngine())
    ]
    np.testing.assert_allclose(ends[1].positions, ends[0].positions, rtol=0.0, atol=1e-7)
    first, second = (read_thermo(tmp_path / name / THERMO) for name in ("ase", "ipi"))
    for column in ("total_energy_eV", "pressure_bar", "temperature_K"):
        np.testing.assert_allclose(second[column], first[column], rtol=1e-6, atol=1e-5)


def test_a_step_costs_one_evaluation_and_a_tilted_cell_keeps_its_shape(tmp_path: Path) -> None:
    atoms = argon()
    atoms.set_cell(np.array([[1.0, 0, 0], [0.2, 1.0, 0.1], [0, -0.1, 1.0]]) @ atoms.cell.array, scale_atoms=True)
    state = state_from_atoms(atoms)
    for name in ("nve", "bussi", "langevin", "npt isotropic"):
        calculator = PairCalculator()
        end = IpiEngine().run_stage(state, calculator, STAGES[name], tmp_path / name.replace(" ", "_"), CONTROL).state
        assert calculator.calls == 61, name
        scale = end.cell[0, 0] / state.cell[0, 0]
        np.testing.assert_allclose(end.cell, scale * state.cell, rtol=1e-12, atol=1e-12)
        assert (abs(scale - 1.0) > 1e-6) == (name == "npt isotropic")


def test_it_leaves_no_files_threads_or_signal_handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGINT), threading.active_count()
    IpiEngine().run_stage(state_from_atoms(argon()), PairCalculator(), STAGES["nve"], tmp_path / "stage", CONTROL)
    assert (signal.getsignal(signal.SIGINT), threading.active_count()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]
