"""The NVE check finds what is at fault with calculators that are broken on purpose, and passes a sound one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import write

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from dpsim.analysis.dynamics import energy_drift
from dpsim.config import validate
from dpsim.engines.ase_engine import atoms_from_state, state_from_atoms
from dpsim.protocols.nve import judge_drift, path_power
from dpsim.protocols.runner import run_protocol
from dpsim.protocols.schema import Protocol
from pair_calculators import PairCalculator, RoundedCalculator, SwirlCalculator, argon


def check(tmp_path: Path, calculator_for: Any, **options: Any) -> dict[str, dict[str, Any]]:
    """Run an nve stage with a check; the results by the last part of their name."""
    write(tmp_path / "ar.extxyz", argon())
    nve = {"type": "nve", "timestep": "5 fs", "duration": "4 ps", "initial_temperature": "60 K"}
    nve |= options.pop("stage", {})
    analysis = {"type": "nve_check", "timesteps": [], "diagnosis_duration": "10 ps"} | options
    protocol = validate(
        {"name": "ar", "structure": str(tmp_path / "ar.extxyz"), "stages": [nve], "analyses": [analysis]}, Protocol
    )
    outcome = run_protocol(protocol, tmp_path / "run", calculator_for)
    assert outcome.results is not None
    results = json.loads(outcome.results.read_text())["results"]
    return {r["name"].partition(".")[2]: r for r in results}


def test_sound_run_passes_and_its_fluctuation_scales_with_dt_squared(tmp_path: Path) -> None:
    results = check(tmp_path, lambda p, precision: PairCalculator(), timesteps=["2.5 fs", "5 fs", "10 fs"])
    assert results["energy_drift"]["verdict"] == "PASS"
    assert results["energy_drift"]["threshold"] == 0.1
    assert results["energy_drift"]["error"] > 0
    assert results["fluctuation_exponent"]["value"] == pytest.approx(2.0, abs=0.1)
    assert "fault" not in results


@pytest.mark.slow
def test_forces_with_a_curl_are_the_models_fault(tmp_path: Path) -> None:
    sites = argon().positions
    results = check(
        tmp_path,
        lambda p, precision: SwirlCalculator(sites, 0.01),
        stage={"trajectory_every": "25 fs"},
        threshold="0.05 meV/atom/ps",
    )
    assert results["energy_drift"]["verdict"] == "FAIL"
    fault = results["fault"]
    assert fault["label"] == "At fault: model"
    assert "not the gradient" in fault["explanation"]
    # work and energy along the path differ by as much as the energy drifts
    assert abs(fault["value"] - results["energy_drift"]["value"]) < 4.0 * np.hypot(
        fault["error"], results["energy_drift"]["error"]
    )


@pytest.mark.slow
def test_coarse_forces_are_the_precisions_fault(tmp_path: Path) -> None:
    RoundedCalculator.grid = 0.03
    results = check(
        tmp_path,
        lambda p, precision: PairCalculator() if precision == "float64" else RoundedCalculator(),
        threshold="0.001 meV/atom/ps",
    )
    assert results["energy_drift"]["verdict"] == "FAIL"
    assert results["fault"]["label"] == "At fault: precision"


@pytest.mark.slow
def test_large_time_step_is_at_fault(tmp_path: Path) -> None:
    results = check(
        tmp_path,
        lambda p, precision: PairCalculator(),
        stage={"timestep": "60 fs", "duration": "60 ps", "initial_temperature": "100 K"},
        threshold="0.01 meV/atom/ps",
        diagnosis_duration="60 ps",
    )
    assert results["energy_drift"]["verdict"] != "PASS"
    assert results["fault"]["label"] == "At fault: time step"
    assert "30 fs" in results["fault"]["explanation"]


def test_explosion_is_judged_and_diagnosed_too(tmp_path: Path) -> None:
    results = check(
        tmp_path,
        lambda p, precision: PairCalculator(),
        stage={"timestep": "80 fs", "duration": "40 ps", "initial_temperature": "100 K"},
        diagnosis_duration="20 ps",
    )
    drift = results["energy_drift"]
    assert drift["verdict"] == "FAIL"
    assert drift["value"] is None
    assert "failed after step" in drift["explanation"]
    assert results["fault"]["label"] == "At fault: time step"
    assert "(40 fs)" in results["fault"]["explanation"]


def test_path_power_vanishes_for_gradients_and_measures_a_curl() -> None:
    state = state_from_atoms(argon())
    rng = np.random.default_rng(0)
    states = [(state, rng.normal(0.0, 2e-3, state.positions.shape)) for _ in range(5)]
    sound = path_power(PairCalculator(), states, 5.0, atoms_from_state)
    assert np.abs(sound).max() < 1e-6
    sites = state.positions + rng.normal(0.0, 0.1, state.positions.shape)
    swirl = SwirlCalculator(sites, 0.01)
    broken = path_power(swirl, states, 5.0, atoms_from_state)
    for power, (_, velocity) in zip(broken, states, strict=True):
        u = state.positions - sites
        u = u - u.mean(axis=0)
        force = 0.01 * np.stack([-u[:, 1], u[:, 0], 0 * u[:, 2]], axis=1)
        assert power == pytest.approx(1e6 * np.sum(force * velocity) / state.n_atoms, rel=0.2, abs=1e-3)


@pytest.mark.parametrize(("drift", "verdict"), [(0.0, "PASS"), (0.05, "PASS"), (1.0, "FAIL"), (-1.0, "FAIL")])
def test_judgement_by_the_whole_interval(drift: float, verdict: str) -> None:
    time = np.linspace(0.0, 2.0, 2001)
    noise = np.random.default_rng(0).normal(0.0, 1e-3, time.shape)
    result = energy_drift(time, drift * 1e-3 * 100 * time + noise, 100)
    judged = judge_drift(result, 0.1)
    assert judged.verdict == verdict


def test_short_run_is_undecided_and_says_how_long_would_do() -> None:
    time = np.linspace(0.0, 0.02, 200)
    noise = np.random.default_rng(0).normal(0.0, 1e-3, time.shape)
    judged = judge_drift(energy_drift(time, noise, 100), 0.1)
    assert judged.verdict == "UNDECIDED"
    assert "too short to tell" in judged.explanation
