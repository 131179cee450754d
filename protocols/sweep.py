"""A sweep: a protocol made of ordinary runs, its points, that differ in temperature, pressure, replica, model ...

A subclass of `Sweep` says what the points are and what follows from them:

    points() -> [Point, ...]               each a `Protocol` of molecular dynamics; make them with `self.md`
    conclude(points) -> AnalysisOutput     the numbers, figures and warnings, from the points that have finished

Each point is a unit of work (dpsim/workers.py) in `points/<key>/`, an ordinary run folder with a report of its own. It
has a seed of its own, derived from the sweep's and its key. A point that fails does not stop the others; the same
command runs only what is missing, and continues what was begun.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from dpsim.analysis.report import Curve, Result, Section, Table, overall_verdict, read_results_json
from dpsim.config import StrictModel, dump_yaml, validate
from dpsim.errors import ConfigError, SimulationError
from dpsim.files import atomic_write
from dpsim.protocols.context import AnalysisOutput, CalculatorFor, StageRecord
from dpsim.protocols.plan import Plan, plan_stages, together
from dpsim.protocols.progress import ProgressDisplay, ProgressFile, watching
from dpsim.protocols.provenance import origin_of
from dpsim.protocols.rundir import PROTOCOL, RESULTS, RunOutcome, conclude_run, locked, stopped_outcome
from dpsim.protocols.runner import Checked, default_calculator, require_continuable, stage_records, time_of_step
from dpsim.protocols.runner import check_protocol as check_run
from dpsim.protocols.runner import run_protocol as run_one
from dpsim.protocols.schema import Protocol, ProtocolHead
from dpsim.protocols.summary import structure_section
from dpsim.signals import interrupted_by_signals
from dpsim.workers import Outcome, Unit, WorkersConfig, forget_other, run_units

POINTS = "points"


@dataclass(frozen=True)
class Point:
    """One run of a sweep. labels: what distinguishes it, plain data, e.g. {"temperature_K": 300.0, "replica": 1}."""

    key: str
    protocol: Protocol
    labels: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FinishedPoint:
    """A point whose run is done: its folder, what its results.json says, numbers by name, and its stages."""

    point: Point
    directory: Path
    results: Mapping[str, Result]
    stages: Mapping[str, StageRecord]
    curves: Sequence[Curve] = ()
    warnings: Sequence[str] = ()

    @property
    def key(self) -> str:
        return self.point.key

    @property
    def labels(self) -> Mapping[str, Any]:
        return self.point.labels


class Sweep(ProtocolHead, ABC):
    """What every sweep has besides. points_judge: whether what the points judge counts for the sweep."""

    points_judge: ClassVar[bool] = True
    workers: WorkersConfig = Field(WorkersConfig(), description="who works on the points: docs/workers.md")

    @abstractmethod
    def points(self) -> list[Point]:
        """The runs. Raises ConfigError."""

    @abstractmethod
    def conclude(self, points: Sequence[FinishedPoint], figures: Path) -> AnalysisOutput:
        """What follows from the points that have finished, at least one, in the order of `points()`.

        Args: figures: the folder for figures.
        """

    def md(self, key: str, stages: Sequence[Any], analyses: Sequence[Any] = (), **changes: Any) -> Protocol:
        """Molecular dynamics with this sweep's model, structure and engine, and a seed of its own.

        Args:
            key: of the point: letters, digits, `_`, `.`, `-`.
            stages, analyses: configurations, or plain data as in YAML.
            changes: other keys, as in YAML, e.g. model="other.dpsim".
        """
        head = self.model_dump(mode="json", include=set(ProtocolHead.model_fields))
        own = {
            "name": key,
            "seed": derived_seed(self.seed, key),
            "stages": _plain(stages),
            "analyses": _plain(analyses),
        }
        return validate(head | own | changes, Protocol)


def derived_seed(seed: int, key: str) -> int:
    """A seed for one point: the first 31 bits of the SHA-256 of both."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:4]) >> 1


# ---- the three functions of a protocol's module --------------------------------------------------------------------


