"""The NVE scan: of harmonic oscillators, where velocity Verlet is known exactly, and of a real run of argon."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import read, write

from dpsim.analysis.report import Result
from dpsim.analysis.timesteps import conservation, step_law
from dpsim.config import parse_yaml, validate
from dpsim.engines.base import StageResult, StageSettings, State
from dpsim.engines.output import THERMO, THERMO_COLUMNS
from dpsim.errors import ConfigError
from dpsim.protocols import registry
from dpsim.protocols.context import AnalysisOutput, StageRecord
from dpsim.protocols.nve_scan import NveScan, check_protocol, plan_protocol, run_protocol
from dpsim.protocols.sweep import FinishedPoint
from pair_calculators import PairCalculator, SwirlCalculator, argon

PERIOD = 20.0  # fs
N = 16  # oscillators
W = 2.0 * math.pi / PERIOD
STEPS = (0.1, 0.2, 0.4, 0.8, 2.05)  # w dt


def verlet(h: float, duration_fs: float = 2000.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Time (ps), kinetic and potential energy (eV) of oscillators of unit mass, to the end or 1e4 times the energy."""
    dt = h / W
    random = np.random.default_rng(0)
    x, v = random.normal(size=N), W * random.normal(size=N)
    kinetic, potential = [], []
    for _ in range(round(duration_fs / dt) + 1):
        kinetic.append(0.5 * float(v @ v))
        potential.append(0.5 * W**2 * float(x @ x))
        if kinetic[-1] > 1e4 * kinetic[0]:
            break
        v -= 0.5 * dt * W**2 * x
        x += dt * v
        v -= 0.5 * dt * W**2 * x
    return 1e-3 * dt * np.arange(len(kinetic)), np.array(kinetic), np.array(potential)


@pytest.mark.parametrize("h", [0.05, 0.3, 1.0, 1.9])
def test_fluctuation_of_oscillators_is_exact(h: float) -> None:
    """std(E)/std(K) = h^2/(4 - h^2), whatever the start and the length of the run."""
    time, kinetic, potential = verlet(h)
    found = conservation(h / W, time, kinetic + potential, kinetic, N)
    assert found.ratio == pytest.approx(h**2 / (4.0 - h**2), rel=2e-3)
    assert abs(found.drift.drift) < 3.0 * found.drift.error + 1e-9
    low, high = found.ratio_interval()
    assert low < found.ratio < high


def test_law_of_the_square_and_where_it_breaks() -> None:
    runs = []
    for h in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6):
        time, kinetic, potential = verlet(h)
        floor = np.random.default_rng(1).normal(0.0, 6e-3 * kinetic.std(), len(kinetic))  # as of rounding
        runs.append(conservation(h / W, time, kinetic + potential + floor, kinetic, N))
    law = step_law(runs)
    assert law is not None
    assert (law.first_fs * W, law.last_fs * W) == pytest.approx((0.2, 0.8))
    assert law.fit.exponent == pytest.approx(2.0, abs=0.1)
    exact = math.sqrt(4.0 * 0.02 / 1.02)
    step, error = law.step_of(0.02)
    assert step * W == pytest.approx(exact, rel=0.1) and 0.0 < error < 0.2 * step
    assert law.excess(runs[0].timestep_fs, runs[0].ratio) > 5.0
    assert law.excess(runs[-1].timestep_fs, runs[-1].ratio) > 1.5
    assert step_law(runs[:2]) is None and step_law(runs[:1]) is None and step_law([]) is None


def scan(tmp_path: Path, **changes: Any) -> NveScan:
    atoms = argon()
    atoms.set_momenta(np.random.default_rng(0).normal(0.0, 0.3, (len(atoms), 3)))
    write(tmp_path / "a.extxyz", atoms)
    data = {
        "name": "scan", "protocol": "nve-scan", "structure": str(tmp_path / "a.extxyz"), "duration": "2 ps",
        "timesteps": [f"{h / W!r} fs" for h in STEPS], "precisions": ["float64"],
    }  # fmt: skip
    return validate(data | changes, NveScan)


def concluded(
    tmp_path: Path, config: NveScan, noise: dict[str, float] | None = None, drift: float = 0.0
) -> tuple[AnalysisOutput, dict[str, Result]]:
    """Of oscillators; noise: of a precision, in parts of std(K); drift: in meV/atom/ps."""
    points = []
    for k, point in enumerate(config.points()):
        dt = float(point.labels["timestep_fs"])
        time, kinetic, potential = verlet(dt * W)
        exploded = kinetic[-1] > 1e3 * kinetic[0]
        spread = (noise or {}).get(str(point.labels["precision"]), 0.0) * kinetic.std()
        potential = potential + np.random.default_rng(k).normal(0.0, spread, len(time)) + 1e-3 * N * drift * time
        folder = tmp_path / point.key
        folder.mkdir(parents=True)
        columns = {"step": np.arange(len(time)), "time_ps": time, "potential_energy_eV": potential,
                   "kinetic_energy_eV": kinetic, "total_energy_eV": kinetic + potential}  # fmt: skip
        rows = zip(*(columns.get(name, np.zeros(len(time))) for name in THERMO_COLUMNS), strict=True)
        text = "\n".join([",".join(THERMO_COLUMNS), *(",".join(map(repr, map(float, row))) for row in rows), ""])
        (folder / THERMO).write_text(text)
        zeros = np.zeros((N, 3))
        state = State(np.full(N, 18), np.ones(N), zeros, zeros, np.eye(3), np.array([False] * 3))
        record = StageRecord("nve", folder, StageSettings("nve", len(time) - 1, dt), StageResult(state, 1, True, 1, 1))
        checked = Result("nve.energy_drift", "", None if exploded else 0.0, explanation="It exploded.")
        points.append(FinishedPoint(point, folder, {checked.name: checked}, {"nve": record}))
    output = config.conclude(points, tmp_path / "figures")
    return output, {result.name: result for result in output.results}


