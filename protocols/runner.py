"""Runs a protocol: check everything, simulate the stages, analyse, report. The same call continues after a kill.

The run's directory holds protocol.yaml (as understood, defaults written out), stages/NN_<name>/, reruns/ (short runs
made by analyses), results.json, report.html, figures/.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpsim.analysis.report import Result
from dpsim.config import dump_yaml
from dpsim.engines.base import Engine, Progress, RunControl, StageFailed, StageResult, StageSettings, State
from dpsim.engines.output import RESTART, load_checkpoint, require_same_settings, stage_settings
from dpsim.errors import ConfigError, DataError
from dpsim.files import atomic_write
from dpsim.protocols.analyses import Analysis, NveCheck
from dpsim.protocols.analysis_table import check_analysis, run_analysis
from dpsim.protocols.context import AnalysisOutput, CalculatorFor, Precision, RunContext, StageRecord, Stopped
from dpsim.protocols.deviation import deviation_output, make_committee, observer_of
from dpsim.protocols.plan import Plan, measure, plan_stages
from dpsim.protocols.progress import ProgressDisplay
from dpsim.protocols.provenance import model_file, provenance
from dpsim.protocols.rundir import PROTOCOL, RunOutcome, conclude_run, locked, stopped_outcome
from dpsim.protocols.schema import Protocol, ProtocolHead
from dpsim.protocols.summary import run_facts, run_sections
from dpsim.signals import stop_on_signals


@dataclass(frozen=True)
class Checked:
    """A protocol found fit to run. committee: the calculator of the models whose deviation is logged, or None."""

    protocol: Protocol
    engine: Engine
    calculator: Any
    committee: Any
    state: State
    stages: dict[str, StageSettings]
    identity: dict[str, Any]


def default_calculator(protocol: ProtocolHead, precision: Precision | None) -> Any:
    """The one place where a protocol's model becomes a calculator: ASE's, as every engine wants it."""
    from dpsim.calculators.committee import ase_calculator
    from dpsim.calculators.selection import without_parameters

    precision = precision or protocol.precision
    calculator = ase_calculator(protocol.models, precision=precision, device=protocol.device, fparam=protocol.fparam)
    for model in calculator.models:
        without_parameters(model, "the protocol", ["fparam"] if protocol.fparam is not None else [])
    return calculator


def run_protocol(
    protocol: Protocol,
    directory: Path,
    calculator_for: CalculatorFor = default_calculator,
    display: ProgressDisplay | None = None,
) -> RunOutcome:
    """Run, or continue, a protocol.

    Args:
        protocol: what to do.
        directory: where everything is written.
        calculator_for: makes the calculator, also at other precisions for diagnoses.
        display: where progress is shown.

    Returns:
        RunOutcome.

    Raises:
        DpsimError: anything wrong with protocol, structure or model, before a step is made.
    """
    checked = check_protocol(protocol, calculator_for)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory), stop_on_signals() as should_stop, display or ProgressDisplay() as shown:
        require_continuable(checked, directory)
        folders = stage_directories(protocol, directory)
        atomic_write(directory / PROTOCOL, dump_yaml(protocol).encode())
        control = RunControl(
            seed=protocol.seed,
            name="",
            monitor=shown.show,
            should_stop=should_stop,
            checkpoint_seconds=protocol.checkpoint_seconds,
            identity=checked.identity,
        )
        try:
            stages = run_stages(checked, folders, control, shown)
            context = RunContext(
                directory, stages, protocol, checked.engine, checked.calculator, calculator_for, control, shown.say
            )
            return _analyse(context, should_stop)
        except Stopped:
            return stopped_outcome(directory, shown.say)


def check_protocol(protocol: Protocol, calculator_for: CalculatorFor = default_calculator) -> Checked:
    """Read the structure, load the model, evaluate it once, and ask the engine about every stage.

    Raises: DpsimError naming what does not fit.
    """
    from dpsim.engines.ase_engine import atoms_from_state, state_from_atoms
    from dpsim.engines.registry import make_engine
    from dpsim.protocols.structures import load_structure

    atoms = load_structure(protocol.structure, protocol.seed)
    state = state_from_atoms(atoms)
    calculator = calculator_for(protocol, None)
    committee = make_committee(protocol)
    engine = make_engine(protocol.engine, protocol.ranks)
    engine.require_calculator(calculator)
    stages = dict(zip(protocol.stage_names(), (s.settings() for s in protocol.stages), strict=True))
    for name, stage in stages.items():
        try:
            engine.require(stage, state)
        except ConfigError as error:
            raise ConfigError(f"stage {name}: {error}") from error
    _require_stress(stages, calculator)
    _require_velocities(stages, state)
    for analysis in protocol.analyses:
        check_analysis(analysis, protocol, atoms)
    trial = atoms_from_state(state)
    for calc in (calculator, committee) if committee else (calculator,):
        trial.calc = calc
        forces = trial.get_forces()  # refuses unknown elements by name
        if not np.isfinite(forces).all():
            atom = int(np.argmax(~np.isfinite(forces).all(axis=1)))
            raise ConfigError(f"the model's force on atom {atom} of the structure is {forces[atom]}; expected numbers.")
    return Checked(protocol, engine, calculator, committee, state, stages, _identity(protocol, state))


def plan_protocol(protocol: Protocol, calculator_for: CalculatorFor = default_calculator) -> Plan:
    """The stages, and how long they will take. Raises DpsimError as `check_protocol`."""
    checked = check_protocol(protocol, calculator_for)
    notes = [f"{protocol.engine}, {', '.join(Path(name).name for name in protocol.models)}"]
    if extra := [analysis.type for analysis in protocol.analyses]:
        notes.append(f"not counted: the analyses {', '.join(extra)}")
    return Plan(protocol.name, plan_stages(checked.stages, checked.state.n_atoms, time_of_step(checked)), notes=notes)


def time_of_step(checked: Checked) -> float | None:
    """Wall time of a step, s, measured; None where none can be made from this structure."""
    return measure(checked.engine, checked.state, checked.calculator, checked.stages)


def _require_stress(stages: Mapping[str, StageSettings], calculator: Any) -> None:
    if any(s.kind == "npt" for s in stages.values()) and "stress" not in calculator.implemented_properties:
        raise ConfigError("the calculator gives no stress; expected one for npt stages. Use nvt, or another model.")


def _require_velocities(stages: Mapping[str, StageSettings], state: State) -> None:
    """Newton's dynamics at constant energy needs velocities from somewhere."""
    moving = bool(state.momenta.any())
    for name, stage in stages.items():
        if stage.kind == "nve" and not moving and stage.initial_temperature_K is None:
            raise ConfigError(
                f"stage {name} is nve, but the atoms have no velocities; expected a temperature before it. "
                'Add `initial_temperature: "300 K"` to it, or an nvt stage before it.'
            )
        moving = stage.kind != "minimise"


