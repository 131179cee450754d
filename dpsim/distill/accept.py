"""The acceptance test of a student: is it as good as its teacher at what it is for?

Fresh dynamics of both, from the same structures at the same conditions; then everything a user of the model would
notice, each number with an error bar and a threshold (dpsim/distill/accept_judge.py), and one verdict:

    PASS       every criterion is met with its whole confidence interval
    FAIL       at least one is surely not
    UNDECIDED  none surely fails, but the statistics do not suffice; the report says how much more would decide

`accept` works alone and at the end of a distillation. The same call continues after a kill, and with a longer
`duration` continues what was simulated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dpsim.analysis.report import Result, Section, Verdict, overall_verdict, write_report, write_results_json
from dpsim.config import dump_yaml, load_yaml
from dpsim.data.readers import open_dataset
from dpsim.distill.accept_config import AcceptConfig, Condition
from dpsim.distill.accept_judge import judge_data, judge_group
from dpsim.distill.accept_work import Contender, Group, Work, groups_of
from dpsim.distill.config import PythonTeacher
from dpsim.distill.cost import Cost, cost_section, measure_costs
from dpsim.engines.base import Engine
from dpsim.engines.registry import make_engine
from dpsim.errors import ConfigError
from dpsim.files import atomic_write
from dpsim.protocols.provenance import hardware, version
from dpsim.protocols.rundir import locked
from dpsim.protocols.schema import Structure
from dpsim.protocols.structures import load_structure
from dpsim.workers import WorkersConfig

__all__ = ["AcceptConfig", "Acceptance", "accept", "accept_file"]

ACCEPTANCE = "acceptance.json"


@dataclass(frozen=True)
class Acceptance:
    """What came out. costs: of teacher and student, where they were measured."""

    verdict: Verdict
    results: tuple[Result, ...]
    report: Path
    directory: Path
    teacher: Contender
    student: Contender
    conditions: tuple[str, ...]
    costs: dict[str, Cost]

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the model card and acceptance.json."""
        return {
            "verdict": self.verdict,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "teacher": {"name": self.teacher.name, "identity": self.teacher.identity},
            "student": {"name": self.student.name, "identity": self.student.identity},
            "conditions": list(self.conditions),
            "criteria": [asdict(replace(r, value=_finite(r.value), error=_finite(r.error))) for r in self.results],
            "costs": {role: asdict(cost) for role, cost in self.costs.items()},
        }


def accept(
    config: AcceptConfig,
    teacher: str | Path | PythonTeacher,
    student: str | Path | PythonTeacher,
    directory: Path,
    structures: Sequence[Structure] = (),
    conditions: Sequence[Condition] = (),
    workers: WorkersConfig | None = None,
    say: Callable[[str], None] = print,
) -> Acceptance:
    """Test a student against its teacher; write acceptance.json, results.json and report.html.

    Args:
        config: what to simulate and the thresholds.
        teacher: a model (file, file:head, bundled name) or an ASE calculator by its Python path.
        student: a model; or a calculator, as the teacher.
        directory: where everything is written; the same one continues.
        structures, conditions: used where `config` names none.
        workers: who simulates; default: this process.
        say: is told of every simulation that ends.

    Raises:
        ConfigError: nothing to simulate, a structure that the engine or a model cannot have, a folder of another test;
        DpsimError: a unit of work that failed for a reason outside of the models.
    """
    contenders = (Contender.of("teacher", teacher), Contender.of("student", student))
    config = config.model_copy(
        update={"structures": config.structures or (*structures,), "conditions": config.conditions or (*conditions,)}
    )
    groups = check_accept(config)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        atomic_write(directory / "accept.yaml", dump_yaml(config).encode())
        return _test(Work(config, contenders, groups, directory, workers, say))