def run_protocol(
    sweep: Sweep,
    directory: Path,
    calculator_for: CalculatorFor = default_calculator,
    display: ProgressDisplay | None = None,
) -> RunOutcome:
    """Run, or continue, a sweep: arguments and errors as of the runner of one run.

    calculator_for: a function of a module, which the workers' processes import.
    """
    checked = check_protocol(sweep, calculator_for)
    directory.mkdir(parents=True, exist_ok=True)
    units = [_unit(one, directory, calculator_for) for one in checked]
    folders = {one.point.key: unit.folder for one, unit in zip(checked, units, strict=True)}
    shown = display or ProgressDisplay()
    try:
        with locked(directory), interrupted_by_signals(), shown:
            for one, unit in zip(checked, units, strict=True):
                require_continuable(one.run, unit.folder)
                forget_other(unit)
            atomic_write(directory / PROTOCOL, dump_yaml(sweep).encode())
            with watching(folders, shown):
                outcomes = _work_on(units, sweep.workers, shown)
            shown.say("concluding")
            return _conclude(sweep, [one.point for one in checked], outcomes, directory, shown)
    except KeyboardInterrupt:
        return stopped_outcome(directory, shown.say)


@dataclass(frozen=True)
class CheckedPoint:
    """A point found fit to run."""

    point: Point
    run: Checked


def check_protocol(sweep: Sweep, calculator_for: CalculatorFor = default_calculator) -> list[CheckedPoint]:
    """The points, each of which could be run by itself. Raises DpsimError naming the one that could not."""
    points = sweep.points()
    keys = [point.key for point in points]
    if not points or len(set(keys)) < len(keys):
        raise ConfigError(
            f"the points of `{sweep.name}` are {keys}; expected at least one, each once. Change the list."
        )
    made: dict[str, Any] = {}

    def shared(protocol: ProtocolHead, precision: Any) -> Any:
        """Points with the same model share its calculator."""
        key = repr((protocol.models, precision or protocol.precision, protocol.device, protocol.fparam))
        if key not in made:
            made[key] = calculator_for(protocol, precision)
        return made[key]

    checked = []
    for point in points:
        try:
            checked.append(CheckedPoint(point, check_run(point.protocol, shared)))
        except ConfigError as error:
            raise ConfigError(f"point {point.key}: {error}") from error
    return checked


def plan_protocol(sweep: Sweep, calculator_for: CalculatorFor = default_calculator) -> Plan:
    """The points, and how long they will take; the speed is measured once for each kind of point."""
    speeds: dict[str, float | None] = {}
    steps = []
    for one in check_protocol(sweep, calculator_for):
        run, protocol = one.run, one.point.protocol
        kind = repr((run.state.n_atoms, protocol.models, protocol.engine, protocol.precision, protocol.device))
        if kind not in speeds:
            speeds[kind] = time_of_step(run)
        parts = plan_stages(run.stages, run.state.n_atoms, speeds[kind])
        steps.append(together(one.point.key, parts))
    return Plan(sweep.name, steps, sweep.workers.n_at_once)


# ---- the points as units of work -----------------------------------------------------------------------------------


def run_point(folder: Path, *, protocol: dict[str, Any], calculator: str) -> dict[str, Any]:
    """A unit of work: run, or continue, the protocol of a point in its folder."""
    module, _, name = calculator.partition(":")
    calculator_for: CalculatorFor = getattr(import_module(module), name)
    outcome = run_one(validate(protocol, Protocol), folder, calculator_for, ProgressFile(folder))
    if outcome.stopped:  # in this process, by Ctrl-C: the sweep is to stop too
        raise KeyboardInterrupt
    if outcome.failure:  # its report says more
        raise SimulationError(outcome.failure)
    return {"verdict": outcome.verdict}


def _unit(one: CheckedPoint, directory: Path, calculator_for: CalculatorFor) -> Unit:
    """The unit of a point. Its key says what is computed: where that changes, an earlier result does not count."""
    plain = one.point.protocol.model_dump(mode="json")
    what = json.dumps([{k: v for k, v in plain.items() if k != "checkpoint_seconds"}, one.run.identity], sort_keys=True)
    key = f"{one.point.key} {hashlib.sha256(what.encode()).hexdigest()[:12]}"
    name = f"{calculator_for.__module__}:{calculator_for.__qualname__}"
    return Unit(key, directory / POINTS / one.point.key, {"protocol": plain, "calculator": name})


