"""From nothing to an accepted student of a teacher that is not dpsim's: the example of docs/distillation.md, run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.io import read
from rich.console import Console

from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.config import load_yaml
from dpsim.distill.config import DistillConfig
from dpsim.distill.loop import distill
from dpsim.distill.progress import Display
from dpsim.models.checkpoint import load_model
from dpsim.models.student import Student

EXAMPLE = Path(__file__).parents[2] / "examples" / "distillation" / "distill.yaml"


@pytest.mark.slow
def test_a_student_of_an_ase_calculator_is_accepted(tmp_path: Path) -> None:
    outcome = distill(load_yaml(EXAMPLE, DistillConfig), tmp_path / "copper", Display(Console(quiet=True)))
    results = json.loads((outcome.directory / "results.json").read_text())["results"]
    assert outcome.verdict == "PASS", [r for r in results if r["verdict"] != "PASS"]
    assert outcome.model is not None
    student = load_model(outcome.model)
    assert isinstance(student, Student)
    assert student.metadata["provenance"]["card"]["acceptance"]["verdict"] == "PASS"

    atoms = read(EXAMPLE.parent / "copper.extxyz").repeat((2, 1, 1))  # larger than any structure that it learned from
    atoms.rattle(0.08, seed=1)
    forces = []
    for calculator in (EMT(), DPCalculator(outcome.model)):
        atoms.calc = calculator
        forces.append(atoms.get_forces())
    assert np.sqrt(((forces[0] - forces[1]) ** 2).mean()) < 0.1 * forces[0].std()
