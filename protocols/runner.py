"""Runs a protocol: check everything, simulate the stages, analyse, report. The same call continues after a kill.

The run's directory holds protocol.yaml (as understood, defaults written out), stages/NN_<name>/, reruns/ (short runs
made by analyses), results.json, report.html, figures/.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from dpsim.analysis.report import Verdict, overall_verdict, write_report, write_results_json
from dpsim.config import dump_yaml
from dpsim.engines.base import Engine, RunControl, StageResult, StageSettings, State
from dpsim.engines.output import RESTART, load_checkpoint, require_same_settings, stage_settings
from dpsim.errors import ConfigError, DataError, DpsimError, SimulationError
from dpsim.protocols.context import AnalysisOutput, CalculatorFor, Precision, RunContext, StageRecord, Stopped
from dpsim.protocols.progress import ProgressDisplay
from dpsim.protocols.provenance import model_file, provenance
from dpsim.protocols.schema import Analysis, NveCheck, Protocol, RdfAnalysis, load_protocol
from dpsim.protocols.summary import run_facts, stage_section


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended. `stopped`: by request, everything saved; then there is no report yet and `verdict` is None."""

    directory: Path
    verdict: Verdict | None
    report: Path | None
    results: Path | None
    stopped: bool
    message: str


@dataclass(frozen=True)
class Checked:
    """A protocol found fit to run."""

    protocol: Protocol
    engine: Engine
    calculator: Any
    state: State
    stages: dict[str, StageSettings]
    identity: dict[str, Any]


def default_calculator(protocol: Protocol, precision: Precision | None) -> Any:
    """The one place where a protocol's model becomes a calculator: ASE's, as every engine wants it."""
    from dpsim.calculators.ase_calculator import DPCalculator
    from dpsim.calculators.selection import without_parameters

    precision = precision or protocol.precision
    calculator = DPCalculator(protocol.model, precision=precision, device=protocol.device, fparam=protocol.fparam)
    without_parameters(calculator.model, "the protocol", ["fparam"] if protocol.fparam is not None else [])
    return calculator


def run_file(path: str | Path, output: str | Path | None = None) -> RunOutcome:
    """Run the protocol of a YAML file in the directory `output` (default: the protocol's name, where you are)."""
    protocol = load_protocol(path)
    return run_protocol(protocol, Path(output) if output is not None else Path(protocol.name))


