"""The runner: checks before it runs, continues after a stop, refuses to mix settings, writes everything it says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from dpsim.config import validate
from dpsim.engines.output import RESTART, THERMO, load_checkpoint, read_thermo
from dpsim.errors import ConfigError, DataError, DpsimError, ElementError
from dpsim.protocols.registry import load_protocol
from dpsim.protocols.rundir import RunOutcome
from dpsim.protocols.runner import check_protocol, run_protocol
from dpsim.protocols.schema import Protocol
from dpsim.trajectory import open_universe
from pair_calculators import PairCalculator, argon

NVT = {"type": "nvt", "temperature": "60 K", "timestep": "5 fs", "steps": 40, "trajectory_every": "10 fs"}
NVE = {"type": "nve", "timestep": "5 fs", "steps": 200, "trajectory_every": "10 fs"}


def protocol(tmp_path: Path, **changes: Any) -> Protocol:
    """Argon: nvt, then nve, then both analyses."""
    write(tmp_path / "ar.extxyz", argon())
    analyses = [{"type": "nve_check", "timesteps": []}, {"type": "rdf", "blocks": 4}]
    data = {"name": "ar", "structure": str(tmp_path / "ar.extxyz"), "stages": [NVT, NVE], "analyses": analyses}
    return validate(data | changes, Protocol)


def run(tmp_path: Path, calculator: Any = None, directory: str = "run", **changes: Any) -> RunOutcome:
    return run_protocol(
        protocol(tmp_path, **changes), tmp_path / directory, lambda p, precision: calculator or PairCalculator()
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunOutcome:
    """The run of this protocol. To look at: what goes on with it takes a `copy_of`."""
    return run(tmp_path_factory.mktemp("finished"))


def copy_of(finished: RunOutcome, tmp_path: Path) -> None:
    shutil.copytree(finished.directory, tmp_path / "run")


def test_everything_promised_is_written(finished: RunOutcome) -> None:
    outcome, directory = finished, finished.directory
    assert outcome.verdict == "PASS"
    assert not outcome.stopped
    for stage in ("01_nvt", "02_nve"):
        names = {p.name for p in (directory / "stages" / stage).iterdir()}
        assert {"thermo.csv", "trajectory.trr", "topology.pdb", "restart.npz"} <= names
    document = json.loads((directory / "results.json").read_text())
    assert document["verdict"] == "PASS"
    names = {r["name"] for r in document["results"]}
    assert {"nve.energy_drift", "nve.rdf.Ar-Ar.peak_position"} <= names
    assert {"date", "dpsim", "protocol", "model", "software", "hardware", "speed"} <= set(document["provenance"])
    assert document["provenance"]["protocol"]["seed"] == 0
    report = (directory / "report.html").read_text()
    assert "PASS" in report
    assert report.count("data:image/png;base64") >= 3
    universe = open_universe(directory / "stages/02_nve/topology.pdb", directory / "stages/02_nve/trajectory.trr")
    assert len(universe.trajectory) == 101
    assert set(universe.atoms.elements) == {"Ar"}
    assert sorted(p.suffix for p in (directory / "figures").iterdir())


def test_written_protocol_reads_back(finished: RunOutcome) -> None:
    assert load_protocol(finished.directory / "protocol.yaml") == protocol(finished.directory.parent)


def test_stages_follow_each_other(finished: RunOutcome) -> None:
    end = load_checkpoint(finished.directory / "stages/01_nvt" / RESTART)
    start = load_checkpoint(finished.directory / "stages/02_nve/start.npz")
    assert end is not None
    assert start is not None
    np.testing.assert_array_equal(end.state.positions, start.state.positions)
    np.testing.assert_allclose(end.state.momenta, start.state.momenta, atol=1e-12)


class SignallingCalculator(PairCalculator):
    """Sends this process a signal at the n-th call."""

    def __init__(self, n: int, number: int):
        super().__init__()
        self.n, self.number = n, number

    def spoil(self, forces: np.ndarray) -> np.ndarray:
        if self.calls == self.n:
            os.kill(os.getpid(), self.number)
        return forces


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_cleanly_and_the_same_call_continues(tmp_path: Path, finished: RunOutcome, number: int) -> None:
    handler = signal.getsignal(signal.SIGINT)
    stopped = run(tmp_path, SignallingCalculator(100, number), directory="parts")
    assert stopped.stopped
    assert "same command continues" in stopped.message
    assert not (tmp_path / "parts" / "results.json").exists()
    assert signal.getsignal(signal.SIGINT) is handler
    assert 0 < len(read_thermo(tmp_path / "parts/stages/02_nve" / THERMO)["step"]) < 201
    assert run(tmp_path, directory="parts").verdict == "PASS"
    for stage in ("01_nvt", "02_nve"):
        for file in ("thermo.csv", "trajectory.trr"):
            a, b = (folder / "stages" / stage / file for folder in (tmp_path / "parts", finished.directory))
            assert a.read_bytes() == b.read_bytes()


def test_repeating_a_finished_run_simulates_nothing(tmp_path: Path, finished: RunOutcome) -> None:
    copy_of(finished, tmp_path)
    calculator = PairCalculator()
    run(tmp_path, calculator)
    assert calculator.calls <= 2  # the check of the structure


def test_longer_last_stage_continues_but_earlier_stages_are_fixed(tmp_path: Path, finished: RunOutcome) -> None:
    copy_of(finished, tmp_path)
    run(tmp_path, stages=[NVT, NVE | {"steps": 260}], analyses=[])
    np.testing.assert_array_equal(read_thermo(tmp_path / "run/stages/02_nve" / THERMO)["step"], np.arange(261))
    with pytest.raises(ConfigError, match=r"earlier_stages was nvt \(40 steps\), is nvt \(50 steps\)"):
        run(tmp_path, stages=[NVT | {"steps": 50}, NVE | {"steps": 260}])
    with pytest.raises(ConfigError, match="temperature_K was 60.0, is 70.0"):
        run(tmp_path, stages=[NVT | {"temperature": "70 K"}, NVE | {"steps": 260}])
    with pytest.raises(ConfigError, match="seed was 0, is 3"):
        run(tmp_path, seed=3)


class PushingCalculator(PairCalculator):
    """From the n-th call on it pushes atom 0 away."""

    def __init__(self, n: int):
        super().__init__()
        self.n = n

    def spoil(self, forces: np.ndarray) -> np.ndarray:
        forces[0] += 100.0 * (self.calls >= self.n)
        return forces


def test_a_stage_that_explodes_is_a_failure_with_a_report(tmp_path: Path) -> None:
    """Also before the stage that the NVE check judges; the same command says the same again."""
    for _ in range(2):
        outcome = run(tmp_path, PushingCalculator(20))
        assert outcome.verdict == "FAIL"
        assert outcome.failure.startswith("stage nvt failed after step")
    document = json.loads((tmp_path / "run/results.json").read_text())
    [failure] = document["results"]
    assert failure["name"] == "nvt.failure" and failure["verdict"] == "FAIL" and failure["threshold"] == "40"
    assert "Ar atom 0 at" in failure["explanation"]
    assert [text.partition(" ")[0] for text in document["warnings"]] == ["nve_check", "rdf"]
    [frame] = (tmp_path / "run/stages/01_nvt").glob("failed_step_*.extxyz")
    assert frame.stem == f"failed_step_{failure['value']}"
    report = (tmp_path / "run/report.html").read_text()
    assert frame.name in report and f"step {failure['value']}: failed" in report
    assert not (tmp_path / "run/stages/02_nve").exists()


def test_a_stage_may_fail_at_its_first_step(tmp_path: Path) -> None:
    outcome = run(tmp_path, PushingCalculator(1), stages=[{**NVT, "max_temperature": "70 K"}], analyses=[])
    assert outcome.verdict == "FAIL"
    assert "failed after step" in (tmp_path / "run/report.html").read_text()


def test_two_runs_in_one_directory_are_refused(tmp_path: Path) -> None:
    class Nested(PairCalculator):
        def spoil(self, forces: np.ndarray) -> np.ndarray:
            if self.calls == 20:
                with pytest.raises(DpsimError, match="in use by another dpsim run"):
                    run(tmp_path)
            return forces

    run(tmp_path, Nested(), analyses=[])


def test_unknown_elements_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Picky(PairCalculator):
        def spoil(self, forces: np.ndarray) -> np.ndarray:
            raise ElementError("elements ['Ar'] are unknown to the model.")

    with pytest.raises(ElementError):
        run(tmp_path, Picky())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structure": "none.xyz"}, "no file"),
        ({"stages": [NVE]}, "no velocities"),
        ({"analyses": [{"type": "rdf", "pairs": ["O-O"]}]}, r"elements \['O'\]; expected those of the structure"),
        ({"analyses": [{"type": "rdf", "r_max": "9 A"}]}, "`r_max` is 9 A; expected at most 5.300 A"),
        ({"analyses": [{"type": "rdf", "reference": "none.npz"}]}, "none.npz"),
    ],
)
def test_checked_before_running(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        check_protocol(protocol(tmp_path, **changes), lambda p, precision: PairCalculator())


def test_npt_needs_stress(tmp_path: Path) -> None:
    class NoStress(PairCalculator):
        implemented_properties = ["energy", "forces"]

    npt = {"type": "npt", "temperature": "60 K", "timestep": "5 fs", "steps": 5}
    with pytest.raises(ConfigError, match="no stress"):
        run(tmp_path, NoStress(), stages=[npt], analyses=[])


def test_molecule_in_vacuum(tmp_path: Path) -> None:
    write(tmp_path / "dimer.xyz", Atoms("Ar2", positions=[[0, 0, 0], [3.8, 0, 0]]))
    outcome = run(tmp_path, structure=str(tmp_path / "dimer.xyz"), analyses=[])
    assert outcome.verdict == "INFO"
    with pytest.raises(ConfigError, match="no cell"):
        run(tmp_path, structure=str(tmp_path / "dimer.xyz"), analyses=[{"type": "rdf"}], directory="b")


def test_rdf_against_a_reference(tmp_path: Path, finished: RunOutcome) -> None:
    """The same physics passes, or is undecided; a reference shifted by 0.6 A fails in position and shape."""
    copy_of(finished, tmp_path)
    columns = np.genfromtxt(tmp_path / "run" / "rdf_nve.csv", delimiter=",", names=True)
    for shift, verdict in ((0.0, "PASS"), (0.6, "FAIL")):
        np.savez(tmp_path / "ref.npz", r=columns["r"] + shift, gArAr=columns["gArAr"], n_frames=100)
        rdf = {"type": "rdf", "blocks": 4, "reference": str(tmp_path / "ref.npz")}
        outcome = run(tmp_path, analyses=[rdf])
        assert outcome.results is not None
        results = {r["name"]: r for r in json.loads(outcome.results.read_text())["results"]}
        assert results["nve.rdf.Ar-Ar.r_factor"]["verdict"] == verdict
        position = results["nve.rdf.Ar-Ar.peak_position_difference"]
        # so short a run hardly knows where its peak is, or shows none beyond its noise: then it is not judged
        assert position["verdict"] in (("PASS", "UNDECIDED", "INFO") if shift == 0.0 else ("FAIL", "INFO"))
