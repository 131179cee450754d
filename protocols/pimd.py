"""Path-integral molecular dynamics: nuclei as rings of beads, at constant temperature, by i-PI.

For each number of beads an ordinary run in `beads_<P>`: minimise if asked, equilibrate, sample. What follows from it is
in pimd_results.py; radial distribution functions and angles are those of molecular dynamics, of all beads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from dpsim.config import Temperature, Time, dump_yaml, validate
from dpsim.engines.base import RunControl
from dpsim.engines.registry import EngineName
from dpsim.files import atomic_write
from dpsim.protocols.analyses import AdfAnalysis, RdfAnalysis
from dpsim.protocols.context import CalculatorFor, RunContext, StageRecord, Stopped
from dpsim.protocols.plan import Plan, plan_stages, together
from dpsim.protocols.progress import ProgressDisplay
from dpsim.protocols.rundir import PROTOCOL, RunOutcome, locked, stopped_outcome
from dpsim.protocols.runner import (
    Checked,
    default_calculator,
    require_continuable,
    run_stages,
    stage_directories,
    time_of_step,
)
from dpsim.protocols.runner import check_protocol as check_run
from dpsim.protocols.schema import Protocol, ProtocolHead
from dpsim.protocols.stages import whole_number
from dpsim.signals import stop_on_signals

SAMPLING = "nvt"
"""The stage that is analysed: that of molecular dynamics has this name too, so that `dpsim compare` finds both."""
PimdAnalysis = Annotated[RdfAnalysis | AdfAnalysis, Field(discriminator="type")]


class PimdProtocol(ProtocolHead):
    """Quantum nuclei at constant temperature and volume."""

    protocol: Literal["pimd"]
    engine: EngineName = Field("ipi", description="`ipi`, which alone moves beads")
    temperature: Temperature = Field(gt=0.0)
    beads: tuple[PositiveInt, ...] = Field(
        (32,), min_length=1, description="of each atom; several, `[4, 8, 16]`, show whether they are enough"
    )
    minimise: bool = Field(False, description="relax bad contacts of the start")
    timestep: Time = Field(0.5, gt=0.0, description="0.5 fs or less with hydrogen")
    equilibration: Time = Field(500.0, gt=0.0, description="not analysed; the rings open, the liquid forgets its start")
    duration: Time = Field(gt=0.0, description="of the part that is analysed")
    damping: Time = Field(100.0, gt=0.0, description="relaxation time of the centroids' Langevin thermostat")
    pile_lambda: float = Field(1.0, gt=0.0, description="friction of the ring's modes, in units of critical damping")
    trajectory_every: Time | None = Field(None, gt=0.0, description="time between frames; default about 20 fs")
    thermo_every: Time | None = Field(None, gt=0.0, description="time between rows of the tables; default about 2 fs")
    max_temperature: Temperature = Field(10000.0, gt=0.0, description="stop as exploded above this temperature")
    consistency: float = Field(
        0.02, gt=0.0, description="largest relative difference of the two estimators of the kinetic energy"
    )
    missing: float = Field(0.02, gt=0.0, description="warn where the beads lack more of the kinetic energy")
    analyses: tuple[PimdAnalysis, ...] = Field((), description="`rdf` and `adf`, over all beads")

    @field_validator("beads", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """`beads: 32` is short for a list."""
        return [value] if isinstance(value, int) else value

    @field_validator("beads")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError(f"`beads` is {list(value)}; expected rising numbers, each once. Sort them.")
        return value

    @model_validator(mode="after")
    def _only_ipi(self) -> PimdProtocol:
        if self.engine != "ipi":
            raise ValueError(f"`engine` is {self.engine}; expected ipi, which alone moves beads. Leave it out.")
        if self.fparam is not None:
            raise ValueError("`fparam` is given; expected none with i-PI, which has none to pass on. Leave it out.")
        for name in ("equilibration", "duration", "trajectory_every", "thermo_every"):
            if (value := getattr(self, name)) is not None:
                whole_number(value, self.timestep, name)
        return self

    @model_validator(mode="after")
    def _analyses_fit(self) -> PimdProtocol:
        for analysis in self.analyses:
            if set(analysis.named_stages()) - {SAMPLING}:
                raise ValueError(
                    f"`{analysis.type}` has the stages {list(analysis.named_stages())}; expected [{SAMPLING}], "
                    "the only one that is sampled. Leave them out."
                )
        return self

    def md(self) -> Protocol:
        """The stages as those of molecular dynamics, of which the beads are copies."""
        quantities = self.model_dump(mode="json", exclude={"beads", "protocol", "minimise"})
        shared = {key: quantities[key] for key in ("timestep", "temperature", "damping", "max_temperature")}
        shared |= {key: quantities[key] for key in ("trajectory_every", "thermo_every")}
        shared |= {"type": "nvt", "thermostat": "langevin"}
        if self.thermo_every is None:
            shared["thermo_every"] = f"{max(1, round(_ROW_FS / self.timestep)) * self.timestep!r} fs"
        stages = [{"type": "minimise", "force": "0.5 eV/A", "steps": 200}] if self.minimise else []
        stages.append(shared | {"name": "equilibration", "duration": quantities["equilibration"]})
        stages.append(shared | {"name": SAMPLING, "duration": quantities["duration"]})
        head = {key: quantities[key] for key in ProtocolHead.model_fields}
        return validate(head | {"stages": stages, "analyses": quantities["analyses"]}, Protocol)


_ROW_FS = 2.0


@dataclass(frozen=True)
class BeadsRun:
    """A finished run with so many beads, or one that failed: its stages, whose frames are beads.

    context: for the analyses of molecular dynamics; summary: the same with the true time between frames.
    """

    n_beads: int
    context: RunContext
    summary: RunContext

    @property
    def failed(self) -> StageRecord | None:
        """The stage that failed, if one did."""
        return next((stage for stage in self.context.stages.values() if stage.failure), None)


def run_protocol(
    config: PimdProtocol,
    directory: Path,
    calculator_for: CalculatorFor = default_calculator,
    display: ProgressDisplay | None = None,
) -> RunOutcome:
    """Run, or continue: arguments and errors as of the runner of one run."""
    from dpsim.protocols.pimd_results import conclude

    checked = check_protocol(config, calculator_for)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory), stop_on_signals() as should_stop, display or ProgressDisplay() as shown:
        for n_beads, one in checked.items():
            require_continuable(one, folder_of(directory, n_beads))
        atomic_write(directory / PROTOCOL, dump_yaml(config).encode())
        runs = []
        try:
            for n_beads, one in checked.items():
                if len(checked) > 1:
                    shown.say(f"{n_beads} beads")
                runs.append(_run(config, one, n_beads, directory, calculator_for, should_stop, shown))
                if runs[-1].failed is not None:
                    break  # with more beads it would fail as well
            return conclude(config, runs, directory, should_stop, shown.say)
        except Stopped:
            return stopped_outcome(directory, shown.say)


def check_protocol(config: PimdProtocol, calculator_for: CalculatorFor = default_calculator) -> dict[int, Checked]:
    """As molecular dynamics is checked, once; what is to be run for each number of beads. Raises DpsimError."""
    checked = check_run(config.md(), calculator_for)  # says how to install i-PI where it is missing
    from dpsim.engines.ipi_path_integrals import PathIntegralEngine, Ring

    rings = {n_beads: Ring(n_beads, config.pile_lambda) for n_beads in config.beads}
    return {
        n_beads: replace(
            checked,
            engine=PathIntegralEngine(ring, checked.state.n_atoms),
            identity=checked.identity | vars(ring),
        )
        for n_beads, ring in rings.items()
    }


def plan_protocol(config: PimdProtocol, calculator_for: CalculatorFor = default_calculator) -> Plan:
    """The runs; a step with P beads is taken for P steps of molecular dynamics, which are timed."""
    checked = check_run(config.md(), calculator_for)
    seconds = time_of_step(checked)
    n_atoms = checked.state.n_atoms
    steps = [
        together(f"{n} beads", plan_stages(checked.stages, n * n_atoms, None if seconds is None else n * seconds))
        for n in config.beads
    ]
    notes = (f"atoms are beads; {n_atoms} atoms, i-PI, {', '.join(Path(name).name for name in config.models)}",)
    return Plan(config.name, steps, notes=notes)


def folder_of(directory: Path, n_beads: int) -> Path:
    """Where a run with so many beads lies."""
    return directory / f"beads_{n_beads}"


def _run(
    config: PimdProtocol,
    checked: Checked,
    n_beads: int,
    directory: Path,
    calculator_for: CalculatorFor,
    should_stop: Callable[[], bool],
    shown: ProgressDisplay,
) -> BeadsRun:
    """All stages with so many beads. Raises Stopped."""
    folder = folder_of(directory, n_beads)
    control = RunControl(
        seed=config.seed,
        name="",
        monitor=shown.show,
        should_stop=should_stop,
        checkpoint_seconds=config.checkpoint_seconds,
        identity=checked.identity,
    )
    stages = run_stages(checked, stage_directories(checked.protocol, folder), control, shown)
    single = {name: _of_one_bead(stage, checked.state.n_atoms) for name, stage in stages.items()}
    context = RunContext(
        folder,
        _with_beads_as_frames(single, n_beads),
        checked.protocol,
        checked.engine,
        checked.calculator,
        calculator_for,
        control,
        shown.say,
    )
    whole = {name: replace(stage, failure=None) for name, stage in single.items()}
    return BeadsRun(n_beads, context, replace(context, stages=whole))


def _of_one_bead(stage: StageRecord, n_atoms: int) -> StageRecord:
    """With the state of the first beads: as many atoms as a frame has."""
    from dpsim.engines.ipi_path_integrals import bead_of

    state = stage.result.state
    return replace(stage, result=replace(stage.result, state=bead_of(state, state.n_atoms // n_atoms)))


def _with_beads_as_frames(stages: Mapping[str, StageRecord], n_beads: int) -> dict[str, StageRecord]:
    """The beads of a moment follow one another in the trajectory: there are n_beads frames in the time between two."""
    found = {}
    for name, stage in stages.items():
        per_frame = replace(stage.settings, timestep_fs=stage.settings.timestep_fs / n_beads)
        found[name] = stage if stage.settings.kind == "minimise" else replace(stage, settings=per_frame)
    return found
