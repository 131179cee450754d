"""Measures the scaling protocol: each size is a unit of work in a process of its own, one after another.

So its memory and its threads are its own, and nothing of dpsim disturbs its clock. In each process:

    load model and engine -> memory "empty" -> structure -> a few steps, to choose the length of a block -> a block to
    warm up -> blocks, each timed -> peak of memory
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpsim.config import dump_yaml, validate
from dpsim.engines.base import RunControl, State
from dpsim.errors import ConfigError, SimulationError
from dpsim.files import atomic_write
from dpsim.protocols.context import CalculatorFor
from dpsim.protocols.memory import peak_memory, reset_peak_memory
from dpsim.protocols.plan import Plan, Step, time_steps, to_be_timed
from dpsim.protocols.progress import ProgressDisplay
from dpsim.protocols.provenance import model_file, origin_of, structure_hash
from dpsim.protocols.rundir import PROTOCOL, RunOutcome, conclude_run, locked, stopped_outcome
from dpsim.protocols.runner import default_calculator
from dpsim.protocols.scaling import Repeat, ScalingProtocol
from dpsim.signals import interrupted_by_signals
from dpsim.workers import Outcome, Unit, WorkersConfig, forget_other, run_units

if TYPE_CHECKING:
    from ase import Atoms

SIZES = "sizes"
_TRIAL_STEPS, _TRIAL_SECONDS = 6, 0.3  # to choose the length of a block
# Keys that change no measurement.
_NOT_OF_A_SIZE = ("memory", "repeats", "threads", "slowest_step_seconds", "checkpoint_seconds")
_STARTING_SECONDS = 5.0  # of a process that imports torch and loads a model, for the estimate


@dataclass(frozen=True)
class Series:
    """The sizes of one model with one number of threads, small to large."""

    name: str
    threads: int
    units: tuple[Unit, ...]

    def after(self, unit: Unit) -> Unit | None:
        """The next larger."""
        return next(iter(self.units[self.units.index(unit) + 1 :]), None)


# ---- the three functions of a protocol's module --------------------------------------------------------------------


def run_protocol(
    config: ScalingProtocol,
    directory: Path,
    calculator_for: CalculatorFor = default_calculator,
    display: ProgressDisplay | None = None,
) -> RunOutcome:
    """Measure, or go on to measure. Arguments and errors as of the runner of sweeps."""
    from dpsim.protocols.scaling_results import conclude

    atoms = check_protocol(config, calculator_for)
    directory.mkdir(parents=True, exist_ok=True)
    shown = display or ProgressDisplay()
    try:
        with locked(directory), interrupted_by_signals(), shown:
            atomic_write(directory / PROTOCOL, dump_yaml(config).encode())
            found = {
                series.name: [*_measure(series, config.slowest_step_seconds, shown)]
                for series in series_of(config, directory, structure_hash(atoms), calculator_for)
            }
            output = conclude(config, found, directory / "figures")
            facts = {"structure": atoms.get_chemical_formula(), "engine": config.engine, "device": config.device}
            speed = {f"{name} {o.unit.folder.name}": _said(o) for name, outcomes in found.items() for o in outcomes}
            return conclude_run(directory, config.name, output, origin_of(config, speed), facts, shown.say)
    except KeyboardInterrupt:
        return stopped_outcome(directory, shown.say)


def check_protocol(config: ScalingProtocol, calculator_for: CalculatorFor = default_calculator) -> Atoms:
    """The structure, on which every model has been tried. Raises DpsimError naming what does not fit."""
    from dpsim.engines.ase_engine import state_from_atoms
    from dpsim.engines.registry import make_engine
    from dpsim.protocols.structures import load_structure

    atoms = load_structure(config.structure, config.seed)
    for repeat in config.repeats:
        if any(n > 1 and not periodic for n, periodic in zip(repeat, atoms.pbc, strict=True)):
            raise ConfigError(
                f"`repeats` has {list(repeat)}, and `pbc` of the structure is {atoms.pbc.tolist()}; expected 1 along "
                "directions that are not periodic. Correct it, or give the structure a cell."
            )
    engine = make_engine(config.engine)
    engine.require(to_be_timed(config.timestep, config.temperature), state_from_atoms(atoms))
    for label, one in config.labelled.items():
        trial = atoms.copy()
        trial.calc = calculator_for(one, None)
        try:
            trial.get_forces()
        except ConfigError as error:
            raise ConfigError(f"model {label}: {error}") from error
    return atoms


def plan_protocol(config: ScalingProtocol, calculator_for: CalculatorFor = default_calculator) -> Plan:
    """A part for each size, at the speed of the structure itself, with one thread's efficiency for all."""
    from dpsim.engines.ase_engine import state_from_atoms
    from dpsim.engines.registry import make_engine

    atoms = check_protocol(config, calculator_for)
    engine, stage = make_engine(config.engine), to_be_timed(config.timestep, config.temperature)
    steps = []
    for label, one in config.labelled.items():
        of_a_step = time_steps(engine, state_from_atoms(atoms), calculator_for(one, None), stage)
        for threads in config.threads:
            for k, repeat in enumerate(config.ordered()):
                if k and (of_a_step or 0.0) * prod(repeat) > config.slowest_step_seconds:
                    break
                name = f"{config.series(label, threads)} {_folder(repeat)}"
                steps.append(_step(config, name, prod(repeat), len(atoms), of_a_step))
    return Plan(config.name, steps, notes=["each in a process of its own; times by those of the structure itself"])


