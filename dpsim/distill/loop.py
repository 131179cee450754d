"""`dpsim distill`: rounds of explore, select, label, train until the student is as good as asked, then its test.

The folder holds everything (dpsim/distill/rounds.py says what of a round), and ledger.jsonl what is finished: the same
command goes on after an interruption of any kind, without repeating or losing finished work. At the end there are

    student.dpsim      the student as it was trained, to go on from
    <name>.dpsim       the student to use: compressed, its model card inside
    accept/            the acceptance test
    report.html        the rounds, the test, the card; results.json: the same for programs
"""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpsim.config import dump_yaml, load_yaml
from dpsim.data.subset import evenly_spread
from dpsim.distill import rounds, select
from dpsim.distill.config import DistillConfig, Driver
from dpsim.distill.finish import finish
from dpsim.distill.found import Found, read_found, write_found
from dpsim.distill.label import Waiting
from dpsim.distill.ledger import Ledger
from dpsim.distill.plan import check
from dpsim.distill.progress import Display
from dpsim.distill.run import CONFIG, DistillOutcome, Interrupted, RoundRecord, Run
from dpsim.errors import ConfigError, DpsimError
from dpsim.files import atomic_write
from dpsim.models.checkpoint import load_trainable, save_model
from dpsim.protocols.rundir import locked
from dpsim.signals import interrupted_by_signals

# Sections of distill.yaml that may change between two runs in one folder: they say when it ends and who works.
_FREE = {"rounds", "converged", "budget", "workers", "accept", "teacher_device"}
_LOST = 0.5  # of the frames accurate: fewer, and none of use, is a student that cannot drive


def distill(config: DistillConfig, directory: Path, display: Display | None = None) -> DistillOutcome:
    """Run, or continue, a distillation in a folder.

    Raises: DpsimError for what cannot be used or done; everything finished is kept.
    """
    display, directory = display or Display(), directory.absolute()
    try:
        check(config)
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory), interrupted_by_signals():
            _keep_config(config, directory)
            return Loop(Run(config, directory, Ledger(directory), display)).to_the_end()
    except (KeyboardInterrupt, Interrupted):
        message = f"Stopped; everything is saved in {directory}. The same command continues."
        display.say(message)
        return DistillOutcome("stopped", message, directory)
    except Waiting as waiting:
        display.say(str(waiting))
        return DistillOutcome("waiting", str(waiting), directory)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DpsimError(
            f"no space is left on the disk of `{directory}` ({error}); expected room to go on. Everything finished is "
            "kept: free some space, and the same command continues."
        ) from error