def _identity(protocol: Protocol, state: State) -> dict[str, Any]:
    """What, besides a stage's own settings, must be unchanged to continue it."""
    digest = hashlib.sha256()
    for name in ("numbers", "masses", "positions", "momenta", "cell", "pbc"):
        digest.update(np.ascontiguousarray(getattr(state, name)).tobytes())
    watched = protocol.deviation
    return {
        "engine": protocol.engine,
        "precision": protocol.precision,
        "model": ", ".join(map(_model_identity, protocol.models)),
        "structure": digest.hexdigest()[:16],
        **({} if protocol.ranks == 1 else {"ranks": protocol.ranks}),
        **({} if protocol.fparam is None else {"fparam": list(protocol.fparam)}),
        **({} if watched is None else {"deviation": watched.model_dump(mode="json", exclude={"models"})}),
        **({} if watched is None else {"deviation_models": ", ".join(map(_model_identity, watched.models))}),
    }


def _model_identity(name: str) -> str:
    model = model_file(name)
    return ":".join(model[k] for k in ("sha256", "head") if k in model) if model else name


def stage_directories(protocol: Protocol, directory: Path) -> dict[str, Path]:
    """The folder of each stage in the folder of a run."""
    return {name: directory / "stages" / f"{k:02d}_{name}" for k, name in enumerate(protocol.stage_names(), start=1)}


def stage_records(protocol: Protocol, directory: Path) -> dict[str, StageRecord]:
    """The stages of a run that has finished, as its checkpoints have them; those that were not begun are left out."""
    folders = stage_directories(protocol, directory)
    stages = dict(zip(folders, (stage.settings() for stage in protocol.stages), strict=True))
    return {
        name: StageRecord(name, folder, stages[name], _last_result(folder))
        for name, folder in folders.items()
        if (folder / RESTART).exists()
    }


def _stage_identity(checked: Checked, name: str) -> dict[str, Any]:
    """The identity of a stage: that of the run, and what came before it."""
    before = []
    for other, stage in checked.stages.items():
        if other == name:
            break
        before.append(f"{other} ({stage.n_steps} steps)")
    return checked.identity | {"earlier_stages": ", ".join(before)}


def require_continuable(checked: Checked, directory: Path) -> None:
    """Refuse to mix settings, before anything is run. Raises ConfigError."""
    folders = stage_directories(checked.protocol, directory)
    for name, stage in checked.stages.items():
        saved = load_checkpoint(folders[name] / RESTART)
        if saved is not None:
            control = RunControl(checked.protocol.seed, name, identity=_stage_identity(checked, name))
            require_same_settings(folders[name], saved.settings, stage_settings(stage, control), saved.step)