def accept_file(
    student: str,
    teacher: str,
    path: Path,
    directory: Path,
    write_card: bool = True,
    say: Callable[[str], None] = print,
) -> Acceptance:
    """`dpsim accept`: read the YAML, test, and write the model card into the student's file. See `accept`.

    Args: teacher: a model, or "package.module:factory" of an ASE calculator.
    """
    from dpsim.distill.card import add_card, make_card
    from dpsim.models.checkpoint import split_head

    is_python = ":" in teacher and split_head(teacher)[1] is None
    source: str | PythonTeacher = PythonTeacher(python=teacher) if is_python else teacher
    acceptance = accept(load_yaml(path, AcceptConfig), source, student, directory, say=say)
    if write_card and Path(student).suffix == ".dpsim" and Path(student).is_file():
        add_card(student, make_card(acceptance))
        say(f"the model card in {student} was written: `dpsim show {student}`")
    return acceptance


def check_accept(config: AcceptConfig) -> list[Group]:
    """What will be simulated. Raises DpsimError where it cannot be, or labelled data or the baseline are missing."""
    groups = groups_of(config.structures or (), config.conditions or ())
    if not groups:
        raise ConfigError(
            "`structures` or `conditions` of the acceptance test are missing; expected at least one of each. Add them."
        )
    engine = make_engine(config.engine)
    for group in groups:
        _check(group, config, engine)
    for path in config.data:
        open_dataset(path)
    if config.baseline is not None:
        Contender.of("baseline", config.baseline)  # now, not after hours of dynamics
    return groups


def _test(work: Work) -> Acceptance:
    """Simulate, compare, judge, write."""
    simulations = work.simulations()
    comparisons = work.comparisons(simulations)
    labelled = work.labelled()
    costs = measure_costs(work) if work.config.cost else {}

    work.say("judging")
    judged = [judge_group(group, work, simulations, comparisons) for group in work.groups]
    of_data, data_section = judge_data(work, labelled)
    results = [result for found, _ in judged for result in found] + of_data
    sections = [section for _, section in judged]
    sections += [s for s in (data_section, cost_section(costs)) if s is not None]
    return _write(work, results, sections, costs)


def _check(group: Group, config: AcceptConfig, engine: Engine) -> None:
    """Raise ConfigError where a structure cannot be simulated as asked for."""
    from dpsim.engines.ase_engine import state_from_atoms

    state = state_from_atoms(load_structure(group.structure, config.seed))
    try:
        engine.require(config.stage(group.condition), state)
    except ConfigError as error:
        raise ConfigError(f"{group.label}: {error}") from error


def _write(work: Work, results: list[Result], sections: list[Section], costs: dict[str, Cost]) -> Acceptance:
    """The files of a finished test."""
    teacher, student = work.contenders
    config, directory = work.config, work.directory
    title = f"Acceptance of {student.name}"
    provenance = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "dpsim": version("dpsim"),
        "student": {"name": student.name, "identity": student.identity},
        "teacher": {"name": teacher.name, "identity": teacher.identity},
        "simulations": {
            "engine": config.engine,
            "runs": f"{config.runs} of each model, structure and condition",
            "length": f"{1e-3 * config.duration:g} ps each, after {1e-3 * config.equilibration:g} ps left out",
            "time step": f"{config.timestep:g} fs",
            "seed": config.seed,
        },
        "hardware": hardware(config.device),
    }
    facts = {"teacher": teacher.name, "conditions": str(len(work.groups)), "simulations": str(2 * config.runs)}
    if len(costs) == 2:
        facts["speed-up"] = f"{costs['teacher'].seconds / costs['student'].seconds:.3g}"
    write_results_json(directory / "results.json", results, provenance, title=title)
    report = write_report(directory, title, results, sections, provenance, facts=facts)
    acceptance = Acceptance(
        verdict=overall_verdict(results),
        results=tuple(results),
        report=report,
        directory=directory,
        teacher=teacher,
        student=student,
        conditions=tuple(group.label for group in work.groups),
        costs=costs,
    )
    text = json.dumps(acceptance.to_json(), indent=1, allow_nan=False)
    atomic_write(directory / ACCEPTANCE, f"{text}\n".encode())
    work.say(f"{acceptance.verdict}: {report}")
    return acceptance


def _finite(value: float | None) -> float | None:
    """The number as JSON has it."""
    return None if value is None or not math.isfinite(value) else float(value)
