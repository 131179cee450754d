"""After the rounds: a last training, compression, the acceptance test, the model card, the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpsim.analysis.report import Section, write_report, write_results_json
from dpsim.data.frame import Frame
from dpsim.distill import pages, rounds
from dpsim.distill.accept import Acceptance, accept
from dpsim.distill.card import add_card, make_card
from dpsim.distill.compress import compress
from dpsim.distill.config import OfflineTeacher
from dpsim.distill.found import read_found
from dpsim.distill.label import described
from dpsim.distill.run import DistillOutcome, RoundRecord, Run
from dpsim.errors import DpsimError
from dpsim.files import atomic_write
from dpsim.models.checkpoint import load_model, load_trainable, save_model


def finish(run: Run, records: Sequence[RoundRecord], students: Sequence[Path], reason: str) -> DistillOutcome:
    """Make of the last student what is asked for, test it, and report."""
    if not students:
        raise DpsimError(f"there is no student: {reason} before one was trained. Raise that limit.")
    data = [run.round_folder(r.number) / "data" for r in records]
    if run.config.student.train.final_steps is not None:
        name = f"final/{len(records):02d}/train"  # more rounds may follow, in another run
        students = rounds.train_students(run, name, len(records), list(students[:1]), data, final=True)
    origin = _provenance(run, records, reason)
    model = _to_use(run, students[0], data, origin)
    acceptance = _accepted(run, model)
    card = make_card(
        acceptance,
        provenance=load_trainable(students[0]).metadata["provenance"]
        | {"name": run.config.name, "teacher": {"name": origin["teacher"]}},
        purpose=[f"simulations at {c.name}" for c in run.config.explore.conditions],
        rounds=pages.rounds_of_card(run, records),
    )
    add_card(model, card)
    report = _report(run, records, reason, origin, acceptance, card)
    verdict = None if acceptance is None else acceptance.verdict
    message = f"{'' if verdict is None else f'{verdict}: '}{model}; {report}"
    run.display.say(message)
    return DistillOutcome("finished", message, run.folder, model, verdict, report)


def _to_use(run: Run, student: Path, data: Sequence[Path], origin: dict[str, Any]) -> Path:
    """student.dpsim, and <name>.dpsim of it."""
    config, path, small = run.config, run.folder / f"{run.config.name}.dpsim", student.parent / "compressed.dpsim"
    trained = load_trainable(student)
    save_model(run.folder / "student.dpsim", trained, trained.metadata.get("provenance", {}) | {"distillation": origin})

    def tabulate() -> dict[str, Any]:
        assert config.compress is not None  # else nobody calls this
        run.display.say("compressing the student")
        frames = _spread(data, config.student.model.type_map, config.compress.frames)
        made, report = compress(trained, frames or None, **config.compress.model_dump(exclude={"frames"}))
        save_model(small, made)
        return report.to_json()

    if config.compress is None:
        atomic_write(path, (run.folder / "student.dpsim").read_bytes())
    else:
        run.once(f"{student.parent.relative_to(run.folder)}/compressed", student.parent / "compressed.json", tabulate)
        made = load_model(small)
        save_model(path, made, made.metadata["provenance"] | {"distillation": origin})
    return path


def _spread(data: Sequence[Path], type_map: list[str], n: int) -> list[Frame]:
    """At most n labelled frames, evenly spread over the rounds."""
    frames = [f.frame for folder in data for f in read_found(folder / "train.extxyz", type_map)]
    return frames[:: max(1, -(-len(frames) // n))]


def _accepted(run: Run, model: Path) -> Acceptance | None:
    """The acceptance test of the student to use, if one is asked for."""
    config = run.config
    if config.accept is None or isinstance(config.teacher, OfflineTeacher):
        return None
    run.display.say("acceptance test")
    return accept(
        config.accept,
        config.teacher,
        model,
        run.folder / "accept",
        config.explore.structures,
        config.explore.conditions,
        config.workers,
        run.display.say,
    )


def _report(
    run: Run,
    records: Sequence[RoundRecord],
    reason: str,
    origin: dict[str, Any],
    acceptance: Acceptance | None,
    card: dict[str, Any],
) -> Path:
    """report.html and results.json of the whole run."""
    results = [] if acceptance is None else list(acceptance.results)
    shown, facts = pages.origin_for_people(run, origin), pages.facts(run, records)
    title = f"Distillation of {run.config.name}"
    sections = [*pages.rounds_sections(run, records), pages.card_section(card)]
    summary = ""
    if acceptance is None:
        summary = f"The student was not tested (`accept`). The rounds are over: {reason}."
    else:
        text = "The simulations behind the results above, with their figures, are in `accept/report.html`."
        sections.insert(0, Section("The acceptance test", text))
    write_results_json(run.folder / "results.json", results, shown, title=title, summary=reason)
    return write_report(run.folder, title, results, sections, shown, summary=summary, facts=facts)


def _provenance(run: Run, records: Sequence[RoundRecord], reason: str) -> dict[str, Any]:
    """Plain data for model file and report: the teacher, the rounds, how they ended."""
    config = run.config
    return {
        "name": config.name,
        "teacher": described(config.teacher),
        "selector": config.selector,
        "conditions": [c.name for c in config.explore.conditions],
        "trust_eV_per_A": list(config.select.trust),
        "rounds": [r.to_json() for r in records],
        "labels": sum(r.asked for r in records),
        "frames": sum(r.train for r in records),
        "ended": reason,
    }