class Loop:
    """The rounds of one run, from the first to the verdict."""

    def __init__(self, run: Run):
        self.run, self.config, self.folder = run, run.config, run.folder
        self.records: list[RoundRecord] = []
        self.students: list[Path] = []

    def to_the_end(self) -> DistillOutcome:
        """Every round that is left, and what comes after them."""
        self.students = self._first_students()
        reason = ""
        while not reason:
            k = len(self.records)
            reason = self._converged() or self._spent()
            if not reason:
                self.records.append(self._round(k))
                self._train(self.records[-1])
        self.run.display.say(f"the rounds are over: {reason}")
        return finish(self.run, self.records, self.students, reason)

    # ---- when it ends -----------------------------------------------------------------------------------------------

    def _converged(self) -> str:
        """Why no more rounds are needed, or ''."""
        wanted = self.config.converged
        accurate = [r.accurate for r in self.records if r.judged]
        last = accurate[-wanted.rounds :]
        if len(last) == wanted.rounds and min(last) >= wanted.accurate:
            return f"{100 * min(last):.1f} % of the frames are accurate, {100 * wanted.accurate:g} % were asked for"
        n = wanted.stable_rounds
        if n is not None and len(accurate) > n and max(accurate[-n:]) - accurate[-n - 1] <= wanted.change:
            return f"the fraction of accurate frames, {100 * accurate[-1]:.1f} %, has not risen in {n} rounds"
        return ""

    def _spent(self) -> str:
        """Which limit is reached, or ''."""
        budget = self.config.budget
        if len(self.records) >= self.config.rounds:
            return f"all {self.config.rounds} rounds are done"
        if budget.labels is not None and self._labels_left() <= 0:
            return f"the budget of {budget.labels} labels is spent"
        if budget.time is not None and self.run.ledger.seconds * 1e15 >= budget.time:
            return f"the budget of {budget.time * 1e-15:g} s is spent"
        return ""

    def _labels_left(self) -> int:
        labels = self.config.budget.labels
        return 1 << 62 if labels is None else labels - sum(r.asked for r in self.records)

    # ---- one round --------------------------------------------------------------------------------------------------

    def _first_students(self) -> list[Path]:
        """The students before the first round: trained on `data`, or a copy of `init_from`, or none."""
        run, given = self.run, self.config.student.init_from
        start = None
        if given is not None:
            start = self.folder / "start" / "init.dpsim"
            if not start.exists():
                save_model(start, load_trainable(given))
        if self.config.data:
            return rounds.train_students(run, "start/train", 0, [start] * self._n_students, [])
        return [] if start is None else [start]

    @property
    def _n_students(self) -> int:
        return self.config.committee if self.config.selector == "committee" else 1

    def _round(self, k: int) -> RoundRecord:
        """Explore, label and select; or what is known of it, where that is done."""
        run, kept = self.run, self.run.round_folder(k) / "round.json"
        name = f"r{k:02d}/data"
        if run.ledger.entry(name) is not None:
            return RoundRecord.from_json(json.loads(kept.read_bytes()))
        driver = self._driver(k)
        explored, walkers = rounds.explore_round(run, k, driver, self.students[0] if self.students else None)
        if self.students and self.config.selector == "teacher":
            judged = self._judged_by_teacher(k, explored)
        else:
            judged = self._chosen_first(k, explored)
        chosen = judged.chosen
        if not self.students and not chosen:
            why = next(iter(judged.set_aside.values()), "none was explored")
            raise DpsimError(
                f"round {k} has no frame to train the first student on: the teacher labelled none of {judged.asked} "
                f"({why}). Check the teacher on the structures; then start in a new folder."
            )

        def make() -> dict[str, Any]:
            counts = rounds.count(run, judged, walkers)
            rounds.write_deviations(run, k, judged)
            added = rounds.write_data(run, k, chosen)
            judged_any = bool(self.students)
            return RoundRecord(k, driver, judged_any, counts, judged.asked, **added).to_json()

        record = RoundRecord.from_json(run.once(name, kept, make))
        run.display.counts(record)
        return record

    def _driver(self, k: int) -> Driver:
        """Who drives a round: not the student, where its last walkers exploded before they found anything of use."""
        last = self.records[-1] if self.records else None
        lost = last is not None and last.driver == "student" and not last.train and last.accurate < _LOST
        return self.config.driver_without_student if lost else self.config.driver(k)

    def _judged_by_teacher(self, k: int, explored: Sequence[Found]) -> rounds.Judged:
        """Ask the teacher about every frame, compare, choose: the labels of those chosen are there already."""
        run, folder, config = self.run, self.run.round_folder(k), self.config
        file = folder / "label" / "frames.extxyz"
        if not file.exists():
            write_found(file, evenly_spread(explored, self._labels_left()))
        asked = read_found(file, config.student.model.type_map)
        labels, set_aside = rounds.label(run, k, file, len(asked))

        def judge() -> tuple[dict[str, float], list[Found]]:
            found = [f for f in asked if f.id in labels]
            (student,) = rounds.calculators(self.students, config.explore.device)
            labelled = [labels[f.id].frame for f in found]
            values = select.deviations_from_labels(student, labelled, config.select.measure)
            deviations = {f.id: v for f, v in zip(found, values, strict=True)}
            return deviations, select.choose(
                found, deviations, self._known(k), self._rcut, config.select, config.select.max_frames
            )

        deviations, chosen = rounds.select_once(run, k, judge)
        return rounds.Judged(explored, deviations, set_aside, rounds.with_labels(chosen, labels), len(asked))

    def _chosen_first(self, k: int, explored: Sequence[Found]) -> rounds.Judged:
        """Choose, by what a committee says or by difference alone, then ask the teacher about those chosen."""
        run, config = self.run, self.config
        n = min(config.select.max_frames, self._labels_left())

        def judge() -> tuple[dict[str, float], list[Found]]:
            if not self.students:
                return {}, select.choose_unjudged(explored, self._known(k), self._rcut, config.select, n)
            students = rounds.calculators(self.students, config.explore.device)
            values = select.deviations_of_committee(students, [f.frame for f in explored], config.select.measure)
            deviations = {f.id: v for f, v in zip(explored, values, strict=True)}
            return deviations, select.choose(explored, deviations, self._known(k), self._rcut, config.select, n)

        deviations, chosen = rounds.select_once(run, k, judge)
        labels, set_aside = rounds.label(run, k, rounds.chosen_file(run, k), len(chosen))
        return rounds.Judged(explored, deviations, set_aside, rounds.with_labels(chosen, labels), len(chosen))

    def _known(self, k: int) -> list[Any]:
        """Frames that earlier rounds added."""
        folders = [self.run.round_folder(r) / "data" for r in range(k)]
        type_map = self.config.student.model.type_map
        files = [folder / f"{name}.extxyz" for folder in folders for name in ("train", "validation")]
        return [f.frame for file in files for f in read_found(file, type_map)]

    @property
    def _rcut(self) -> float:
        return self.config.student.model.descriptor.rcut

    def _train(self, record: RoundRecord) -> None:
        """Train on all data so far, if there is anything new and any need."""
        if not record.train or self._converged():
            return
        warm = bool(self.students) and self.config.student.train.warm_start
        starts: list[Path | None] = [*self.students] if warm else [None] * self._n_students
        data = [self.run.round_folder(r.number) / "data" for r in self.records]
        name = f"rounds/{record.number:02d}/train"
        self.students = rounds.train_students(self.run, name, record.number, starts, data)


def _keep_config(config: DistillConfig, directory: Path) -> None:
    """Write distill.yaml as understood. Raises ConfigError where the folder holds another distillation."""
    path = directory / CONFIG
    new = config.model_dump(mode="json")
    if path.exists():
        old = load_yaml(path, DistillConfig).model_dump(mode="json")
        differ = sorted(key for key in new if key not in _FREE and new[key] != old.get(key))
        if differ:
            raise ConfigError(
                f"`{', '.join(differ)}` differ from {path}, with which this folder was begun; expected the same (only "
                f"{', '.join(sorted(_FREE))} may change). Use another folder for another distillation."
            )
    atomic_write(path, dump_yaml(config).encode())
