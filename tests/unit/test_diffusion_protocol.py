"""The diffusion sweep and the one-stage analysis: of walkers of known D(T), and of a real run, which is too short."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from dpsim.analysis import arrhenius
from dpsim.analysis.report import Result
from dpsim.config import parse_yaml, validate
from dpsim.engines.base import StageResult, StageSettings, State
from dpsim.engines.output import THERMO_COLUMNS
from dpsim.errors import ConfigError
from dpsim.protocols.context import AnalysisOutput, StageRecord
from dpsim.protocols.diffusion import PRODUCTION, DiffusionProtocol
from dpsim.protocols.sampling import sample
from dpsim.protocols.sweep import FinishedPoint, check_protocol, run_protocol
from dpsim.trajectory import TrajectoryWriter, write_topology
from dpsim.units import BOLTZMANN_EV_PER_K
from pair_calculators import PairCalculator, argon

DT = 0.1  # ps between frames
CELL = 12.0 * np.eye(3)


def walking_stage(
    folder: Path, d_cm2_s: float, temperature: float, seed: int, n_frames: int = 500, settles_at: int = 0
) -> StageRecord:
    """A stage in which 24 Li walk with this D about 8 O that rest; the energy falls until frame `settles_at`."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    symbols = ["Li"] * 24 + ["O"] * 8
    steps = random.normal(0.0, math.sqrt(2.0 * d_cm2_s * 1e4 * DT), (n_frames, 32, 3))
    steps[:, 24:] = 0.0
    steps[:, :24] = (steps[:, :24] - steps[:, :24].mean(axis=1, keepdims=True)) * math.sqrt(24 / 23)  # momentum is kept
    start = random.uniform(0.0, 12.0, (32, 3))
    positions = start + np.cumsum(steps, axis=0)
    positions[:, 24:28] += (rattle := 0.05 * random.normal(size=(n_frames, 4, 3)))
    positions[:, 28:] -= rattle
    write_topology(folder / "topology.pdb", symbols, start, CELL)
    with TrajectoryWriter(folder / "trajectory.trr", 32) as writer:
        for k, frame in enumerate(positions):
            writer.append(k * 50, k * DT, frame, CELL)
    energy = random.normal(size=n_frames) + 30.0 * np.clip(1.0 - np.arange(n_frames) / max(settles_at, 1), 0.0, None)
    rows = [(k * 50, k * DT, energy[k], 1.0, energy[k], energy[k], temperature, 0.0, 1728.0) for k in range(n_frames)]
    text = "\n".join([",".join(THERMO_COLUMNS), *(",".join(f"{x:.8g}" for x in row) for row in rows), ""])
    (folder / "thermo.csv").write_text(text)
    atoms = Atoms(symbols, positions=positions[-1], cell=CELL, pbc=True)
    zeros = np.zeros((32, 3))
    state = State(atoms.numbers, atoms.get_masses(), atoms.positions, zeros, CELL, np.array([True] * 3))
    settings = StageSettings("nvt", n_steps=50 * n_frames, timestep_fs=2.0, temperature_K=temperature,
                             trajectory_every=50, thermo_every=50)  # fmt: skip
    return StageRecord(PRODUCTION, folder, settings, StageResult(state, 50 * n_frames, True, 1.0, 1.0))


def protocol(tmp_path: Path, **changes: Any) -> DiffusionProtocol:
    atoms = Atoms(["Li"] * 24 + ["O"] * 8, positions=np.random.default_rng(0).uniform(0, 12, (32, 3)), cell=CELL, pbc=1)
    write(tmp_path / "a.extxyz", atoms)
    data = {
        "name": "walk", "protocol": "diffusion", "structure": str(tmp_path / "a.extxyz"), "species": ["Li"],
        "temperatures": ["900 K", "1000 K", "1100 K", "1200 K"], "duration": "50 ps", "timestep": "2 fs",
        "trajectory_every": "100 fs",
    }  # fmt: skip
    return validate(data | changes, DiffusionProtocol)


def d_of(temperature: float, energy: float = 0.3, jump: float = 1.0) -> float:
    return 8e-3 * math.exp(-energy / (BOLTZMANN_EV_PER_K * temperature)) * (1.0 if temperature > 950 else jump)


def concluded(tmp_path: Path, config: DiffusionProtocol, **law: float) -> tuple[AnalysisOutput, dict[str, Result]]:
    """What the protocol says of points in which Li walks as `d_of` says."""
    points = []
    for k, point in enumerate(config.points()):
        temperature = float(point.labels["temperature_K"])
        stage = walking_stage(tmp_path / point.key, d_of(temperature, **law), temperature, seed=k)
        points.append(FinishedPoint(point, tmp_path / point.key, {}, {PRODUCTION: stage}))
    output = config.conclude(points, tmp_path / "figures")
    return output, {result.name: result for result in output.results}


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrhenius, "_SAMPLES", 500)


def test_walkers_of_known_diffusion(tmp_path: Path) -> None:
    """D within 8 %, the activation energy within its interval, no break; right references pass."""
    references = [{"temperature": "1000 K", "species": "Li", "value": f"{d_of(1000.0)} cm^2/s"},
                  {"temperature": "1200 K", "species": "Li", "value": f"{3.0 * d_of(1200.0)} cm^2/s"}]  # fmt: skip
    energies = [{"species": "Li", "value": "0.3 eV", "tolerance": 0.5}]
    config = protocol(tmp_path, references=references, activation_energies=energies, replicas=2)
    output, found = concluded(tmp_path, config)
    for t in (900, 1000, 1100, 1200):
        result = found[f"Li.{t}K.diffusion"]
        assert result.unit == "cm^2/s"
        assert result.value == pytest.approx(d_of(t), rel=0.08)
        assert 0.003 * result.value < result.error < 0.05 * result.value  # type: ignore[operator]
    assert found["Li.1000K.diffusion"].verdict == "PASS"
    assert found["Li.1200K.diffusion"].verdict == "FAIL"
    assert found["Li.activation_energy"].verdict == "PASS"
    assert found["Li.break_p_value"].value > 0.01  # type: ignore[operator]
    assert not [text for text in output.warnings if "No D" in text or "not enough" in text]
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"msd_Li.png", "arrhenius_Li.png"}
    assert len(output.curves) == 4