def run_stages(
    checked: Checked, folders: Mapping[str, Path], control: RunControl, display: ProgressDisplay
) -> dict[str, StageRecord]:
    """Run every stage to its total. Raises Stopped after a request to stop."""
    state = checked.state
    records: dict[str, StageRecord] = {}
    for name, stage in checked.stages.items():
        observers = observer_of(checked.protocol, checked.committee, name, stage)
        left = sum(later.n_steps for later in [*checked.stages.values()][len(records) + 1 :])
        own = replace(
            control,
            name=name,
            identity=_stage_identity(checked, name),
            observers=observers,
            monitor=_of_the_run(control.monitor, left),
        )
        try:
            result = checked.engine.run_stage(state, checked.calculator, stage, folders[name], own)
        except StageFailed as failure:
            display.say(str(failure))
            reached = _last_result(folders[name], StageResult(state, 0, False, 0.0, 0.0))
            records[name] = StageRecord(name, folders[name], stage, reached, failure)
            return records  # a failure is a result; what would follow is not simulated
        if not result.finished:
            raise Stopped
        records[name] = StageRecord(name, folders[name], stage, result)
        if result.ended_early:
            display.say(f"stage {name} was ended: {result.ended_early}")
            return records  # its atoms are where the model is not to be trusted: what would follow is not simulated
        state = result.state
    return records


def _of_the_run(monitor: Callable[[Progress], None], steps_left: int) -> Callable[[Progress], None]:
    """A stage's monitor that counts the stages after it to the time left."""
    return lambda p: monitor(replace(p, seconds_left=p.seconds_left + steps_left * p.seconds_per_step))


def _judges(analysis: Analysis, protocol: Protocol, name: str) -> bool:
    """Whether the analysis is the NVE check of this stage, which judges also one that failed."""
    last = [n for n, stage in zip(protocol.stage_names(), protocol.stages, strict=True) if stage.type == "nve"][-1:]
    return isinstance(analysis, NveCheck) and name in ([analysis.stage] if analysis.stage else last)


def _last_result(folder: Path, otherwise: StageResult | None = None) -> StageResult:
    """What the last checkpoint of a stage holds; `otherwise` where there is none."""
    saved = load_checkpoint(folder / RESTART)
    if saved is None and otherwise is not None:
        return otherwise
    if saved is None:
        raise DataError(f"`{folder / RESTART}` is missing; expected the checkpoint of a stage. Run the protocol anew.")
    return StageResult(saved.state, saved.step, saved.finished, saved.wall_seconds, 0.0, saved.ended_early)


def _analyse(context: RunContext, should_stop: Callable[[], bool]) -> RunOutcome:
    """Run the analyses, write results.json and report.html."""
    protocol, directory = context.protocol, context.directory
    total = AnalysisOutput()
    broken = next((stage for stage in context.stages.values() if stage.failure), None)
    judged = broken is not None and any(_judges(a, protocol, broken.name) for a in protocol.analyses)
    if broken is not None and not judged:
        total.results.append(failure_of(broken))
    for analysis in protocol.analyses:
        if should_stop():
            raise Stopped
        failed = _failed_stage(analysis, context)
        if failed is not None:
            total.warnings.append(f"{analysis.type} was left out: {failed}")
            continue
        context.say(f"analysing: {analysis.type}")
        output = run_analysis(analysis, context)
        total.results.extend(output.results)
        total.sections.extend(output.sections)
        total.warnings.extend(text for text in output.warnings if text not in total.warnings)
        total.curves.extend(output.curves)
    if ended := next((s for s in context.stages.values() if s.result.ended_early), None):
        total.warnings.append(
            f"Stage {ended.name} was ended: {ended.result.ended_early}. What follows is not simulated."
        )
    watched = deviation_output(context)
    total.results.extend(watched.results)
    total.sections.extend(watched.sections)
    total.sections.extend(run_sections(context))
    outcome = conclude_run(directory, protocol.name, total, provenance(context), run_facts(context), context.say)
    return outcome if judged or broken is None else replace(outcome, failure=str(broken.failure))


def failure_of(stage: StageRecord) -> Result:
    """A stage that failed: FAIL, with when and where."""
    assert stage.failure is not None
    label, expected = f"Stage {stage.name}: failed after", str(stage.settings.n_steps)
    return Result(
        f"{stage.name}.failure", label, stage.failure.step, None, "steps", expected, "FAIL", f"The {stage.failure}"
    )


def _failed_stage(analysis: Analysis, context: RunContext) -> str | None:
    """Why an analysis cannot be made: a stage that failed or was ended. The NVE check judges failed ones itself."""
    for stage in context.stages.values():
        if stage.result.ended_early:
            return f"stage {stage.name} was ended before its last step ({stage.result.ended_early})."
    failed = next((stage for stage in context.stages.values() if stage.failure), None)
    if failed is None or _judges(analysis, context.protocol, failed.name):
        return None
    return f"stage {failed.name} failed."
