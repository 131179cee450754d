"""The protocol pimd: what it refuses, what it finds, and that it continues."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ase.io import write

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from dpsim.config import validate
from dpsim.errors import ConfigError, MissingDependencyError
from dpsim.protocols.pimd import PimdProtocol, check_protocol, plan_protocol, run_protocol
from dpsim.protocols.rundir import RunOutcome
from pair_calculators import ExplodingCalculator, PairCalculator, argon


def pimd(folder: Path, **changes: Any) -> PimdProtocol:
    write(folder / "ar.extxyz", argon())
    data = {
        "name": "ar",
        "protocol": "pimd",
        "structure": str(folder / "ar.extxyz"),
        "temperature": "30 K",
        "beads": 4,
        "timestep": "2 fs",
        "equilibration": "20 fs",
        "duration": "80 fs",
        "trajectory_every": "8 fs",
        "damping": "50 fs",
    }
    return validate(data | changes, PimdProtocol)


def argon_for(protocol: Any, precision: Any) -> PairCalculator:
    return PairCalculator()


def explodes(protocol: Any, precision: Any) -> PairCalculator:
    return ExplodingCalculator(60)


def run(folder: Path, calculator_for: Any = argon_for, **changes: Any) -> tuple[RunOutcome, dict[str, Any]]:
    outcome = run_protocol(pimd(folder, **changes), folder / "run", calculator_for)
    return outcome, {} if outcome.results is None else json.loads(outcome.results.read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "ase"}, "`engine` is ase; expected ipi"),
        ({"beads": []}, "at least 1 item"),
        ({"beads": 0}, "greater than 0"),
        ({"beads": [8, 4]}, "expected rising numbers"),
        ({"fparam": [1.0]}, "expected none with i-PI"),
        ({"duration": "3 fs"}, "expected a whole number of steps"),
        ({"analyses": [{"type": "density"}]}, "analyses"),
        ({"analyses": [{"type": "rdf", "stages": ["equilibration"]}]}, "the only one that is sampled"),
    ],
)
def test_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        pimd(tmp_path, **changes)


def test_without_ipi_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "dpsim.engines.ipi_engine", raising=False)
    monkeypatch.setitem(sys.modules, "ipi.engine.simulation", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'dpsim\[ipi\]'"):
        check_protocol(pimd(tmp_path), argon_for)


ipi = pytest.importorskip("ipi", reason="i-PI is not installed: pip install 'dpsim[ipi]'")


def test_what_does_not_suit_the_structure_is_refused_before_a_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected those of the structure"):
        check_protocol(pimd(tmp_path, analyses=[{"type": "adf", "triplets": ["O-O-O"], "blocks": 4}]), argon_for)


def test_numbers_curves_and_report(tmp_path: Path) -> None:
    analyses = [{"type": "rdf", "blocks": 4}, {"type": "adf", "triplets": ["Ar-Ar-Ar"], "blocks": 4}]
    outcome, found = run(tmp_path, beads=[1, 4], analyses=analyses)
    results = {r["name"]: r for r in found["results"]}
    for name in ("kinetic_energy.Ar", "kinetic_energy.Ar.consistency", "gyration_radius.Ar",
                 "nvt.averages.potential_energy", "nvt.averages.pressure", "nvt.averages.temperature",
                 "nvt.rdf.Ar-Ar.peak_position", "nvt.adf.Ar-Ar-Ar.mean",
                 "beads_1.kinetic_energy.Ar", "beads_1.nvt.rdf.Ar-Ar.peak_position"):  # fmt: skip
        assert name in results, name
    classical = results["beads_1.kinetic_energy.Ar"]["value"]
    assert classical == pytest.approx(1.5 * 8.617333e-5 * 30.0 * 1e3)
    assert results["kinetic_energy.Ar"]["value"] > classical  # quantum
    assert results["gyration_radius.Ar"]["value"] > 0.01
    assert "beads_1.gyration_radius.Ar" not in results
    assert results["kinetic_energy.Ar.consistency"]["verdict"] == "UNDECIDED"  # too short to tell
    curves = {c["name"]: c for c in found["curves"]}
    assert curves["kinetic_energy.Ar.beads"]["x"] == [1, 4]
    assert {"nvt.rdf.Ar-Ar", "beads_1.nvt.rdf.Ar-Ar", "nvt.adf.Ar-Ar-Ar"} <= set(curves)
    assert outcome.report is not None
    text = outcome.report.read_text()
    assert "Are the beads enough?" in text and "oscillator" in text


def test_an_explosion_is_a_failure_with_a_report(tmp_path: Path) -> None:
    outcome, found = run(tmp_path, explodes, beads=[2, 4])
    assert outcome.verdict == "FAIL"
    assert "Ar atom 3" in outcome.failure
    assert found["results"][0]["name"] == "nvt.failure"
    assert not (tmp_path / "run" / "beads_4").exists()


def test_a_longer_duration_continues_and_other_settings_are_refused(tmp_path: Path) -> None:
    run(tmp_path, duration="40 fs")
    _, found = run(tmp_path, duration="80 fs")
    whole = tmp_path / "whole"
    whole.mkdir()
    _, expected = run(whole)
    assert found["results"] == expected["results"]
    with pytest.raises(ConfigError, match="pile_lambda was 1.0, is 0.5"):
        run(tmp_path, pile_lambda=0.5)


def test_plan_counts_beads(tmp_path: Path) -> None:
    plan = plan_protocol(pimd(tmp_path, beads=[2, 4]), argon_for)
    assert [step.n_atoms for step in plan.steps] == [64, 128]
    assert [step.n_steps for step in plan.steps] == [50, 50]
    seconds = [step.seconds for step in plan.steps]
    assert seconds[0] is not None and seconds[1] == pytest.approx(2.0 * seconds[0])