def test_a_break_is_said_and_makes_the_energy_undecided(tmp_path: Path) -> None:
    temperatures = ["700 K", "800 K", "900 K", "1000 K", "1100 K", "1200 K"]
    energies = [{"species": "Li", "value": "0.3 eV"}]
    output, found = concluded(tmp_path, protocol(tmp_path, temperatures=temperatures, activation_energies=energies),
                              jump=0.2)  # fmt: skip
    assert found["Li.activation_energy"].verdict == "UNDECIDED"
    assert found["Li.break_p_value"].value < 0.05  # type: ignore[operator]
    assert "between 900 and 1000 K" in found["Li.break_p_value"].explanation
    above = found["Li.above.activation_energy"]
    assert above.value == pytest.approx(0.3, abs=4.0 * above.error)  # type: ignore[operator]
    assert any("one line" in text for text in output.warnings)


def test_atoms_on_their_sites_have_no_diffusion(tmp_path: Path) -> None:
    """O rests: no D, an upper bound that can say no, and nothing to fit."""
    references = [{"temperature": "900 K", "species": "O", "value": "1e-5 cm^2/s"}]
    energies = [{"species": "O", "value": "0.3 eV"}]
    config = protocol(tmp_path, species=["O"], temperatures=["900 K", "1000 K"], references=references,
                      activation_energies=energies)  # fmt: skip
    output, found = concluded(tmp_path, config)
    result = found["O.900K.diffusion"]
    assert (result.value, result.verdict) == (None, "FAIL")
    assert "Caged" in result.explanation
    assert found["O.activation_energy"].verdict == "UNDECIDED"
    assert sum("No D of O" in text for text in output.warnings) == 2


def test_the_size_of_the_cell_is_corrected_for(tmp_path: Path) -> None:
    """2.837 kT / 6 pi eta L, in cm^2/s, on top of D in this cell."""
    config = protocol(tmp_path, temperatures=["1000 K"], viscosities=["2 mPa s"])
    _, found = concluded(tmp_path, config)
    added = 2.837297 * 1.380649e-23 * 1000 / (6 * math.pi * 2e-3 * 12e-10) * 1e4
    difference = found["Li.1000K.diffusion"].value - found["Li.1000K.diffusion.uncorrected"].value  # type: ignore[operator]
    assert difference == pytest.approx(added, rel=1e-5)


def test_equilibration_is_found(tmp_path: Path) -> None:
    settled = sample(walking_stage(tmp_path / "a", 1e-5, 900.0, 1, settles_at=100), None)
    assert 6.0 < settled.skipped_ps < 15.0
    assert settled.settled
    assert settled.first_frame == math.ceil(settled.skipped_ps / DT - 1e-6)
    late = sample(walking_stage(tmp_path / "b", 1e-5, 900.0, 1, settles_at=400), None)
    assert not late.settled
    assert sample(late.stage, 2000.0).first_frame == 20


def argon_for(config: Any, precision: Any) -> PairCalculator:
    return PairCalculator()


def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    """Solid argon for a moment: no D, said so; the second call does nothing anew."""
    write(tmp_path / "ar.extxyz", argon())
    data = {
        "name": "ar", "protocol": "diffusion", "structure": str(tmp_path / "ar.extxyz"), "pressure": "1 bar",
        "temperatures": ["20 K", "30 K"], "timestep": "5 fs", "equilibration": "50 fs", "duration": "500 fs",
        "trajectory_every": "5 fs", "damping": "50 fs", "minimise": True,
    }  # fmt: skip
    config = validate(data, DiffusionProtocol)
    outcome = run_protocol(config, tmp_path / "run", argon_for)
    document = json.loads((tmp_path / "run/results.json").read_text())
    found = {result["name"]: result for result in document["results"]}
    assert outcome.verdict == "INFO"
    assert found["Ar.20K.diffusion"]["value"] is None
    assert any("No D of Ar at 20 K" in text for text in document["warnings"])
    assert [p.protocol.stage_names() for p in config.points()] == [["minimise", "equilibration", "production"]] * 2
    assert "MSD" in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"viscosities": ["1 mPa s"]}, "one for each of the 4 temperatures"),
        ({"references": [{"temperature": "950 K", "species": "Li", "value": "1e-5 cm^2/s"}]}, "expected one of"),
        (
            {"temperatures": ["900 K"], "activation_energies": [{"species": "Li", "value": "0.3 eV"}]},
            "two temperatures",
        ),
        ({"duration": "50.5"}, "no unit"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        protocol(tmp_path, **changes)


def test_elements_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`species` has \['Na'\]"):
        check_protocol(protocol(tmp_path, species=["Na"]), argon_for)
    wrong = [{"temperature": "900 K", "species": "O", "value": "1e-5 cm^2/s"}]
    with pytest.raises(ConfigError, match=r"`references` has \['O'\]"):
        check_protocol(protocol(tmp_path, references=wrong), argon_for)
    with pytest.raises(ConfigError, match="temperatures"):
        parse_yaml("name: x\nprotocol: diffusion\nstructure: a.xyz\nduration: 1 ps", DiffusionProtocol)
