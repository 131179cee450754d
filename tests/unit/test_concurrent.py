"""Concurrent learning from end to end: a committee chooses, somebody outside labels, and nothing is done twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import read, write

from distill_for_tests import run, toy
from dpsim.config import load_yaml
from dpsim.distill.config import DistillConfig
from dpsim.distill.label import Waiting
from dpsim.distill.offline import exchange
from dpsim.distill.plan import check, estimate
from dpsim.errors import ConfigError
from pair_calculators import PairCalculator

COMMITTEE: dict[str, Any] = {"selector": "committee", "committee": 2, "explore__first_driver": "perturb"}


def ledger(folder: Path) -> list[str]:
    """The finished pieces of work, each of them once."""
    units = [json.loads(line)["unit"] for line in (folder / "run" / "ledger.jsonl").read_text().splitlines()]
    assert len(units) == len(set(units))
    return units


def learned_from(folder: Path) -> list[Any]:
    """All labelled frames of the students' data."""
    files = sorted(f for f in (folder / "run").glob("rounds/*/data/*.extxyz") if f.stat().st_size)
    return [atoms for file in files for atoms in read(file, index=":")]


def test_a_committee_learns_from_an_ase_calculator(tmp_path):
    outcome = run(tmp_path, **COMMITTEE)
    assert outcome.state == "finished" and outcome.model is not None and outcome.model.is_file()
    frames = learned_from(tmp_path)
    assert len(frames) == 8 and {a.info["round"] for a in frames} == {0, 1}
    for atoms in frames:
        label, atoms.calc = atoms.info["REF_energy"], PairCalculator()
        assert label == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        assert "PairCalculator" in atoms.info["labelled_by"] and atoms.info["reason"]
        assert atoms.info["round"] == 0 or atoms.info["deviation"] > 0.0  # every member has a seed of its own
    assert {f"rounds/0{k}/train/0{m}" for k in range(2) for m in range(2)} <= set(ledger(tmp_path))


def label_by_hand(file: Path) -> None:
    atoms = read(file)
    atoms.calc = PairCalculator()
    atoms.get_forces()
    write(file.with_name("labels.extxyz"), atoms, format="extxyz")


def handed_out(folder: Path, round_: int) -> list[Path]:
    return sorted((folder / "run" / "rounds" / f"{round_:02d}" / "label" / "frames").glob("*/frame.extxyz"))


def test_labels_come_from_outside_between_two_runs(tmp_path):
    """dpsim stops with the inputs written; the same command takes the labels up, and asks for the next round's."""
    settings = COMMITTEE | {"teacher": {"offline": {}}}
    first = run(tmp_path, **settings)
    assert first.state == "waiting" and "labels of 4 of 4 frames" in first.message
    files = handed_out(tmp_path, 0)
    for file in files[:3]:
        label_by_hand(file)
    before = ledger(tmp_path)
    assert "labels of 1 of 4 frames" in run(tmp_path, **settings).message and ledger(tmp_path) == before
    (files[3].parent / "FAILED").write_text("did not converge")
    second = run(tmp_path, **settings)
    assert second.state == "waiting" and str(tmp_path / "run" / "rounds" / "01" / "label") in second.message
    assert ledger(tmp_path)[: len(before)] == before
    record = json.loads((tmp_path / "run" / "rounds" / "00" / "round.json").read_text())
    assert sum(c["set_aside"] for c in record["counts"].values()) == 1
    assert record["train"] + record["validation"] == 3
    for file in handed_out(tmp_path, 1):
        label_by_hand(file)
    assert run(tmp_path, **settings).state == "finished"
    labelled = learned_from(tmp_path)
    assert all(a.info["labelled_by"].startswith("labels.extxyz (extxyz) sha256:") for a in labelled)
    assert ledger(tmp_path)


def test_a_labeller_that_may_take_hours_is_not_tried_out(tmp_path, monkeypatch):
    """Before a run it is made, so that a missing program is noticed, but it calculates nothing."""
    calls: list[int] = []
    monkeypatch.setattr(PairCalculator, "calculate", lambda *_: calls.append(1))
    assert "label" in [cost.what for cost in estimate(toy(tmp_path, **COMMITTEE))] and not calls
    with pytest.raises(ConfigError, match="has no function or class"):
        check(toy(tmp_path, **COMMITTEE, teacher__python="pair_calculators:nothing"))


EXAMPLE = Path(__file__).parents[2] / "examples" / "concurrent"


def test_the_examples_are_right(tmp_path):
    for name in ("copper", "offline"):
        config = load_yaml(EXAMPLE / f"{name}.yaml", DistillConfig)
        (frame, *_) = check(config)
        assert frame.n_atoms == 32
    with pytest.raises(Waiting):
        exchange(config.teacher.offline, tmp_path / "rounds" / "00" / "label", [frame])
    subprocess.run([sys.executable, str(EXAMPLE / "label.py"), str(tmp_path)], check=True)
    (found,) = exchange(config.teacher.offline, tmp_path / "rounds" / "00" / "label", [frame])
    assert found.failure == "" and found.frame.virial is not None


@pytest.mark.slow
def test_walkers_labels_and_members_run_at_the_same_time(tmp_path):
    """On two local workers a run gives what it gives in one process, to rounding."""
    for name, workers in (("serial", {"serial": True}), ("local", {"local": 2})):
        assert run(tmp_path / name, **COMMITTEE, workers=workers, rounds=1).state == "finished"
    for a, b in zip(learned_from(tmp_path / "serial"), learned_from(tmp_path / "local"), strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_allclose(a.info.pop("REF_virial", 0.0), b.info.pop("REF_virial", 0.0), atol=1e-9)
        assert a.info == b.info
    units = list((tmp_path / "local" / "run").glob("rounds/00/*/*/unit.json"))
    assert len(units) == 2 + 2 + 2  # walkers, chunks of labels, members


@pytest.mark.slow
def test_a_labeller_that_dies_costs_its_frames_and_says_so(tmp_path):
    """Two workers label two frames each; one frame kills whoever labels it, twice."""
    with_nobody = COMMITTEE | {"teacher": {"offline": {}}}
    assert run(tmp_path / "seen", **with_nobody).state == "waiting"
    frames = read(handed_out(tmp_path / "seen", 0)[0].parents[1] / "all.extxyz", index=":")
    folder = str(Path(__file__).parent)
    deadly = {"python": "teachers_for_tests:Deadly", "kwargs": {"x": frames[3].positions[0, 0]}, "folder": folder}
    workers = {"local": 2, "retries": 1}
    outcome = run(tmp_path / "deadly", **COMMITTEE, teacher=deadly, workers=workers, rounds=1)
    assert outcome.state == "finished"
    assert [a.info["id"] for a in learned_from(tmp_path / "deadly")] == [a.info["id"] for a in frames[:2]]
    label = json.loads((outcome.directory / "rounds" / "00" / "label" / "label.json").read_text())
    assert set(label["failed"]) == {a.info["id"] for a in frames[2:]}
    assert all("killed by SIGKILL 2 times" in reason for reason in label["failed"].values())
