"""The dry run: a plan with measured time and the size of the files, of one run and of a sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ase.io import write
from rich.console import Console

from dpsim.config import validate
from dpsim.errors import SimulationError
from dpsim.protocols import plan as plan_module
from dpsim.protocols import runner, sweep
from dpsim.protocols.plan import Plan, Step, plan_table, size
from dpsim.protocols.schema import Protocol
from ladder_for_tests import Ladder
from pair_calculators import FailingCalculator, PairCalculator, argon

NVT = {"type": "nvt", "temperature": "60 K", "timestep": "5 fs", "steps": 40, "trajectory_every": "10 fs"}


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module.measure, "__defaults__", (0.01,))


def head(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    write(tmp_path / "ar.extxyz", argon())
    return {"name": "ar", "structure": str(tmp_path / "ar.extxyz")} | keys


def argon_for(protocol: Any, precision: Any) -> PairCalculator:
    return PairCalculator()


def test_the_files_have_the_planned_size_and_nothing_is_left_behind(tmp_path: Path) -> None:
    protocol = validate(head(tmp_path, stages=[NVT]), Protocol)
    plan = runner.plan_protocol(protocol, argon_for)
    assert [p.name for p in tmp_path.iterdir()] == ["ar.extxyz"]
    (step,) = plan.steps
    assert (step.what, step.n_steps, step.n_atoms, step.simulated_ps) == ("nvt", 40, len(argon()), 0.2)
    assert step.seconds is not None and step.seconds > 0.0
    runner.run_protocol(protocol, tmp_path / "run", argon_for)
    files = sum(p.stat().st_size for p in (tmp_path / "run/stages/01_nvt").iterdir())
    assert 0.6 < plan.n_bytes / files < 1.4


def test_a_sweep_is_shared_among_the_workers(tmp_path: Path) -> None:
    keys = {"protocol": "ladder", "temperatures": ["20 K", "40 K"], "stage": NVT, "workers": {"local": 4}}
    plan = sweep.plan_protocol(validate(head(tmp_path, **keys), Ladder), argon_for)
    assert [step.what for step in plan.steps] == ["20K.1", "40K.1"]
    assert plan.steps[0].seconds == plan.steps[1].seconds == plan.seconds  # measured once; both at the same time
    console = Console(width=120, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    console.print(plan_table(plan))
    assert "2 at the same time" in console.export_text()


def test_totals() -> None:
    steps = [Step("a", 8, 10, 4.0, 2000.0), Step("b", 8, 10, 1.0, 500.0), Step("c", 8, 10, 1.0)]
    assert Plan("x", steps).seconds == 6.0
    assert Plan("x", steps, n_at_once=2).seconds == 4.0  # the longest
    assert Plan("x", steps, n_at_once=2).n_bytes == 2500.0
    assert Plan("x", [*steps, replace(steps[0], seconds=None)]).seconds is None
    assert (size(12.0), size(2500.0), size(3.1e9), size(5e13)) == ("12 B", "2.5 kB", "3.1 GB", "50 TB")


def test_a_structure_from_which_no_step_can_be_made(tmp_path: Path) -> None:
    """It has to be relaxed first: the time is unknown then."""

    def spoiled(protocol: Any, precision: Any) -> PairCalculator:
        return FailingCalculator(3, SimulationError("NaN"))

    plan = runner.plan_protocol(validate(head(tmp_path, stages=[NVT]), Protocol), spoiled)
    assert plan.seconds is None
