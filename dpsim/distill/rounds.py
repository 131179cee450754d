"""The pieces of a round: explore, label, select, train. Each is done once, and found done when asked for again.

rounds/NN/explore/<walker>/     frames.extxyz, and md/ with the trajectory
          explore/frames.extxyz all of them
          label/<chunk>/        labelled.extxyz: what the teacher says
          select/               deviations.csv: every frame, its deviation, class, and why it was chosen
          data/                 train.extxyz, validation.extxyz: what the round adds to the student's data
          train/<member>/       the training; model-last.dpsim is the student
          round.json            what became of it
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpsim.calculators.base import Calculator, calculator_of
from dpsim.distill import explore, select
from dpsim.distill.compress import compress
from dpsim.distill.config import Driver, OfflineTeacher
from dpsim.distill.found import Found, read_found, write_found
from dpsim.distill.offline import exchange
from dpsim.distill.run import Run
from dpsim.distill.select import Counts
from dpsim.distill.training import training_config
from dpsim.distill.units import PART, label_unit, train_unit, trained, walk_unit
from dpsim.errors import DpsimError
from dpsim.files import atomic_write
from dpsim.models.checkpoint import load_model, load_trainable, save_model
from dpsim.train.trainer import train
from dpsim.workers import RESULT, Unit

_DRIVER_TOLERANCE, _DRIVER_FRAMES = 1e-4, 4  # eV/A: far below any trust level; frames that this is measured on
_CHUNK = 16  # frames of a unit of labelling, at most


def explore_round(
    run: Run, round_: int, driver: Driver, student: Path | None
) -> tuple[list[Found], list[dict[str, Any]]]:
    """All frames of a round's walkers, and what became of each walker."""
    config, folder = run.config, run.round_folder(round_) / "explore"
    model = None
    if driver == "student" and student is not None:
        model = str(_as_driver(run, student).relative_to(run.folder))
    walkers = explore.walkers_of(config, round_)

    def take() -> dict[str, Any]:
        frames = explore.given_frames(config)
        write_found(folder / explore.FRAMES, frames)
        return {"driver": driver, "walkers": []}

    def make() -> dict[str, Any]:
        units = [
            Unit(
                f"r{round_:02d}/explore/{walker.name}",
                folder / walker.name,
                {"round_": round_, "walker": k, "driver": driver, "model": model},
            )
            for k, walker in enumerate(walkers)
        ]
        records, frames, done = [], list[Found](), 0
        for walker, outcome in zip(walkers, run.units(f"round {round_}: explore", walk_unit, units), strict=True):
            result = outcome.result or {"expected": walker.explore.frames, "frames": 0, "failure": outcome.error}
            records.append({"walker": walker.name, "condition": walker.condition.name, **result})
            if not outcome.failed:
                done += 1
                frames += read_found(outcome.unit.folder / explore.FRAMES, config.student.model.type_map)
        exploded = driver == "student" and done == len(walkers)  # the next round is not the student's
        if not frames and not exploded:
            why = next((r["failure"] for r in records if r["failure"]), "every walker ended before its first frame")
            raise DpsimError(
                f"round {round_} explored nothing: {len(walkers)} walkers, driven by the {driver}, made no frame "
                f"({why}). Check the structures, the time step and the driver; the same command tries again."
            )
        write_found(folder / explore.FRAMES, frames)
        return {"driver": driver, "walkers": records}

    summary = run.once(f"r{round_:02d}/explore", folder / "explore.json", take if driver == "given" else make)
    return read_found(folder / explore.FRAMES, config.student.model.type_map), summary["walkers"]


def _as_driver(run: Run, student: Path) -> Path:
    """The student's file that walkers use: its tables, where it is to be compressed."""
    if run.config.compress is None or not run.config.explore.compressed:
        return student
    folder = student.parent
    path, name = folder / "tables.dpsim", str(folder.relative_to(run.folder))

    def make() -> dict[str, Any]:
        run.display.say(f"{name}: tables")
        frames = [f.frame for f in _some_labelled(run)] or None
        tables, report = compress(load_trainable(student), frames, tolerance=_DRIVER_TOLERANCE)
        save_model(path, tables)
        return report.to_json()

    run.once(f"{name}/tables", folder / "tables.json", make)
    return path