def _work_on(units: Sequence[Unit], workers: WorkersConfig, display: ProgressDisplay) -> dict[str, Outcome]:
    """The outcome of every point, by its key."""
    outcomes = {}
    for count, outcome in enumerate(run_units(run_point, units, workers), start=1):
        key = outcome.unit.folder.name
        outcomes[key] = outcome
        if not outcome.reused:
            what = f"failed: {outcome.error}" if outcome.failed else "done"
            display.say(f"{count}/{len(units)} {key} {what}")
    return outcomes


def _conclude(
    sweep: Sweep, points: Sequence[Point], outcomes: Mapping[str, Outcome], directory: Path, display: ProgressDisplay
) -> RunOutcome:
    """results.json and report.html of the sweep, of the points that have finished."""
    finished = [_finished(point, directory / POINTS / point.key) for point in points if not outcomes[point.key].failed]
    failed = {point.key: outcomes[point.key].error for point in points if outcomes[point.key].failed}
    output = sweep.conclude(finished, directory / "figures") if finished else AnalysisOutput()
    if sweep.points_judge:
        output.results.extend(_judged_at(finished))
    if failed:
        output.results.append(_missing(failed, len(points)))
        output.warnings.extend(f"Point {key} failed: {error}" for key, error in failed.items())
    output.sections.append(_points_section(points, finished, failed))
    if finished and (atoms := structure_section(finished[-1].stages, f"Point {finished[-1].key}: ")) is not None:
        output.sections.append(atoms)
    speed = {one.key: _speed(one) for one in finished}
    facts = {"points": f"{len(finished)} of {len(points)}", **_totals(finished)}
    return conclude_run(directory, sweep.name, output, origin_of(sweep, speed), facts, display.say)


def _finished(point: Point, folder: Path) -> FinishedPoint:
    said = read_results_json(folder / RESULTS)
    results = {result.name: result for result in said["results"]}
    stages = stage_records(point.protocol, folder)
    return FinishedPoint(point, folder, results, stages, said["curves"], said["warnings"])


def _judged_at(finished: Sequence[FinishedPoint]) -> list[Result]:
    """What the points' own analyses judged: `<key>.<name>`."""
    return [
        replace(result, name=f"{one.key}.{result.name}", label=f"{one.key}: {result.label}")
        for one in finished
        for result in one.results.values()
        if result.verdict != "INFO"
    ]


def _missing(failed: Mapping[str, str], total: int) -> Result:
    text = f"Failed: {', '.join(failed)}. The same command runs these again, and only these."
    return Result("points", "Points that finished", total - len(failed), None, "", str(total), "UNDECIDED", text)


def _points_section(points: Sequence[Point], finished: Sequence[FinishedPoint], failed: Mapping[str, str]) -> Section:
    """A line for each point."""
    done = {one.key: one for one in finished}
    rows: list[Sequence[str | float | int | None]] = []
    for point in points:
        one = done.get(point.key)
        state = "failed" if one is None else overall_verdict(one.results.values())
        rows.append((point.key, *point.labels.values(), state, None if one is None else _speed(one)))
    header = ("point", *(name.replace("_", " ") for name in points[0].labels), "verdict", "work")
    text = f"Each point is a run of its own, with its own report: `{POINTS}/<point>/report.html`."
    return Section("Points", text, table=Table(header, rows))


def _speed(one: FinishedPoint) -> str:
    steps = sum(stage.result.step for stage in one.stages.values())
    return f"{steps} steps, {sum(stage.result.wall_seconds for stage in one.stages.values()):.1f} s"


def _totals(finished: Sequence[FinishedPoint]) -> dict[str, str]:
    """Key figures: atoms, time simulated, wall time of all points together."""
    if not finished:
        return {}
    stages = [stage for one in finished for stage in one.stages.values()]
    simulated = sum(stage.result.step * stage.settings.timestep_fs for stage in stages) * 1e-3
    return {
        "atoms": str(stages[0].result.state.n_atoms),
        "simulated": f"{simulated:g} ps",
        "wall time of all points": f"{sum(stage.result.wall_seconds for stage in stages):.0f} s",
    }


def _plain(parts: Sequence[Any]) -> list[Any]:
    """Configurations as the plain data that a YAML file would hold."""
    return [part.model_dump(mode="json") if isinstance(part, StrictModel) else part for part in parts]
