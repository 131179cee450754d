"""The NVE scan: which time step, in which precision, conserves the energy well enough?

All points start from one state, so that they differ in nothing else: the structure is equilibrated once, in the folder
`start`, and its last state is the structure of every point. (Equilibrated anew in each, with the same random numbers,
it would part from the others in another precision, and cost as much again.) A structure that is equilibrated and has
velocities is taken as it is. Points simulate the same time, in steps of their own. Drift and fluctuation:
dpsim/analysis/timesteps.py; what follows from them: nve_scan_results.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, model_validator

from dpsim.config import EnergyDrift, Temperature, Time
from dpsim.engines.base import State
from dpsim.errors import SimulationError
from dpsim.files import atomic_write
from dpsim.protocols import runner, sweep
from dpsim.protocols.context import AnalysisOutput, CalculatorFor
from dpsim.protocols.plan import Plan, together
from dpsim.protocols.progress import ProgressDisplay
from dpsim.protocols.rundir import RunOutcome
from dpsim.protocols.schema import Protocol
from dpsim.protocols.sweep import FinishedPoint, Point, Sweep
from dpsim.units import format_quantity

START, STATE = "start", "state.extxyz"
EQUILIBRATION, NVE = "equilibration", "nve"
_MIN_STEPS = 40  # of the largest time step: fewer have no fluctuation to speak of


class NveScan(Sweep):
    """NVE from one state with several time steps and precisions."""

    points_judge: ClassVar[bool] = False
    protocol: Literal["nve-scan"]
    timesteps: tuple[Annotated[Time, Field(gt=0.0)], ...] = Field(min_length=2, description="three show the law")
    precisions: tuple[Literal["float32", "float64"], ...] = Field(
        ("float32", "float64"), min_length=1, description="each with every time step"
    )
    duration: Time = Field(1000.0, gt=0.0, description="of each run, to the nearest step")
    temperature: Temperature | None = Field(
        None, gt=0.0, description="equilibrate at it first; default: the structure is, and has velocities"
    )
    minimise: bool = Field(False, description="relax bad contacts of the structure before that")
    equilibration: Time = Field(1000.0, gt=0.0, description="how long, to the nearest step")
    equilibration_timestep: Time | None = Field(None, gt=0.0, description="default: the shortest of `timesteps`")
    damping: Time = Field(100.0, gt=0.0, description="relaxation time of the thermostat then")
    drift: EnergyDrift = Field(0.1, gt=0.0, description="largest acceptable drift, in either direction")
    fluctuation: float = Field(0.02, gt=0.0, description="largest acceptable std(E)/std(K)")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="of the intervals that are judged")
    _start: Path | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _long_enough(self) -> NveScan:
        for name in ("timesteps", "precisions"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"`{name}` is {list(values)}; expected different ones. Leave the second out.")
        if self.duration < _MIN_STEPS * max(self.timesteps):
            raise ValueError(
                f"`duration` is {self.duration:g} fs; expected {_MIN_STEPS} of the longest time step or more, "
                f"{_MIN_STEPS * max(self.timesteps):g} fs. Raise it."
            )
        return self

    def equilibrate(self) -> Protocol | None:
        """The run that ends in the state from which all points start; None where the structure is that state."""
        if self.temperature is None:
            return None
        step = self.equilibration_timestep or min(self.timesteps)
        stage = {
            "type": "nvt",
            "name": EQUILIBRATION,
            "temperature": format_quantity(self.temperature, "K"),
            "timestep": format_quantity(step, "fs"),
            "steps": max(1, round(self.equilibration / step)),
            "damping": format_quantity(self.damping, "fs"),
        }
        return self.md(START, [*([{"type": "minimise"}] if self.minimise else []), stage])

    def from_state(self, file: Path) -> NveScan:
        """The same, whose points start from the structure in a file."""
        scan = self.model_copy()
        scan._start = file
        return scan

    def points(self) -> list[Point]:
        return [
            Point(key, self._point(key, dt, precision), {"precision": precision, "timestep_fs": dt})
            for precision in self.precisions
            for dt in sorted(self.timesteps)
            for key in [f"{precision}.{dt:g}fs"]
        ]

    def _point(self, key: str, timestep: float, precision: str) -> Protocol:
        stage: dict[str, Any] = {
            "type": "nve",
            "name": NVE,
            "timestep": format_quantity(timestep, "fs"),
            "steps": round(self.duration / timestep),
        }
        changes: dict[str, Any] = {"precision": precision}
        if self._start is not None:
            changes["structure"] = {"file": str(self._start)}
        elif self.temperature is not None:  # to be checked only: there is no state yet
            stage["initial_temperature"] = format_quantity(self.temperature, "K")
        check = {
            "type": "nve_check",
            "threshold": format_quantity(self.drift, "meV/atom/ps"),
            "confidence": self.confidence,
            "timesteps": [],
            "diagnosis": False,
        }
        return self.md(key, [stage], [check], **changes)

    def conclude(self, points: Sequence[FinishedPoint], figures: Path) -> AnalysisOutput:
        from dpsim.protocols.nve_scan_results import conclude

        return conclude(self, points, figures)


# ---- the three functions of a protocol's module: those of a sweep, after the start -----------------------------------


def run_protocol(
    scan: NveScan,
    directory: Path,
    calculator_for: CalculatorFor = runner.default_calculator,
    display: ProgressDisplay | None = None,
) -> RunOutcome:
    """Run, or continue: the equilibration, then the sweep. Arguments and errors as of `sweep.run_protocol`."""
    check_protocol(scan, calculator_for)
    start = scan.equilibrate()
    if start is None:
        return sweep.run_protocol(scan, directory, calculator_for, display)
    outcome = runner.run_protocol(start, directory / START, calculator_for, display)
    if outcome.stopped:
        return replace(outcome, directory=directory)
    if outcome.failure:
        raise SimulationError(f"there is no state to start from: {outcome.failure}")
    state = runner.stage_records(start, directory / START)[EQUILIBRATION].result.state
    return sweep.run_protocol(
        scan.from_state(_write_state(state, directory / START / STATE)), directory, calculator_for, display
    )


def check_protocol(scan: NveScan, calculator_for: CalculatorFor = runner.default_calculator) -> None:
    """Structure, model, engine, in every precision. Raises DpsimError."""
    if (start := scan.equilibrate()) is not None:
        runner.check_protocol(start, calculator_for)
    sweep.check_protocol(scan, calculator_for)


def plan_protocol(scan: NveScan, calculator_for: CalculatorFor = runner.default_calculator) -> Plan:
    """The equilibration and the points."""
    plan = sweep.plan_protocol(scan, calculator_for)
    if (start := scan.equilibrate()) is None:
        return plan
    first = together(START, runner.plan_protocol(start, calculator_for).steps)
    return replace(plan, steps=[first, *plan.steps])


def _write_state(state: State, path: Path) -> Path:
    """Positions, cell, momenta and masses, to 8 decimals, the same for every point."""
    from io import StringIO

    from ase.io import write

    from dpsim.engines.ase_engine import atoms_from_state

    content = StringIO()
    write(content, atoms_from_state(state), format="extxyz")
    atomic_write(path, content.getvalue().encode())
    return path
