"""The ASE engine passes the conformance suite; real kills; and what is particular to ASE."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.calculators.emt import EMT

sys.path.insert(0, str(Path(__file__).parent))

from conformance import STAGES, EngineConformance
from dpsim.engines.ase_engine import AseEngine, atoms_from_state, state_from_atoms
from dpsim.engines.base import RunControl, StageSettings, State, generator
from dpsim.engines.output import RESTART, THERMO, TRAJECTORY, load_checkpoint, read_thermo
from pair_calculators import PairCalculator, argon


class FailingCalculator(PairCalculator):
    """Raises `error` at the n-th call."""

    def __init__(self, n: int, error: BaseException):
        super().__init__()
        self.n, self.error = n, error

    def spoil(self, forces: np.ndarray) -> np.ndarray:
        if self.calls >= self.n:
            raise self.error
        return forces


class TestAseEngine(EngineConformance):
    engine = AseEngine()

    def state(self, periodic: bool = True) -> State:
        atoms = argon(pbc=periodic)
        if not periodic:
            atoms.cell = None
        return state_from_atoms(atoms)

    def calculator(self, fail_at_call: int | None = None, error: BaseException | None = None) -> Any:
        return PairCalculator() if fail_at_call is None else FailingCalculator(fail_at_call, error or RuntimeError())


KILL_SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from conformance import STAGES
from dataclasses import replace
from pair_calculators import PairCalculator, argon
from dpsim.engines.ase_engine import AseEngine, state_from_atoms
from dpsim.engines.base import RunControl
stage = replace(STAGES[{name!r}], n_steps=500, trajectory_every=3)
AseEngine().run_stage(
    state_from_atoms(argon()), PairCalculator(), stage, Path({directory!r}),
    RunControl(seed=7, name="killed", checkpoint_seconds={every}),
)
"""


@pytest.mark.parametrize("name", ["langevin", "npt isotropic"])
def test_sigkill_at_random_moments_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    """A process killed again and again ends with files equal, byte by byte, to those of one left alone."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

    def start(directory: Path, every: float) -> subprocess.Popen[bytes]:
        paths = [str(Path(__file__).parent), str(root)]
        script = KILL_SCRIPT.format(paths=paths, name=name, directory=str(directory), every=every)
        return subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE)

    assert start(tmp_path / "whole", 1e9).wait() == 0
    moments = random.Random(0)
    kills = 0
    while kills < 3:
        process = start(tmp_path / "parts", 0.05)
        step_before = _step(tmp_path / "parts")
        while process.poll() is None and _step(tmp_path / "parts") == step_before:
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
    final = start(tmp_path / "parts", 0.05)
    _, message = final.communicate()
    assert final.returncode == 0, message.decode()
    assert kills >= 2
    for file in (THERMO, TRAJECTORY):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    parts, whole = (load_checkpoint(tmp_path / d / RESTART) for d in ("parts", "whole"))
    assert parts is not None
    assert whole is not None
    np.testing.assert_array_equal(parts.state.momenta, whole.state.momenta)
    assert parts.generator == whole.generator


def _step(directory: Path) -> int:
    try:
        saved = load_checkpoint(directory / RESTART)
    except Exception:
        return -1
    return -1 if saved is None else saved.step


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