def validate_file(path: str | Path) -> Checked:
    """Everything that can be checked without simulating: the YAML, the files it names, the model, the engine."""
    return check_protocol(load_protocol(path))


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
        DpsimError: anything wrong with protocol, structure or model, before a step is made; SimulationError later.
    """
    checked = check_protocol(protocol, calculator_for)
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory), _stop_on_signals() as should_stop, display or ProgressDisplay() as shown:
        folders = _stage_directories(directory, checked)
        _require_continuable(checked, folders)
        _write_text(directory / "protocol.yaml", dump_yaml(_absolute(protocol)))
        control = RunControl(
            seed=protocol.seed,
            name="",
            monitor=shown.show,
            should_stop=should_stop,
            checkpoint_seconds=protocol.checkpoint_seconds,
            identity=checked.identity,
        )
        try:
            stages = _run_stages(checked, folders, control, shown)
            context = RunContext(
                protocol, directory, checked.engine, checked.calculator, calculator_for, control, stages, shown.say
            )
            return _analyse(context, should_stop)
        except Stopped:
            message = f"Stopped; everything is saved in {directory}. The same command continues."
            shown.say(message)
            return RunOutcome(directory, None, None, None, True, message)


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
    engine = make_engine(protocol.engine)
    stages = dict(zip(protocol.stage_names(), (s.settings() for s in protocol.stages), strict=True))
    for name, stage in stages.items():
        try:
            engine.require(stage, state)
        except ConfigError as error:
            raise ConfigError(f"stage {name}: {error}") from error
    _require_stress(stages, calculator)
    _require_velocities(stages, state)
    _check_analyses(protocol, atoms)
    trial = atoms_from_state(state)
    trial.calc = calculator
    forces = trial.get_forces()  # refuses unknown elements by name
    if not np.isfinite(forces).all():
        atom = int(np.argmax(~np.isfinite(forces).all(axis=1)))
        raise ConfigError(f"the model's force on atom {atom} of the structure is {forces[atom]}; expected numbers.")
    return Checked(protocol, engine, calculator, state, stages, _identity(protocol, state))


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


def _check_analyses(protocol: Protocol, atoms: Any) -> None:
    """The files, elements and ranges that analyses name."""
    from dpsim.analysis.structure import load_rdf_reference

    elements = sorted(set(atoms.get_chemical_symbols()))
    for analysis in protocol.analyses:
        if not isinstance(analysis, RdfAnalysis):
            continue
        if analysis.reference is not None:
            load_rdf_reference(analysis.reference)
        if abs(np.linalg.det(atoms.cell.array)) < 1e-12:
            raise ConfigError("`analyses` has an rdf, but the structure has no cell; expected one. Leave the rdf out.")
        wanted = set() if analysis.pairs == "all" else {e for pair in analysis.pairs for e in pair.split("-")}
        unknown = sorted(wanted - set(elements))
        if unknown:
            raise ConfigError(f"`pairs` has the elements {unknown}; expected those of the structure, {elements}.")
        half = 0.5 / float(np.linalg.norm(atoms.cell.reciprocal(), axis=1).max())
        if analysis.r_max is not None and analysis.r_max > half:
            raise ConfigError(
                f"`r_max` is {analysis.r_max:g} A; expected at most {half:.3f} A, half the smallest height of the "
                "cell. Lower it, or repeat the structure."
            )


def _identity(protocol: Protocol, state: State) -> dict[str, Any]:
    """What, besides a stage's own settings, must be unchanged to continue it."""
    digest = hashlib.sha256()
    for name in ("numbers", "masses", "positions", "momenta", "cell", "pbc"):
        digest.update(np.ascontiguousarray(getattr(state, name)).tobytes())
    model = model_file(protocol.model)
    return {
        "engine": protocol.engine,
        "precision": protocol.precision,
        "model": ":".join(model[k] for k in ("sha256", "head") if k in model) if model else protocol.model,
        "structure": digest.hexdigest()[:16],
        **({} if protocol.fparam is None else {"fparam": list(protocol.fparam)}),
    }


def _stage_directories(directory: Path, checked: Checked) -> dict[str, Path]:
    return {name: directory / "stages" / f"{k:02d}_{name}" for k, name in enumerate(checked.stages, start=1)}


def _stage_identity(checked: Checked, name: str) -> dict[str, Any]:
    """The identity of a stage: that of the run, and what came before it."""
    before = []
    for other, stage in checked.stages.items():
        if other == name:
            break
        before.append(f"{other} ({stage.n_steps} steps)")
    return checked.identity | {"earlier_stages": ", ".join(before)}


def _require_continuable(checked: Checked, folders: Mapping[str, Path]) -> None:
    """Refuse to mix settings before anything is run."""
    for name, stage in checked.stages.items():
        saved = load_checkpoint(folders[name] / RESTART)
        if saved is not None:
            control = RunControl(checked.protocol.seed, name, identity=_stage_identity(checked, name))
            require_same_settings(folders[name], saved.settings, stage_settings(stage, control), saved.step)


def _run_stages(
    checked: Checked, folders: Mapping[str, Path], control: RunControl, display: ProgressDisplay
) -> dict[str, StageRecord]:
    """Run every stage to its total. Raises Stopped after a request to stop."""
    state = checked.state
    records: dict[str, StageRecord] = {}
    for name, stage in checked.stages.items():
        own = replace(control, name=name, identity=_stage_identity(checked, name))
        try:
            result = checked.engine.run_stage(state, checked.calculator, stage, folders[name], own)
        except SimulationError as error:
            if not _is_checked(checked, name):
                raise
            display.say(str(error))
            records[name] = StageRecord(name, folders[name], stage, _last_result(folders[name]), str(error))
            return records  # a failed NVE check is a result; what would follow is not simulated
        if not result.finished:
            raise Stopped
        records[name] = StageRecord(name, folders[name], stage, result)
        state = result.state
    return records


