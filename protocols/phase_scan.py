"""The protocol `phase-scan`: a crystal in a cell that is free to change, at many temperatures or pressures.

A `ladder` is one run per temperature and pressure, each from the same structure; with `back_structure`, a second one
from that of the other phase. A `ramp` is one run through all of them, each stage from the end of the one before, and
with `back` the same way back. What is made of the runs is in phase_scan_results.py; the physics in
dpsim/analysis/phases.py and dpsim/analysis/transitions.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from dpsim.config import Length, Pressure, StrictModel, Temperature, Time
from dpsim.protocols.context import AnalysisOutput
from dpsim.protocols.schema import Structure
from dpsim.protocols.sweep import FinishedPoint, Point, Sweep

Branch = Literal["heating", "cooling", "compression", "decompression"]
LATTICE = ("a", "b", "c", "alpha", "beta", "gamma", "volume")
_BACK: dict[Branch, Branch] = {
    "heating": "cooling", "cooling": "heating", "compression": "decompression", "decompression": "compression",
}  # fmt: skip
_NAME = r"^[A-Za-z][A-Za-z0-9_]*$"


class COverA(StrictModel):
    """One length of the unit cell over the mean of the other two."""

    type: Literal["c_over_a"]
    name: str = Field("c_over_a", pattern=_NAME, description="of the results")
    axis: Literal["auto", "a", "b", "c"] = Field("auto", description="auto: the axis that differs most")


class Strain(StrictModel):
    """How far the shape of the cell is from a reference shape, whatever the volume: the norm of the strain tensor."""

    type: Literal["strain"]
    name: str = Field("strain", pattern=_NAME, description="of the results")
    reference: Literal["cubic", "start"] = Field("cubic", description="a cubic unit cell, or that of `structure`")
    average: Literal["tensor", "magnitude"] = Field(
        "tensor", description="norm of the mean strain, or mean of the norms, which axes that turn do not average out"
    )


class OffCentring(StrictModel):
    """How far atoms are off the centre of their neighbours: a polar displacement."""

    type: Literal["off_centring"]
    name: str = Field("off_centring", pattern=_NAME, description="of the results")
    atoms: str | tuple[int, ...] = Field(description="an element, or indices (from 0, in the repeated structure)")
    neighbours: str | tuple[int, ...] = Field(description="likewise, of the atoms around")
    count: PositiveInt = Field(description="how many neighbours an atom has, 6 in an octahedron")
    average: Literal["vector", "magnitude"] = Field(
        "vector", description="length of the mean displacement, or mean of the lengths, which disorder has too"
    )


OrderParameterConfig = Annotated[COverA | Strain | OffCentring, Field(discriminator="type")]


class ReferenceBase(StrictModel):
    """What every reference has."""

    quantity: str = Field(
        description="`a` ... `gamma` (A, degrees), `volume` (A^3) of a unit cell, or the name of an order parameter"
    )
    branch: Branch | None = Field(None, description="default: every branch")


class ValueReference(ReferenceBase):
    """What a quantity should be at one temperature and pressure."""

    temperature: Temperature | None = Field(None, description="one of `temperatures`; default: the only one")
    pressure: Pressure | None = Field(None, description="one of `pressures`; default: the only one")
    value: float = Field(description="in the unit of the quantity")
    tolerance: float = Field(0.01, gt=0.0, description="relative: 0.01 is 1 %")


class TransitionReference(ReferenceBase):
    """Between which temperatures, or pressures, a transition should be found."""

    temperatures: tuple[Temperature, Temperature] | None = Field(None, description="of a scan of temperatures")
    pressures: tuple[Pressure, Pressure] | None = Field(None, description="of a scan of pressures")

    @model_validator(mode="after")
    def _one_interval(self) -> TransitionReference:
        if (self.temperatures is None) == (self.pressures is None) or self.interval[0] > self.interval[1]:
            raise ValueError(
                "`transitions` needs one of `temperatures` and `pressures`, the lower first. Write for example "
                "`temperatures: [850 K, 897 K]`."
            )
        return self

    @property
    def interval(self) -> tuple[float, float]:
        """K or bar."""
        found = self.temperatures or self.pressures
        assert found is not None  # checked when read
        return found


@dataclass(frozen=True)
class ScanStage:
    """One temperature and pressure of one branch, and the stage of the point that simulates it."""

    branch: Branch
    temperature_K: float
    pressure_bar: float
    point: str
    stage: str


class PhaseScan(Sweep):
    """Lattice, symmetry and order parameters of a crystal against temperature or pressure, and its transitions."""

    protocol: Literal["phase-scan"]
    mode: Literal["ladder", "ramp"] = Field("ladder", description="runs of their own, or one run through all")
    temperatures: tuple[Annotated[Temperature, Field(gt=0.0)], ...] = Field(
        min_length=1, description="rising or falling"
    )
    pressures: tuple[Pressure, ...] = Field(
        (1.0,), min_length=1, description="rising or falling; scanned where there is one temperature"
    )
    back: bool = Field(False, description="ramp: the same way back afterwards, for the hysteresis")
    back_structure: Structure | None = Field(
        None, description="ladder: a second one from this structure, the phase at the other end; with as many atoms"
    )
    cell: Literal["isotropic", "anisotropic", "triclinic"] = Field(
        "triclinic", description="what may change: the volume; the three lengths; lengths and angles"
    )
    timestep: Time = Field(1.0, gt=0.0, description="2 fs without light atoms")
    duration: Time = Field(gt=0.0, description="at each temperature and pressure")
    skip: Time = Field(
        0.0, ge=0.0, description="left out at the start of each in any case; beyond that equilibration is detected"
    )
    damping: Time = Field(100.0, gt=0.0, description="relaxation time of the thermostat")
    pressure_damping: Time = Field(1000.0, gt=0.0, description="relaxation time of the barostat")
    trajectory_every: Time = Field(20.0, gt=0.0, description="time between frames")
    unit_cells: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        None,
        description="along a, b, c, in the whole cell: lattice constants are those of one; default: `structure.repeat`",
    )
    order_parameters: tuple[OrderParameterConfig, ...] = Field(
        default_factory=lambda: (COverA(type="c_over_a"), Strain(type="strain")),
        description="`c_over_a`, `strain`, `off_centring`; default: the first two",
    )
    tolerances: tuple[Annotated[Length, Field(gt=0.0)], ...] = Field(
        (0.05, 0.1, 0.2, 0.3), min_length=1, description="of the symmetry of the mean structure"
    )
    mobile: tuple[str, ...] = Field(
        (), description="elements that leave their sites, [Li]: the mean structure and its symmetry are without them"
    )
    significance: float = Field(0.01, gt=0.0, lt=0.5, description="largest p value of a transition")
    references: tuple[ValueReference, ...] = Field((), description="values to be judged by")
    transitions: tuple[TransitionReference, ...] = Field((), description="transitions to be judged by")

    @model_validator(mode="after")
    def _can_be_run(self) -> PhaseScan:
        for name in ("temperatures", "pressures"):
            values = getattr(self, name)
            rising = list(values) == sorted(set(values))
            if not rising and list(values) != sorted(set(values), reverse=True):
                raise ValueError(f"`{name}` is {list(values)}; expected rising or falling values. Sort them.")
        if self.engine == "ipi" and self.cell != "isotropic":
            raise ValueError(
                f"`cell` is {self.cell} with the engine ipi, whose barostat changes the volume only; expected "
                "isotropic. Use `engine: ase`, `lammps` or `openmm` for a cell that changes its shape."
            )
        if self.mode == "ramp" and self.back_structure is not None:
            raise ValueError("`back_structure` is given for a ramp, which goes back from its end. Use `back: true`.")
        if self.mode == "ladder" and self.back:
            raise ValueError(
                "`back` is true for a ladder, whose runs do not continue each other; expected `back_structure`, from "
                "which a second ladder starts. Give it, or use `mode: ramp`."
            )
        return self

    @model_validator(mode="after")
    def _references_fit(self) -> PhaseScan:
        names = [order.name for order in self.order_parameters]
        if len({*names, *LATTICE}) < len(names) + len(LATTICE):
            raise ValueError(
                f"`order_parameters` have the names {names}; expected different ones, none of {LATTICE}. "
                "Give them a `name`."
            )
        references: list[ReferenceBase] = [*self.references, *self.transitions]
        for reference in references:
            if reference.quantity not in (*LATTICE, *names):
                raise ValueError(
                    f"`quantity` is '{reference.quantity}'; expected one of {[*LATTICE, *names]}. Correct it."
                )
            if reference.branch is not None and reference.branch not in self.branches:
                raise ValueError(f"`branch` is {reference.branch}; expected one of {list(self.branches)}. Correct it.")
        for value in self.references:
            for name, known in (("temperature", self.temperatures), ("pressure", self.pressures)):
                given = getattr(value, name)
                if given not in known and not (given is None and len(known) == 1):
                    raise ValueError(f"`references` has the {name} {given}; expected one of {list(known)}. Correct it.")
        for transition in self.transitions:
            if (transition.pressures is not None) != (self.along == "pressure"):
                raise ValueError(f"`transitions` has no {self.along}s; this is a scan of them. Give `{self.along}s`.")
        return self

    @property
    def along(self) -> Literal["temperature", "pressure"]:
        """What is scanned: temperature, unless there is but one of several pressures."""
        return "pressure" if len(self.temperatures) == 1 and len(self.pressures) > 1 else "temperature"

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The way there and, if it is gone, the way back."""
        values = self.temperatures if self.along == "temperature" else self.pressures
        rising = values[0] <= values[-1]
        there: Branch
        if self.along == "temperature":
            there = "heating" if rising else "cooling"
        else:
            there = "compression" if rising else "decompression"
        return (there, _BACK[there]) if self.back or self.back_structure is not None else (there,)

    @property
    def cells(self) -> tuple[int, int, int]:
        """Unit cells along a, b, c."""
        return self.unit_cells or self.structure.repeat

    def scan(self) -> list[ScanStage]:
        """Every temperature and pressure of every branch. The turning point of a ramp belongs to both branches."""
        found = []
        for branch in self.branches:
            for t in self.temperatures:
                for p in self.pressures:
                    stage = self._named(branch, t, p)
                    if self.mode == "ladder":
                        found.append(ScanStage(branch, t, p, stage, "npt"))
                    else:
                        turning = (
                            (t == self.temperatures[-1]) if self.along == "temperature" else (p == self.pressures[-1])
                        )
                        own = self._named(self.branches[0], t, p) if turning else stage
                        found.append(ScanStage(branch, t, p, self._ramp(p), own))
        return found

    def points(self) -> list[Point]:
        from dpsim.protocols.phase_scan_results import order_parameters_of

        order_parameters_of(self)  # refuses groups that the structure has not
        return self._ladder() if self.mode == "ladder" else self._ramps()

    def conclude(self, points: Sequence[FinishedPoint], figures: Path) -> AnalysisOutput:
        from dpsim.protocols.phase_scan_results import conclude

        return conclude(self, points, figures)

    def _ladder(self) -> list[Point]:
        points = []
        for at in self.scan():
            other = self.back_structure if at.branch != self.branches[0] else None
            changes: dict[str, Any] = {} if other is None else {"structure": other.model_dump(mode="json")}
            stage = self._stage("npt", at.temperature_K, at.pressure_bar, start=True)
            labels = {"branch": at.branch, "temperature_K": at.temperature_K, "pressure_bar": at.pressure_bar}
            points.append(Point(at.point, self.md(at.point, [stage], **changes), labels))
        return points

    def _ramps(self) -> list[Point]:
        by_point: dict[str, dict[str, Any]] = {}
        for there in self.branches:
            chosen = [at for at in self.scan() if at.branch == there]
            for at in chosen if there == self.branches[0] else reversed(chosen):
                stages = by_point.setdefault(at.point, {})
                if at.stage not in stages:
                    stages[at.stage] = self._stage(at.stage, at.temperature_K, at.pressure_bar, start=not stages)
        return [
            Point(key, self.md(key, [*stages.values()]), {"stages": len(stages)}) for key, stages in by_point.items()
        ]

    def _stage(self, name: str, temperature: float, pressure: float, start: bool) -> dict[str, Any]:
        times = ("timestep", "duration", "damping", "pressure_damping", "trajectory_every")
        return {
            "type": "npt",
            "name": name,
            "temperature": f"{temperature!r} K",
            "pressure": f"{pressure!r} bar",
            "initial_temperature": f"{temperature!r} K" if start else None,
            "cell": self.cell,
            **{key: f"{getattr(self, key)!r} fs" for key in times},
        }

    def _named(self, branch: Branch, temperature: float, pressure: float) -> str:
        at_pressure = f"_{pressure:g}bar" if len(self.pressures) > 1 else ""
        return f"{branch}_{temperature:g}K{at_pressure}"

    def _ramp(self, pressure: float) -> str:
        several = len(self.pressures) > 1 and self.along == "temperature"
        return f"ramp_{pressure:g}bar" if several else "ramp"
