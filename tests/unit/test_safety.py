"""What stops a stage: explosions, atoms that fly off, heat from nowhere, a cell that comes apart; and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import read

from dpsim.engines.ase_engine import AseEngine, state_from_atoms
from dpsim.engines.base import RunControl, StageSettings
from dpsim.engines.output import RESTART, load_checkpoint
from dpsim.engines.safety import RunningDrift, Safety
from dpsim.errors import SimulationError
from dpsim.trajectory import count_frames
from dpsim.units import BOLTZMANN_EV_PER_K
from pair_calculators import PairCalculator, argon

NVT = StageSettings(
    "nvt", 1000, 1.0, temperature_K=100.0, thermostat="bussi", thermostat_damping_fs=10.0, thermo_every=1
)
NVE = StageSettings("nve", 1000, 1.0, initial_temperature_K=100.0)
STATE = state_from_atoms(argon())


def hot(temperature: float, of_one: float = 0.0) -> dict[str, Any]:
    kinetic = np.full((STATE.n_atoms, 3), 0.5 * BOLTZMANN_EV_PER_K * temperature)
    if of_one:
        kinetic[3] = 0.5 * BOLTZMANN_EV_PER_K * of_one
    return {"temperature": temperature, "kinetic": kinetic, "positions": STATE.positions}


def test_explosions() -> None:
    safety = Safety(NVE, STATE)
    safety.check_motion(0, **hot(9999.0))
    safety.check_motion(1, **hot(300.0, of_one=9e4))
    with pytest.raises(SimulationError, match="`temperature` is 10001 K; expected at most 10000 K"):
        safety.check_motion(2, **hot(10001.0))
    with pytest.raises(SimulationError, match=r"Ar atom 3 at .* flies off with .* eV, 150000 K"):
        safety.check_motion(2, **hot(300.0, of_one=1.5e5))
    with pytest.raises(SimulationError, match="is not finite"):
        safety.check_motion(2, **hot(float("nan")))


def test_heat_that_the_thermostat_takes_up_in_time_does_no_harm() -> None:
    safety = Safety(NVT, STATE)
    for step in range(300):  # released at once, taken up in ten relaxation times
        safety.check_motion(step, **hot(100.0 + 900.0 * np.exp(-step / 20.0)))
    with pytest.raises(SimulationError, match=r"heat up: `temperature` is 20\d K on average over 20 relaxation times"):
        for step in range(300, 1000):
            safety.check_motion(step, **hot(250.0))


def test_energy_and_volume() -> None:
    safety = Safety(NVE, STATE)
    safety.check_energy(-5.0, 100.0)
    safety.check_energy(-5.0 + 0.2 * STATE.n_atoms, 100.0)
    with pytest.raises(SimulationError, match=r"`total energy` has changed by .* eV, 0\.3 eV/atom"):
        safety.check_energy(-5.0 + 0.3 * STATE.n_atoms, 100.0)
    npt = Safety(replace(NVT, kind="npt"), STATE)
    volume = abs(float(np.linalg.det(STATE.cell)))
    npt.check_energy(0.0, 9.0 * volume)
    with pytest.raises(SimulationError, match="the cell comes apart"):
        npt.check_energy(0.0, 10.1 * volume)


def test_running_drift_is_the_slope_of_the_least_squares_line() -> None:
    t, y = np.arange(20.0), np.random.default_rng(1).normal(size=20) + 3.0
    drift = RunningDrift()
    assert drift.slope is None
    for a, b in zip(t, y, strict=True):
        drift.add(a, b)
    assert drift.slope == pytest.approx(np.polyfit(t, y, 1)[0])
    drift.add(21.0, float("nan"))
    assert drift.slope is None


class Pushing(PairCalculator):
    """From the n-th call on it pushes atom 0 away."""

    def spoil(self, forces: np.ndarray) -> np.ndarray:
        if self.calls > 50:
            forces[0] += 100.0
        return forces


def test_the_good_frames_and_the_one_that_failed_are_kept(tmp_path: Path) -> None:
    stage = replace(NVE, timestep_fs=5.0, trajectory_every=5)
    with pytest.raises(SimulationError, match=r"stage x failed after step \d+ of 1000: .*Ar atom 0 ") as info:
        AseEngine().run_stage(STATE, Pushing(), stage, tmp_path, RunControl(0, "x", checkpoint_seconds=0.0))
    failed = list(tmp_path.glob("failed_step_*.extxyz"))
    assert len(failed) == 1 and str(failed[0]) in str(info.value)
    atoms: Any = read(failed[0])
    assert np.argmax(np.linalg.norm(atoms.get_momenta(), axis=1)) == 0
    step = int(failed[0].stem.rpartition("_")[2])
    assert count_frames(tmp_path / "trajectory.trr") == 1 + (step - 1) // 5
    saved = load_checkpoint(tmp_path / RESTART)
    assert saved is not None and saved.step == step - 1
