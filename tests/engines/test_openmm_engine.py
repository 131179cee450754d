"""The OpenMM engine passes the conformance suite; and what is particular to OpenMM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'dpsim[openmm]'")

from conformance import STAGES, EngineConformance
from dpsim.engines.ase_engine import AseEngine, state_from_atoms
from dpsim.engines.base import RunControl
from dpsim.engines.openmm_engine import OpenmmEngine
from dpsim.engines.output import RESTART, THERMO, load_checkpoint, read_thermo, save_checkpoint
from dpsim.errors import ConfigError
from kills import assert_kills_change_nothing
from pair_calculators import PairCalculator, argon
from test_ase_engine_model import check_interruptions, student

CONTROL = RunControl(seed=0, name="argon")


class TestOpenmmEngine(EngineConformance):
    engine = OpenmmEngine()


@pytest.mark.parametrize("name", ["langevin"])
@pytest.mark.slow
def test_kills_change_nothing(name: str, tmp_path: Path) -> None:
    assert_kills_change_nothing(OpenmmEngine(), name, tmp_path, steps=200, kills=1)


@pytest.mark.parametrize("kind", ["nvt", "npt"])
def test_interrupted_student_equals_uninterrupted(kind: str, tmp_path: Path) -> None:
    check_interruptions(student("float32"), kind, tmp_path, OpenmmEngine())


def test_newtonian_dynamics_is_that_of_the_ase_engine(tmp_path: Path) -> None:
    """Leapfrog and velocity Verlet are one method; the two codes differ by 1e-8 in the unit of time."""
    state = state_from_atoms(argon())
    ends = [
        engine.run_stage(state, PairCalculator(), STAGES["nve"], tmp_path / engine.name, CONTROL).state
        for engine in (AseEngine(), OpenmmEngine())
    ]
    np.testing.assert_allclose(ends[1].positions, ends[0].positions, rtol=0.0, atol=1e-8)
    np.testing.assert_allclose(ends[1].momenta, ends[0].momenta, rtol=0.0, atol=1e-7)
    first, second = (read_thermo(tmp_path / name / THERMO) for name in ("ase", "openmm"))
    for column in ("total_energy_eV", "pressure_bar", "temperature_K"):
        np.testing.assert_allclose(second[column], first[column], rtol=1e-6, atol=1e-5)


def test_a_step_costs_one_evaluation_and_a_move_of_the_cell_another(tmp_path: Path) -> None:
    state = state_from_atoms(argon())
    for name in ("nve", "bussi", "langevin", "npt isotropic"):
        calculator = PairCalculator()
        stage = replace(STAGES[name], n_steps=20, barostat_damping_fs=1000.0)  # a move every 5 steps
        OpenmmEngine().run_stage(state, calculator, stage, tmp_path / name.replace(" ", "_"), CONTROL)
        assert calculator.calls == 21 + (4 if "npt" in name else 0), name


def test_a_checkpoint_of_another_openmm_is_refused(tmp_path: Path) -> None:
    state, stage = state_from_atoms(argon()), replace(STAGES["nve"], n_steps=3)
    OpenmmEngine().run_stage(state, PairCalculator(), stage, tmp_path, CONTROL)
    saved = load_checkpoint(tmp_path / RESTART)
    assert saved is not None
    saved.integrator["version"] = np.array("8.0")
    save_checkpoint(tmp_path / RESTART, saved)
    with pytest.raises(ConfigError, match=r"begun with OpenMM 8\.0, and this is"):
        OpenmmEngine().run_stage(state, PairCalculator(), replace(stage, n_steps=5), tmp_path, CONTROL)
