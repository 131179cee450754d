"""The distillation loop: rounds, records, what is refused, what is set aside."""

from __future__ import annotations

import csv
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import read

from distill_for_tests import run, toy
from dpsim.distill import explore, loop, rounds, units
from dpsim.distill.ledger import Ledger
from dpsim.errors import ConfigError, DataError, DpsimError
from dpsim.models.checkpoint import load_model, read_header
from pair_calculators import ExplodingCalculator

HERE = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two rounds."""
    folder = tmp_path_factory.mktemp("distill")
    outcome = run(folder, figures=True)
    assert outcome.state == "finished"
    return folder / "run"


def test_a_run_leaves_model_report_and_rounds(finished: Path) -> None:
    header = read_header(finished / "toy.dpsim")
    origin = header["provenance"]["distillation"]
    assert origin["ended"] == "all 2 rounds are done"
    assert [r["driver"] for r in origin["rounds"]] == ["teacher", "student"]
    assert [r["judged"] for r in origin["rounds"]] == [False, True]
    assert header["provenance"]["card"]["rounds"]
    assert load_model(finished / "student.dpsim").type_map == ("Ar",)
    assert "Distillation of toy" in (finished / "report.html").read_text(encoding="utf-8")
    assert json.loads((finished / "results.json").read_text())["title"] == "Distillation of toy"


def test_every_frame_says_where_it_comes_from(finished: Path) -> None:
    frames = [f for k in (0, 1) for f in read(finished / f"rounds/0{k}/data/train.extxyz", ":")]
    for atoms in frames:
        info = atoms.info
        assert info["id"] == f"r{info['round']:02d}.{info['walker']}.s{info['step']:07d}"
        assert info["condition"] == "40K"
        assert info["parent"] == "argon.extxyz:-1"
        assert info["labelled_by"].startswith("pair_calculators:PairCalculator")
        assert ("deviation" in info) == (info["round"] == 1)
        assert np.isfinite(atoms.arrays["REF_forces"]).all()
    reasons = {atoms.info["reason"].split(";")[0].split(" 0.")[0] for atoms in frames}
    assert reasons == {"no student yet: the farthest from all others", "deviation"}
    assert len({atoms.info["id"] for atoms in frames}) == len(frames)


def test_every_judged_frame_is_accounted_for(finished: Path) -> None:
    with (finished / "rounds/01/select/deviations.csv").open() as file:
        rows = list(csv.DictReader(file))
    counts = json.loads((finished / "rounds/01/round.json").read_text())["counts"]["40K"]
    assert len(rows) == 2 * 3
    assert sum(counts[k] for k in ("accurate", "candidate", "failed", "missing", "set_aside")) == 2 * 3
    assert sum(int(row["chosen"]) for row in rows) == counts["chosen"] == 4
    assert all(bool(row["reason"]) == bool(int(row["chosen"])) for row in rows)


def test_the_same_command_repeats_nothing_and_more_rounds_go_on(finished: Path, monkeypatch: Any) -> None:
    before = (finished / "ledger.jsonl").read_bytes()
    model = (finished / "student.dpsim").read_bytes()
    assert run(finished.parent).state == "finished"
    assert (finished / "ledger.jsonl").read_bytes() == before
    assert (finished / "student.dpsim").read_bytes() == model
    with pytest.raises(ConfigError, match="`select` differ from .*distill.yaml"):
        run(finished.parent, select__max_frames=3)
    assert run(finished.parent, rounds=3).state == "finished"
    assert (finished / "ledger.jsonl").read_bytes().startswith(before)
    assert (finished / "rounds/02/train/00/model-last.dpsim").exists()


def test_frames_the_teacher_cannot_label_are_set_aside(tmp_path: Path) -> None:
    teacher = {"python": "distill_for_tests:NanCalculator", "folder": HERE}
    outcome = run(tmp_path, teacher=teacher, explore__first_driver="perturb", rounds=1, select__max_frames=6)
    record = json.loads((outcome.directory / "rounds/00/round.json").read_text())
    counts = record["counts"]["40K"]
    assert record["asked"] == 6
    assert 0 < counts["set_aside"] < 6
    assert record["train"] + record["validation"] == counts["chosen"] == 6 - counts["set_aside"]
    with (outcome.directory / "rounds/00/select/deviations.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["class"] == "set aside"]
    assert len(rows) == counts["set_aside"]
    assert all("forces not finite" in row["reason"] for row in rows)


def test_a_teacher_that_never_labels_is_an_error(tmp_path: Path) -> None:
    teacher = {"python": "distill_for_tests:NeverCalculator", "folder": HERE}
    with pytest.raises(DpsimError, match="the teacher labelled none of 4 frames .*out of order"):
        run(tmp_path, teacher=teacher, explore__first_driver="perturb")
    with pytest.raises(DpsimError, match="explored nothing: 2 walkers, driven by the teacher.*out of order"):
        run(tmp_path / "b", teacher=teacher)


def test_exploding_walkers_keep_their_frames_and_the_rest_is_missing(tmp_path: Path) -> None:
    config = toy(tmp_path, explore__duration="60 fs", explore__frames=10)
    walker = explore.walkers_of(config, 0)[0]
    result = explore.walk(walker, "teacher", ExplodingCalculator(14), "teacher", tmp_path / "w", ["Ar"])
    assert result["expected"] == 10
    assert 2 < result["frames"] < 6
    assert "not finite" in result["failure"]
    assert len(read(tmp_path / "w" / explore.FRAMES, ":")) == result["frames"]


def test_a_student_that_cannot_drive_hands_over_to_the_teacher(tmp_path: Path) -> None:
    outcome = run(tmp_path, select__trust=["1e-7 eV/A", "2e-7 eV/A"], rounds=3)
    records = [json.loads((outcome.directory / f"rounds/0{k}/round.json").read_text()) for k in range(3)]
    assert [r["driver"] for r in records] == ["teacher", "student", "teacher"]
    assert records[1]["counts"]["40K"]["failed"] == 6
    assert records[1]["train"] == 0


def test_a_student_that_explodes_at_once_hands_over_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "DPCalculator", lambda *_, **__: ExplodingCalculator(2))
    outcome = run(tmp_path, rounds=3)
    records = [json.loads((outcome.directory / f"rounds/0{k}/round.json").read_text()) for k in range(3)]
    assert [r["driver"] for r in records] == ["teacher", "student", "teacher"]
    assert records[1]["counts"]["40K"]["missing"] == 6
    assert records[2]["judged"]


def test_a_full_disk_is_said_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "write_data", _full)
    with pytest.raises(DpsimError, match="no space is left on the disk of .*the same command continues"):
        run(tmp_path, rounds=1)
    monkeypatch.undo()
    assert run(tmp_path, rounds=1).state == "finished"


def _full(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_labels_within_the_budget(tmp_path: Path) -> None:
    outcome = run(tmp_path, budget__labels=7, rounds=4)
    records = [json.loads(p.read_text()) for p in sorted(outcome.directory.glob("rounds/*/round.json"))]
    assert [r["asked"] for r in records] == [4, 3]
    assert read_header(outcome.directory / "toy.dpsim")["provenance"]["distillation"]["ended"] == (
        "the budget of 7 labels is spent"
    )


def test_it_ends_when_enough_frames_are_accurate(tmp_path: Path) -> None:
    outcome = run(tmp_path, select__trust=["5 eV/A", "10 eV/A"], rounds=5)
    ended = read_header(outcome.directory / "toy.dpsim")["provenance"]["distillation"]["ended"]
    assert ended == "100.0 % of the frames are accurate, 95 % were asked for"
    assert not (outcome.directory / "rounds/01/train").exists()


def test_a_committee_chooses_without_labels(tmp_path: Path) -> None:
    outcome = run(tmp_path, selector="committee", committee=2, rounds=2)
    record = json.loads((outcome.directory / "rounds/01/round.json").read_text())
    assert record["asked"] == 4
    assert len(list(outcome.directory.glob("rounds/01/train/*/model-last.dpsim"))) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select__trust": ["1 eV/A", "0.1 eV/A"]}, "`trust` is .1 eV/A, 0.1 eV/A.*the wrong way round; swap them"),
        ({"student__model__type_map": ["Ne"]}, r"elements \['Ar'\] of argon.extxyz:-1 are not in the student's"),
        ({"explore__frames": 50}, "`frames` is 50, but 20 fs less 0 fs of `skip` are 10 steps"),
        ({"explore__first_driver": "student"}, "`explore.first_driver` is student, but there is none yet"),
        ({"teacher": {"offline": {}}}, "`selector` is teacher and the teacher is offline"),
        ({"compress": {}, "student__model__fitting": {"neuron": [4], "numb_fparam": 1}}, "`student.model` cannot be"),
        ({"explore__conditions": [{"temperature": "40 K"}] * 2}, "`conditions` are .*expected each of them once"),
        ({"selector": "committee", "student__init_from": "x.dpsim"}, "students that begin alike"),
    ],
)
def test_what_is_refused_before_anything_is_made(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DpsimError, match=message):
        run(tmp_path, **changes)
    assert not (tmp_path / "run").exists()


def test_a_ledger_survives_a_torn_line_and_refuses_a_changed_result(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("1")
    ledger = Ledger(tmp_path)
    ledger.add("a", tmp_path / "a.json")
    with ledger.path.open("a") as file:
        file.write('{"unit": "b", "resu')
    again = Ledger(tmp_path)
    assert "a" in again and "b" not in again
    assert ledger.path.read_text().endswith("}\n")
    (tmp_path / "a.json").write_text("2")
    with pytest.raises(DataError, match="as it was when a finished"):
        again.entry("a")
    ledger.path.write_text("no json\n")
    with pytest.raises(DataError, match="line 1"):
        Ledger(tmp_path)


def test_given_frames_begin_without_dynamics(tmp_path: Path) -> None:
    folder = tmp_path / "first"
    given = run(folder, rounds=1).directory / "rounds/00/explore/frames.extxyz"
    outcome = run(tmp_path / "second", rounds=1, explore__given=[str(given)])
    record = json.loads((outcome.directory / "rounds/00/round.json").read_text())
    assert record["driver"] == "given"
    frames = read(outcome.directory / "rounds/00/data/train.extxyz", ":")
    assert {f.info["parent"].partition(":")[0] for f in frames} == {"frames.extxyz"}


def test_a_run_that_is_asked_to_stop_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Loop, "_train", interrupt)
    outcome = run(tmp_path)
    assert outcome.state == "stopped"
    assert "The same command continues" in outcome.message
