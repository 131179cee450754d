"""The ASE engine passes the conformance suite; real kills; and what is particular to ASE."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.emt import EMT

sys.path.insert(0, str(Path(__file__).parent))

from conformance import STAGES, EngineConformance
from dpsim.engines.ase_engine import AseEngine, atoms_from_state, state_from_atoms
from dpsim.engines.base import RunControl, StageSettings, generator
from dpsim.engines.output import THERMO, read_thermo
from kills import assert_kills_change_nothing
from pair_calculators import PairCalculator, argon


class TestAseEngine(EngineConformance):
    engine = AseEngine()


@pytest.mark.parametrize("name", ["langevin", "npt isotropic"])
@pytest.mark.slow
def test_kills_change_nothing(name: str, tmp_path: Path) -> None:
    assert_kills_change_nothing(AseEngine(), name, tmp_path)


def test_named_generators_are_independent_and_reproducible() -> None:
    a, b, c = generator(0, "x/velocities"), generator(0, "x/thermostat"), generator(1, "x/velocities")
    first = a.standard_normal(4)
    assert np.abs(first - b.standard_normal(4)).min() > 1e-6
    assert np.abs(first - c.standard_normal(4)).min() > 1e-6
    np.testing.assert_array_equal(first, generator(0, "x/velocities").standard_normal(4))


def test_works_with_any_ase_calculator(tmp_path: Path) -> None:
    from ase.build import bulk

    stage = StageSettings("nve", 20, timestep_fs=2.0, initial_temperature_K=300.0)
    state = state_from_atoms(bulk("Cu", cubic=True))
    AseEngine().run_stage(state, EMT(), stage, tmp_path, RunControl(seed=0, name="cu"))
    assert np.isfinite(read_thermo(tmp_path / THERMO)["pressure_bar"]).all()


def test_state_round_trip_keeps_masses_and_partial_periodicity() -> None:
    atoms = argon()
    atoms.set_masses(np.linspace(36.0, 41.0, len(atoms)))
    atoms.pbc = (True, True, False)
    state = state_from_atoms(atoms)
    back = atoms_from_state(state)
    np.testing.assert_array_equal(back.get_masses(), atoms.get_masses())
    assert back.pbc.tolist() == [True, True, False]


def test_integration_costs_one_force_evaluation_per_step(tmp_path: Path) -> None:
    for name, stage in STAGES.items():
        calculator = PairCalculator()
        state = state_from_atoms(argon())
        result = AseEngine().run_stage(
            state, calculator, stage, tmp_path / name.replace(" ", "_"), RunControl(seed=0, name=name)
        )
        assert calculator.calls <= result.step + 2, name