def _some_labelled(run: Run) -> list[Found]:
    """A few labelled frames, those of the latest round that has some."""
    for file in sorted(run.folder.glob("rounds/*/data/train.extxyz"), reverse=True):
        if found := read_found(file, run.config.student.model.type_map):
            return found[:: max(1, len(found) // _DRIVER_FRAMES)][:_DRIVER_FRAMES]
    return []


def label(run: Run, round_: int, frames: Path, n: int) -> tuple[dict[str, Found], dict[str, str]]:
    """The teacher's labels of the n frames of a file, by id, and why others have none. Raises Waiting."""
    folder, type_map = run.round_folder(round_) / "label", run.config.student.model.type_map

    def make() -> dict[str, Any]:
        if isinstance(run.config.teacher, OfflineTeacher):
            labelled, failed = _label_outside(run.config.teacher, folder, read_found(frames, type_map))
        else:
            labelled, failed = _label_here(run, round_, frames, n)
        if n and not labelled:
            raise DpsimError(
                f"the teacher labelled none of {n} frames ({next(iter(failed.values()))}); expected labels of some. "
                f"Look at {folder}; the same command tries again."
            )
        write_found(folder / "labelled.extxyz", labelled)
        return {"asked": n, "labelled": len(labelled), "failed": failed}

    summary = run.once(f"r{round_:02d}/label", folder / "label.json", make)
    return {f.id: f for f in read_found(folder / "labelled.extxyz", type_map)}, summary["failed"]


def _label_outside(teacher: OfflineTeacher, folder: Path, found: Sequence[Found]) -> tuple[list[Found], dict[str, str]]:
    """Frames that somebody labelled, and why others have none. Raises Waiting."""
    results = list(zip(found, exchange(teacher.offline, folder, [f.frame for f in found]), strict=True))
    labelled = [f.labelled(r.frame, r.by) for f, r in results if not r.failure]
    return labelled, {f.id: r.failure for f, r in results if r.failure}


def _label_here(run: Run, round_: int, frames: Path, n: int) -> tuple[list[Found], dict[str, str]]:
    """Frames that the teacher labelled, in units of some frames each, and why others have none."""
    folder, type_map = run.round_folder(round_) / "label", run.config.student.model.type_map
    size = max(1, min(_CHUNK, -(-n // run.config.workers.n_at_once)))
    chunks = [(begin, min(begin + size, n)) for begin in range(0, n, size)]
    path = str(frames.relative_to(run.folder))
    units = [
        Unit(
            f"r{round_:02d}/label/{b:05d}-{e:05d}", folder / f"{b:05d}-{e:05d}", {"frames": path, "begin": b, "end": e}
        )
        for b, e in chunks
    ]
    labelled, failed = list[Found](), dict[str, str]()
    for (b, e), outcome in zip(chunks, run.units(f"round {round_}: label", label_unit, units), strict=True):
        if outcome.failed:  # some may have been labelled before its process died
            part = outcome.unit.folder / PART
            some = read_found(part, type_map) if part.exists() else []
            failed |= {f.id: outcome.error for f in read_found(frames, type_map)[b:e]}
            for f in some:
                del failed[f.id]
            labelled += some
        else:
            failed |= outcome.result["failed"]
            labelled += read_found(outcome.unit.folder / "labelled.extxyz", type_map)
    return labelled, failed


def calculators(paths: Sequence[Path], device: str) -> list[Calculator]:
    """Of the students."""
    return [calculator_of(load_model(path, device=device), device) for path in paths]


@dataclass(frozen=True)
class Judged:
    """Frames of a round, deviations of those judged (eV/A, by id), why the teacher has no label for some, the frames
    chosen with their labels, and how many the teacher was asked for.
    """

    found: Sequence[Found]
    deviations: Mapping[str, float]
    set_aside: Mapping[str, str]
    chosen: Sequence[Found]
    asked: int


def chosen_file(run: Run, round_: int) -> Path:
    """Where the frames chosen in a round are, without labels."""
    return run.round_folder(round_) / "select" / "chosen.extxyz"


def select_once(
    run: Run, round_: int, judge: Callable[[], tuple[dict[str, float], list[Found]]]
) -> tuple[dict[str, float], list[Found]]:
    """Deviations (eV/A, by id) and chosen frames as `judge` gives them, kept."""

    def make() -> dict[str, Any]:
        deviations, chosen = judge()
        write_found(chosen_file(run, round_), chosen)
        return {"deviations": {i: repr(v) for i, v in deviations.items()}}

    kept = run.once(f"r{round_:02d}/select", run.round_folder(round_) / "select" / "select.json", make)
    chosen = read_found(chosen_file(run, round_), run.config.student.model.type_map)
    return {i: float(v) for i, v in kept["deviations"].items()}, chosen


def with_labels(chosen: Sequence[Found], labels: Mapping[str, Found]) -> list[Found]:
    """Those chosen that have labels, with them."""
    return [f.labelled(labels[f.id].frame, labels[f.id].origin.labelled_by) for f in chosen if f.id in labels]


def count(run: Run, judged: Judged, walkers: Sequence[Mapping[str, Any]]) -> dict[str, Counts]:
    """How many frames of each condition are what."""
    names = {f.origin.condition for f in judged.found} | {w["condition"] for w in walkers}
    counts = {name: Counts() for name in sorted(names)}
    for walker in walkers:
        counts[walker["condition"]].missing += walker["expected"] - walker["frames"]
    for found in judged.found:
        own = counts[found.origin.condition]
        if found.id in judged.set_aside:
            own.set_aside += 1
        elif found.id in judged.deviations:
            kind = select.classify(judged.deviations[found.id], run.config.select.trust)
            setattr(own, kind, getattr(own, kind) + 1)
    for found in judged.chosen:
        counts[found.origin.condition].chosen += 1
    return counts


def write_deviations(run: Run, round_: int, judged: Judged) -> None:
    """deviations.csv: every explored frame, what was thought of it, and why."""
    reasons = {f.id: f.origin.reason for f in judged.chosen}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "condition", "walker", "step", "deviation_eV_per_A", "class", "chosen", "reason"])
    for f in judged.found:
        deviation = judged.deviations.get(f.id)
        kind: str = "not judged" if deviation is None else select.classify(deviation, run.config.select.trust)
        kind = "set aside" if f.id in judged.set_aside else kind
        reason = judged.set_aside.get(f.id) or reasons.get(f.id, "")
        shown = "" if deviation is None else repr(deviation)
        o = f.origin
        rows.writerow([f.id, o.condition, o.walker, o.step, shown, kind, int(f.id in reasons), reason])
    atomic_write(run.round_folder(round_) / "select" / "deviations.csv", text.getvalue().encode())


def write_data(run: Run, round_: int, labelled: Sequence[Found]) -> dict[str, int]:
    """Split a round's labelled frames into those to train on and those held out, evenly spread over the round."""
    folder, fraction = run.round_folder(round_) / "data", run.config.student.train.held_out
    held_out = {k for k in range(len(labelled)) if int((k + 1) * fraction) > int(k * fraction)}
    for name, wanted in (("train", False), ("validation", True)):
        write_found(folder / f"{name}.extxyz", (f for k, f in enumerate(labelled) if (k in held_out) is wanted))
    return {"train": len(labelled) - len(held_out), "validation": len(held_out)}


def train_students(
    run: Run, name: str, round_: int, starts: Sequence[Path | None], data: Sequence[Path], final: bool = False
) -> list[Path]:
    """Train every student in the folder `name`: a committee's at the same time, if there are workers for it.

    Returns their files.
    """
    models = []
    folders = [run.folder / name / f"{member:02d}" for member in range(len(starts))]
    if len(starts) > 1 and run.config.workers.n_at_once > 1:
        _train_at_once(run, name, round_, starts, data, final)
    for member, (start, own) in enumerate(zip(starts, folders, strict=True)):

        def make(member: int = member, start: Path | None = start, own: Path = own) -> dict[str, Any]:
            if (own / RESULT).exists():  # trained by a worker
                return json.loads((own / RESULT).read_bytes())["result"]
            config = training_config(run.config, round_, member, start, data, final)
            which = f", student {member + 1} of {len(starts)}" if len(starts) > 1 else ""
            run.display.say(f"{name}{which}: {config.steps} steps")
            return trained(train(config, own, resume=True, reporter=run.display.reporter()))

        done = run.once(f"{name}/{member:02d}", own / "trained.json", make)
        models.append(own / done["model"])
    return models


def _train_at_once(
    run: Run, name: str, round_: int, starts: Sequence[Path | None], data: Sequence[Path], final: bool
) -> None:
    """Train those that are not trained yet on the workers. Raises DpsimError where one of them fails."""

    def relative(path: Path | None) -> str | None:
        return None if path is None else str(path.relative_to(run.folder))

    units = [
        Unit(
            f"{name}/{member:02d}/train",
            run.folder / name / f"{member:02d}",
            {
                "round_": round_,
                "member": member,
                "start": relative(start),
                "data": [relative(folder) for folder in data],
                "final": final,
            },
        )
        for member, start in enumerate(starts)
        if f"{name}/{member:02d}" not in run.ledger
    ]
    for outcome in run.units(name, train_unit, units) if units else ():
        if outcome.failed:
            raise DpsimError(f"{outcome.unit.key}: {outcome.error} See {outcome.unit.folder}.")
