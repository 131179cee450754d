"""Sweeps: every point is a run of its own, failures do not spread, and only what is missing runs again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import write
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from dpsim.config import parse_yaml, validate
from dpsim.engines.output import THERMO, read_thermo
from dpsim.errors import ConfigError
from dpsim.protocols.rundir import RunOutcome
from dpsim.protocols.sweep import check_protocol, run_protocol
from ladder_for_tests import Ladder
from pair_calculators import FailingCalculator, PairCalculator, argon
from slurm_for_tests import alive, jobs

STAGE = {"type": "nvt", "temperature": "1 K", "timestep": "5 fs", "steps": 40, "damping": "20 fs"}


def ladder(tmp_path: Path, **changes: Any) -> Ladder:
    write(tmp_path / "ar.extxyz", argon())
    data = {
        "name": "ar",
        "protocol": "ladder",
        "structure": str(tmp_path / "ar.extxyz"),
        "temperatures": ["20 K", "40 K"],
        "stage": STAGE,
    }
    return validate(data | changes, Ladder)


def argon_for(protocol: Any, precision: Any) -> PairCalculator:
    return PairCalculator()


class Pushing(PairCalculator):
    """After some steps it pushes atom 0 away."""

    def spoil(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        forces[0] += 100.0 * (self.calls > 20)
        return forces


def fails_when_hot(protocol: Any, precision: Any) -> PairCalculator:
    """At 40 K the run explodes; the checks, and all else, go well."""
    return Pushing() if protocol.name.startswith("40K") else PairCalculator()


def stops_when_hot(protocol: Any, precision: Any) -> PairCalculator:
    return FailingCalculator(20, KeyboardInterrupt()) if protocol.name.startswith("40K") else PairCalculator()


def run(tmp_path: Path, calculator_for: Any = argon_for, **changes: Any) -> tuple[RunOutcome, dict[str, Any]]:
    outcome = run_protocol(ladder(tmp_path, **changes), tmp_path / "run", calculator_for)
    return outcome, {} if outcome.results is None else json.loads(outcome.results.read_text())


def test_every_point_is_a_run(tmp_path: Path) -> None:
    outcome, found = run(tmp_path, replicas=2)
    assert outcome.verdict == "INFO"
    keys = {"20K.1", "20K.2", "40K.1", "40K.2"}
    assert {p.name for p in (tmp_path / "run/points").iterdir()} == keys
    seeds = {json.loads((tmp_path / f"run/points/{k}/unit.json").read_text())["arguments"]["protocol"]["seed"]
             for k in keys}  # fmt: skip
    assert len(seeds) == 4
    for key in keys:
        folder = tmp_path / "run/points" / key
        assert (folder / "report.html").is_file() and (folder / "results.json").is_file()
        assert len(read_thermo(folder / "stages/01_nvt" / THERMO)["step"]) == 41
        assert not (folder / "progress.json").exists()
    result = found["results"][0]
    assert result["name"] == "heat_capacity" and result["value"] > 0.0
    assert found["provenance"]["speed"]["20K.1"].startswith("40 steps")
    assert "20K.1" in (tmp_path / "run/report.html").read_text()


def test_a_failed_point_does_not_stop_the_others_and_only_it_runs_again(tmp_path: Path) -> None:
    outcome, found = run(tmp_path, fails_when_hot)
    assert outcome.verdict == "UNDECIDED"
    assert any("40K.1 failed: stage nvt failed after step" in text for text in found["warnings"])
    failed = json.loads((tmp_path / "run/points/40K.1/results.json").read_text())
    assert failed["verdict"] == "FAIL" and (tmp_path / "run/points/40K.1/report.html").is_file()
    done = tmp_path / "run/points/20K.1/results.json"
    before = done.stat().st_mtime_ns
    outcome, found = run(tmp_path)
    assert outcome.verdict == "INFO" and not found["warnings"]
    assert done.stat().st_mtime_ns == before
    assert found["results"][0]["value"] > 0.0


def test_a_sweep_continues(tmp_path: Path) -> None:
    """After Ctrl-C; longer stages; but no other settings."""
    stopped, _ = run(tmp_path, stops_when_hot)
    assert stopped.stopped and "same command continues" in stopped.message
    assert run(tmp_path)[0].verdict == "INFO"
    run(tmp_path, stage=STAGE | {"steps": 50})
    assert len(read_thermo(tmp_path / "run/points/20K.1/stages/01_nvt" / THERMO)["step"]) == 51
    with pytest.raises(ConfigError, match=r"timestep_fs was 5.0, is 2.0"):
        run(tmp_path, stage=STAGE | {"steps": 60, "timestep": "2 fs"})


def test_mistakes_name_the_point(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected at least one, each once"):
        check_protocol(ladder(tmp_path, temperatures=["20 K", "20 K"]), argon_for)
    text = "name: x\nprotocol: ladder\nstructure: a.xyz\ntemperatures: [20 K]\nstage: {type: nvt}"
    with pytest.raises(ConfigError, match=r"line 5: `stage.temperature` is missing"):
        parse_yaml(text, Ladder)


@pytest.mark.slow
def test_on_several_workers(tmp_path: Path) -> None:
    outcome, found = run(tmp_path, fails_when_hot, workers={"local": 2})
    assert outcome.verdict == "UNDECIDED"
    assert len(found["warnings"]) == 1
    assert (tmp_path / "run/points/20K.1/report.html").is_file()


@pytest.mark.slow
def test_in_jobs_of_slurm(tmp_path: Path, slurm: Path) -> None:
    """Two jobs share the points; failed ones do not stop the others, and the next command has a job for them alone."""
    workers = {"slurm": {"jobs": 2, "walltime": "0-00:10:00"}}
    outcome, found = run(tmp_path, fails_when_hot, workers=workers, replicas=2)
    assert outcome.verdict == "UNDECIDED"
    assert sorted(text[:18] for text in found["warnings"]) == ["Point 40K.1 failed", "Point 40K.2 failed"]
    assert len(jobs(slurm)) == 2
    before = (tmp_path / "run/points/20K.1/results.json").stat().st_mtime_ns
    outcome, found = run(tmp_path, workers={"slurm": {}}, replicas=2)
    assert outcome.verdict == "INFO" and not found["warnings"]
    assert len(jobs(slurm)) == 3 and not any(map(alive, jobs(slurm)))
    assert (tmp_path / "run/points/20K.1/results.json").stat().st_mtime_ns == before
    assert read_thermo(tmp_path / "run/points/40K.2/stages/01_nvt" / THERMO)["step"][-1] == 40
