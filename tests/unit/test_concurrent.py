"""Concurrent learning from end to end: a committee chooses, somebody outside labels, and nothing is done twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import read, write

from distill_for_tests import run
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
