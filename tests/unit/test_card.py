"""The model card: made of what is known, kept in the file, shown whatever somebody wrote into it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from dpsim.analysis.report import Result
from dpsim.cli import app
from dpsim.distill import accept as accept_module
from dpsim.distill.accept import Acceptance
from dpsim.distill.accept_work import Contender, fingerprint
from dpsim.distill.card import add_card, make_card, render_card
from dpsim.distill.cost import Cost
from dpsim.models.checkpoint import load_model, save_model
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel

MODEL: dict[str, Any] = {
    "type_map": ["H", "O"],
    "descriptor": {"type": "se_e2_a", "rcut": 4.0, "rcut_smth": 0.5, "neuron": [4, 8], "axis_neuron": 2, "sel": [9, 9]},
    "fitting": {"neuron": [8]},
}
PROVENANCE = {
    "name": "tiny",
    "description": "Made for tests.",
    "licence": "LGPL-3.0-or-later",
    "elements": {"": ["H", "O"]},
    "data": {"train": [{"name": "water/a", "frames": 320, "sha256": "ab" * 32}], "validation": []},
    "training": {"metrics": {"validation_force_rmse_meV_per_A": 44.83}},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.dpsim"
    save_model(path, EnergyModel(ModelConfig.model_validate(MODEL)), PROVENANCE)
    return path


def acceptance(model: Path, verdict: str = "PASS") -> Acceptance:
    results = (
        Result("w.forces", "Forces, relative rms error, water at 330 K", 0.05, 0.001, "", 0.1, "PASS", "All well."),
        Result("w.density", "Density, water at 300 K, 1 bar", 0.002, 0.004, "", 0.01, verdict, "Hm."),  # type: ignore[arg-type]
        Result("w.diffusion", "Diffusion of O, ratio", None, None, "", "0.833 ... 1.2", "INFO", "Neither."),
    )
    return Acceptance(
        verdict=verdict,  # type: ignore[arg-type]
        results=results,
        report=model.parent / "report.html",
        directory=model.parent,
        teacher=Contender("teacher", "water-pbe0ts", "c0ffee" * 10),
        student=Contender("student", str(model), fingerprint(str(model))),
        conditions=("water at 330 K", "water at 300 K, 1 bar"),
        costs={"teacher": Cost(2e-3, 1e6, 192, "cpu", 2), "student": Cost(2e-5, 2e4, 192, "cpu", 2)},
    )


def shown(card: Any) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_card(card))
    return console.export_text()


def test_a_card_says_what_is_known(model: Path) -> None:
    rounds = [{"round": 0, "labelled": 50, "accurate": 0.4}, {"round": 1, "labelled": 30, "accurate": 0.97}]
    card = make_card(acceptance(model, "UNDECIDED"), rounds=rounds, limits=["Not for ice."])
    assert json.loads(json.dumps(card)) == card
    text = shown(card)
    for words in (
        "Model card: tiny", "Made for tests.", "simulations of water at 330 K", "H, O", "water/a, 320 frames",
        "abababababababab", "water-pbe0ts (c0ffeec0ffeec0ff)", "validation force rmse meV per A 44.8", "0.97",
        "100 times as much", "50 times as much", "LGPL-3.0-or-later", "Not for ice.",
        "Undecided for want of statistics", "Acceptance: UNDECIDED", "0.0500 ± 0.0010", "≤ 0.1", "0.833 ... 1.2",
    ):  # fmt: skip
        assert words in text, words


def test_the_file_keeps_it_and_computes_the_same(model: Path) -> None:
    before = fingerprint(str(model))
    add_card(model, make_card(acceptance(model)))
    assert fingerprint(str(model)) == before
    kept = load_model(model).metadata["provenance"]
    assert kept["card"]["acceptance"]["verdict"] == "PASS"
    assert {k: kept[k] for k in PROVENANCE} == PROVENANCE
    result = CliRunner().invoke(app, ["show", str(model)])
    assert result.exit_code == 0
    assert result.output.startswith("Model card: tiny")
    assert "descriptor" in result.output


@pytest.mark.parametrize(
    "card",
    [
        {},
        {"data": "x", "teacher": 3, "rounds": [1, {"a": None}], "errors": [], "cost": {"student": {"seconds": "fast"}}},
        {"acceptance": {"criteria": [{"value": "1", "threshold": None}, 7]}, "model": "[red]not markup[/red]"},
        {"cost": {"student": {"seconds": 0.0, "bytes": 1}, "teacher": 2}, "purpose": 5, "limits": "text"},
    ],
)
def test_any_card_can_be_shown(card: dict[str, Any]) -> None:
    assert str(card.get("model", "Model card")) in shown(card)


def test_without_a_test_it_says_so() -> None:
    card = make_card(provenance=PROVENANCE)
    assert "Not tested" in card["limits"][0]
    assert "acceptance" not in card


def test_the_command(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dpsim accept` reads the file, names the teacher, writes the card, and its exit code is the verdict."""
    seen: dict[str, Any] = {}

    def fake(config: Any, teacher: Any, student: Any, directory: Path, say: Any = print) -> Acceptance:
        seen.update(config=config, teacher=teacher, directory=directory)
        return acceptance(model, seen.get("verdict", "PASS"))

    monkeypatch.setattr(accept_module, "accept", fake)
    (tmp_path / "accept.yaml").write_text("{runs: 2, conditions: [{temperature: 330 K}]}")
    call = ["accept", str(model), str(tmp_path / "accept.yaml"), "--teacher"]
    result = CliRunner().invoke(app, [*call, "ase.calculators.emt:EMT", "-d", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert (seen["config"].runs, seen["directory"]) == (2, tmp_path / "out")
    assert seen["teacher"].python == "ase.calculators.emt:EMT"
    assert "card" in load_model(model).metadata["provenance"]
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    seen["verdict"] = "FAIL"
    result = CliRunner().invoke(app, [*call, "models.pt:water", "--no-card"])
    assert result.exit_code == 1
    assert seen["teacher"] == "models.pt:water"
    assert hashlib.sha256(model.read_bytes()).hexdigest() == digest