def test_recommended_step_of_oscillators(tmp_path: Path) -> None:
    """Of h = 0.1 ... 0.8 the threshold 2 % leaves 0.1 and 0.2; 2.05 is unstable, and says so."""
    output, found = concluded(tmp_path, scan(tmp_path, precisions=["float32", "float64"]), {"float32": 4e-3})
    best = found["recommended_timestep"]
    assert output.results[0] is best and best.verdict == "PASS"
    assert best.value == pytest.approx(0.2 / W) and "float32" in best.label
    assert "1.27324 fs, fails" in best.explanation and "In float64: 0.63662 fs." in best.explanation
    assert found["float64.limiting_timestep"].value == pytest.approx(0.28006 / W, rel=0.01)
    exponent = found["float64.fluctuation_exponent"]
    assert exponent.value == pytest.approx(2.05, abs=0.05)
    assert "dt² holds from 0.31831 to 2.54648 fs. Unstable: 6.52535 fs." in exponent.explanation
    assert "float32.2.54648fs.energy_drift" in found and "float32.6.52535fs.energy_drift" not in found
    floor = found["float32.fluctuation_exponent"].explanation
    assert "holds from 0.63662" in floor and "rounding of float32" in floor
    assert {c.name for c in output.curves} >= {"float32.energy_drift", "float64.relative_fluctuation"}
    assert [f.path.name for f in output.sections[0].figures] == ["timesteps.png"]  # type: ignore[union-attr]


def test_no_step_is_a_fail_with_a_way_out(tmp_path: Path) -> None:
    steps = [f"{h / W!r} fs" for h in (0.4, 0.8)]
    (fluctuates, drifts) = (tmp_path / name for name in ("fluctuates", "drifts"))
    fluctuates.mkdir()
    drifts.mkdir()
    failed = concluded(fluctuates, scan(tmp_path, timesteps=steps))[1]["recommended_timestep"]
    assert failed.verdict == "FAIL" and failed.value is None
    assert "by the law of dt² not too much at 0.88 fs" in failed.explanation
    failed = concluded(drifts, scan(tmp_path, timesteps=[steps[0], "0.3 fs"]), drift=300.0)[1]["recommended_timestep"]
    assert failed.verdict == "FAIL" and "nve_check" in failed.explanation


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`timesteps` is \[1.0, 1.0\]; expected different ones"):
        scan(tmp_path, timesteps=["1 fs", "1 fs"])
    with pytest.raises(ConfigError, match=r"`duration` is 10 fs; expected 40 of the longest time step"):
        scan(tmp_path, duration="10 fs")
    text = "name: x\nprotocol: nve-scan\nstructure: a.xyz\ntimesteps: [1 fs, 2 fs]\nprecisions: [float16]"
    with pytest.raises(ConfigError, match=r"line 5: `precisions.0` is 'float16'"):
        parse_yaml(text, NveScan)
    write(tmp_path / "still.extxyz", argon())
    with pytest.raises(ConfigError, match="the atoms have no velocities"):
        check_protocol(scan(tmp_path, structure=str(tmp_path / "still.extxyz")), argon_for)


def argon_for(protocol: Any, precision: Any) -> PairCalculator:
    """In float32 the forces have a curl: a model that only float64 saves."""
    return SwirlCalculator(argon().positions, 0.1) if protocol.precision == "float32" else PairCalculator()


@pytest.mark.slow
def test_a_real_scan_starts_from_one_state(tmp_path: Path) -> None:
    atoms = argon()
    atoms.set_masses(np.linspace(30.0, 50.0, len(atoms)))
    write(tmp_path / "heavy.extxyz", atoms)
    config = scan(tmp_path, structure=str(tmp_path / "heavy.extxyz"), timesteps=["4 fs", "8 fs"], temperature="20 K",
                  equilibration="200 fs", duration="400 fs", precisions=["float64", "float32"], fluctuation=0.2,
                  drift="1 meV/atom/ps")  # fmt: skip
    plan = plan_protocol(config, argon_for)
    assert [(step.what, step.n_steps) for step in plan.steps] == [
        ("start", 50), ("float64.4fs", 100), ("float64.8fs", 50), ("float32.4fs", 100), ("float32.8fs", 50),
    ]  # fmt: skip
    outcome = run_protocol(config, tmp_path / "run", argon_for)
    assert outcome.verdict == "PASS" and outcome.results is not None
    found = {r["name"]: r for r in json.loads(outcome.results.read_text())["results"]}
    assert found["recommended_timestep"]["label"] == "Recommended time step, float64"
    assert found["float32.longest_timestep"]["value"] is None
    assert not [name for name in found if name.endswith("nve.energy_drift")]  # what points judge is not judged again
    starts = [np.load(p) for p in (tmp_path / "run/points").glob("*/stages/01_nve/start.npz")]
    assert len(starts) == 4
    for start in starts[1:]:
        np.testing.assert_array_equal(start["positions"], starts[0]["positions"])
        np.testing.assert_array_equal(start["momenta"], starts[0]["momenta"])
    state = read(tmp_path / "run/start/state.extxyz")
    np.testing.assert_allclose(state.get_masses(), atoms.get_masses())  # type: ignore[union-attr]
    assert registry.load_protocol(tmp_path / "run/protocol.yaml") == config
    again = run_protocol(config, tmp_path / "run", argon_for)
    assert again.verdict == "PASS"