def _step(config: ScalingProtocol, name: str, times: int, n_atoms: int, of_a_step: float | None) -> Step:
    if of_a_step is None:
        return Step(name, times * n_atoms, 0, None)
    of_a_step *= times
    n_steps = _TRIAL_STEPS + (config.blocks + 1) * max(1, round(config.block_seconds / of_a_step))
    return Step(name, times * n_atoms, n_steps, _STARTING_SECONDS + n_steps * of_a_step)


# ---- the sizes as units of work ------------------------------------------------------------------------------------


def series_of(config: ScalingProtocol, directory: Path, structure: str, calculator_for: CalculatorFor) -> list[Series]:
    """What there is to measure. structure: its hash."""
    calculator = f"{calculator_for.__module__}:{calculator_for.__qualname__}"
    found = []
    for label, one in config.labelled.items():
        plain = one.model_dump(mode="json", exclude={"compare", "require", "name", "label"})
        for threads in config.threads:
            name = config.series(label, threads)
            same = {k: v for k, v in plain.items() if k not in _NOT_OF_A_SIZE}
            units = []
            for repeat in config.ordered():
                what = [same, threads, repeat, structure, [model_file(model) for model in one.models]]
                key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
                arguments = {"config": plain | {"name": name}, "calculator": calculator, "repeat": list(repeat)}
                folder = directory / SIZES / name / _folder(repeat)
                units.append(Unit(f"{name} {folder.name} {key}", folder, arguments))
            found.append(Series(name, threads, tuple(units)))
    return found


def _measure(series: Series, slowest_step_seconds: float, display: ProgressDisplay) -> Iterator[Outcome]:
    """The sizes one after another, until one fails or the next would be too slow."""
    here = WorkersConfig(threads=series.threads, retries=0)
    for unit in series.units:
        forget_other(unit)
        outcome = next(run_units(measure_size, [unit], here, apart=True))
        display.say(f"{series.name} {unit.folder.name}: {_said(outcome)}")
        yield outcome
        if outcome.failed:
            break
        if (larger := series.after(unit)) is not None:
            expected = _middle(outcome.result["seconds"]) * _times(larger) / _times(unit)
            if expected > slowest_step_seconds:
                display.say(f"{series.name} {larger.folder.name}: left out, about {expected:.3g} s a step")
                break


def _times(unit: Unit) -> int:
    return prod(unit.arguments["repeat"])


def _said(outcome: Outcome) -> str:
    if outcome.failed:
        return outcome.error
    found = outcome.result
    return f"{found['n_atoms']} atoms, {1e3 * _middle(found['seconds']):.4g} ms/step, {1e-9 * found['peak']:.3g} GB"


def _middle(seconds: Sequence[float]) -> float:
    return float(np.median(seconds))


def _folder(repeat: Repeat) -> str:
    return "x".join(map(str, repeat))


class _Blocks:
    """An observer that notes when each block of steps was done."""

    def __init__(self, every: int):
        self.every = every
        self.times: list[float] = []

    def observe(self, step: int, state: State) -> str | None:
        self.times.append(time.perf_counter())
        return None


def measure_size(folder: Path, *, config: dict[str, Any], calculator: str, repeat: list[int]) -> dict[str, Any]:
    """A unit of work: the fields of `Size`, and how it was measured.

    Args: config: of a `ScalingProtocol`; calculator: "module:function"; repeat: along a, b, c of its structure.
    """
    from dpsim.engines.ase_engine import state_from_atoms
    from dpsim.engines.registry import make_engine
    from dpsim.protocols.structures import load_structure

    module, _, name = calculator.partition(":")
    calculator_for: CalculatorFor = getattr(import_module(module), name)
    asked = validate(config, ScalingProtocol)
    model, engine = calculator_for(asked, None), make_engine(asked.engine)
    empty = reset_peak_memory(asked.device)
    state = state_from_atoms(load_structure(asked.structure, asked.seed).repeat(repeat))
    rough = time_steps(engine, state, model, to_be_timed(asked.timestep, asked.temperature), _TRIAL_SECONDS)
    if rough is None:
        raise SimulationError("no step could be made from this structure; expected a relaxed one. Minimise it first.")
    blocks = _Blocks(max(1, round(asked.block_seconds / rough)))
    stage = to_be_timed(asked.timestep, asked.temperature, blocks.every * (asked.blocks + 1))
    control = RunControl(asked.seed, "scaling", checkpoint_seconds=float("inf"), observers=(blocks,))
    with tempfile.TemporaryDirectory(prefix="stage-", dir=folder) as temporary:
        engine.run_stage(state, model, stage, Path(temporary), control)
    seconds = np.diff(blocks.times)[1:] / blocks.every  # the first block warms up
    return {
        "n_atoms": state.n_atoms,
        "seconds": seconds.tolist(),
        "peak": peak_memory(asked.device),
        "empty": empty,
        "steps_per_block": blocks.every,
    }