def _is_checked(checked: Checked, name: str) -> bool:
    """Whether an nve_check judges this stage."""
    last = [n for n, stage in checked.stages.items() if stage.kind == "nve"][-1:]
    checks = [a for a in checked.protocol.analyses if isinstance(a, NveCheck)]
    return any(name in ([check.stage] if check.stage else last) for check in checks)


def _last_result(folder: Path) -> StageResult:
    """What the last checkpoint of a failed stage holds."""
    saved = load_checkpoint(folder / RESTART)
    if saved is None:
        raise DataError(f"`{folder / RESTART}` is missing; expected the checkpoint of a stage. Run the protocol anew.")
    return StageResult(saved.state, saved.step, False, saved.wall_seconds, 0.0)


def _analyse(context: RunContext, should_stop: Any) -> RunOutcome:
    """Run the analyses, write results.json and report.html."""
    protocol, directory = context.protocol, context.directory
    total = AnalysisOutput()
    for analysis in protocol.analyses:
        if should_stop():
            raise Stopped
        failed = _failed_stage(analysis, context)
        if failed is not None:
            total.warnings.append(f"{analysis.type} was left out: {failed}")
            continue
        context.say(f"analysing: {analysis.type}")
        output = _run_analysis(analysis, context)
        total.results.extend(output.results)
        total.sections.extend(output.sections)
        total.warnings.extend(output.warnings)
    total.sections.append(stage_section(context))
    origin = provenance(context)
    title = protocol.name
    facts = run_facts(context)
    results = write_results_json(
        directory / "results.json", total.results, origin, title=title, warnings=total.warnings
    )
    report = write_report(directory, title, total.results, total.sections, origin, facts=facts, warnings=total.warnings)
    verdict = overall_verdict(total.results)
    message = f"{verdict}: {report}"
    context.say(message)
    return RunOutcome(directory, verdict, report, results, False, message)


def _failed_stage(analysis: Analysis, context: RunContext) -> str | None:
    """Why an analysis cannot be made: a stage that failed. The NVE check judges such stages itself."""
    failed = next((stage for stage in context.stages.values() if stage.error), None)
    if failed is None or (isinstance(analysis, NveCheck) and analysis.stage in (None, failed.name)):
        return None
    return f"stage {failed.name} failed."


def _run_analysis(analysis: Analysis, context: RunContext) -> AnalysisOutput:
    from dpsim.protocols.nve import run_nve_check
    from dpsim.protocols.rdf import run_rdf

    if isinstance(analysis, NveCheck):
        return run_nve_check(analysis, context)
    return run_rdf(analysis, context)


def _absolute(protocol: Protocol) -> Protocol:
    """The protocol with absolute paths, so that the copy in the run's directory can be run too."""
    structure = protocol.structure
    if structure.file is not None:
        structure = structure.model_copy(update={"file": structure.file.resolve()})
    analyses = tuple(
        a.model_copy(update={"reference": a.reference.resolve()})
        if isinstance(a, RdfAnalysis) and a.reference is not None
        else a
        for a in protocol.analyses
    )
    return protocol.model_copy(update={"structure": structure, "analyses": analyses})


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process per directory; the lock dies with its process, however it dies."""
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DpsimError(
                f"`{directory}` is in use by another dpsim run; expected one at a time. "
                "Wait for it, or use --directory."
            ) from error
        yield


@contextmanager
def _stop_on_signals() -> Iterator[Any]:
    """A function that says whether SIGINT or SIGTERM asked to stop; a second one interrupts at once."""
    asked: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, remember)
    except ValueError:  # not in the main thread: whoever runs us there stops us in another way
        pass
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
