"""The protocol `md-sweep`: molecular dynamics at several temperatures and pressures, with several models, in replicas.

Every combination is a point, an ordinary run with its own report. Replicas of one condition count as independent runs
of it: analyses are made of all of them together. What follows from the points is in md_sweep_results.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from dpsim.config import Pressure, Temperature
from dpsim.protocols.analyses import Analysis
from dpsim.protocols.context import AnalysisOutput
from dpsim.protocols.schema import ComparedModels
from dpsim.protocols.stages import MinimiseStage, NptStage, NveStage, NvtStage
from dpsim.protocols.sweep import FinishedPoint, Point, Sweep
from dpsim.units import format_quantity


class SweptNvtStage(NvtStage):
    """Constant temperature, that of the point unless it is given."""

    temperature: Temperature | None = Field(None, gt=0.0, description="default: that of the point")  # type: ignore[assignment]


class SweptNptStage(NptStage):
    """Constant temperature and pressure, those of the point unless they are given."""

    temperature: Temperature | None = Field(None, gt=0.0, description="default: that of the point")  # type: ignore[assignment]
    pressure: Pressure | None = Field(  # type: ignore[assignment]
        None, description="external pressure; default: that of the point, 1 bar without `pressures`"
    )


SweptStage = Annotated[MinimiseStage | SweptNvtStage | SweptNptStage | NveStage, Field(discriminator="type")]


@dataclass(frozen=True)
class Condition:
    """What replicas have in common; None for what is not swept."""

    model: str | None
    temperature_K: float | None
    pressure_bar: float | None

    @property
    def words(self) -> str:
        """`student, 300 K, 1 bar`."""
        return ", ".join([*([self.model] if self.model else []), *self._numbers()])

    @property
    def key(self) -> str:
        """`student.300K.1bar`, in names of points and results; a negative pressure is `minus1bar`."""
        numbers = [text.replace(" ", "").replace("-", "minus") for text in self._numbers()]
        return ".".join([*([self.model] if self.model else []), *numbers])

    def without(self, name: str) -> Condition:
        """The same but for one of the fields."""
        return replace(self, **{name: None})

    def only(self, name: str) -> Condition:
        """Nothing but one of the fields."""
        return replace(Condition(None, None, None), **{name: getattr(self, name)})

    def _numbers(self) -> list[str]:
        known = [(self.temperature_K, "K"), (self.pressure_bar, "bar")]
        return [format_quantity(value, unit) for value, unit in known if value is not None]


class MdSweep(ComparedModels, Sweep):
    """Molecular dynamics under several conditions, and how what is measured depends on them."""

    points_judge = False  # md_sweep_results.py passes on what they judge, that of replicas together

    protocol: Literal["md-sweep"]
    temperatures: tuple[Annotated[Temperature, Field(gt=0.0)], ...] = Field(
        (), description="of the nvt and npt stages that name none"
    )
    pressures: tuple[Pressure, ...] = Field((), description="of the npt stages that name none")
    replicas: PositiveInt = Field(1, description="independent runs under each condition")
    stages: tuple[SweptStage, ...] = Field(min_length=1, description="one after the other, as of `md`")
    analyses: tuple[Analysis, ...] = Field((), description="as of `md`, of all replicas of a condition together")

    @model_validator(mode="after")
    def _something_varies(self) -> MdSweep:
        for name in ("temperatures", "pressures"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"`{name}` has {list(values)}; expected different ones. Leave the second out.")
        if not (self.temperatures or self.pressures or self.compare or self.replicas > 1):
            raise ValueError(
                "nothing varies; expected `temperatures`, `pressures`, `compare` or `replicas`. Give one, or use "
                "`protocol: md`."
            )
        return self

    @model_validator(mode="after")
    def _stages_take_what_varies(self) -> MdSweep:
        thermostats = [stage for stage in self.stages if isinstance(stage, SweptNvtStage | SweptNptStage)]
        free = [stage for stage in thermostats if stage.temperature is None]
        if free and not self.temperatures:
            raise ValueError(
                f"a stage of type {free[0].type} has no `temperature`, and the sweep no `temperatures`; expected one "
                "of them. Give it."
            )
        if self.temperatures and not free:
            raise ValueError(
                "`temperatures` are given, but no nvt or npt stage is without a `temperature`; expected one that takes "
                "them. Leave its `temperature` out."
            )
        if self.pressures and not any(isinstance(s, SweptNptStage) and s.pressure is None for s in thermostats):
            raise ValueError(
                "`pressures` are given, but no npt stage is without a `pressure`; expected one that takes them. Leave "
                "its `pressure` out, or add an npt stage."
            )
        return self

    def points(self) -> list[Point]:
        points = []
        for label, one in self.labelled.items():
            for temperature in self.temperatures or (None,):
                for pressure in self.pressures or (None,):
                    condition = Condition(label if self.compare else None, temperature, pressure)
                    stages = [_stage_at(stage, temperature, pressure) for stage in self.stages]
                    for replica in range(1, self.replicas + 1):
                        key = ".".join(filter(None, (condition.key, str(replica) if self.replicas > 1 else "")))
                        labels = {
                            "model": condition.model,
                            "temperature_K": temperature,
                            "pressure_bar": pressure,
                            "replica": replica if self.replicas > 1 else None,
                        }
                        known = {name: value for name, value in labels.items() if value is not None}
                        points.append(Point(key, one.md(key, stages, self.analyses), known))
        return points

    def conclude(self, points: Sequence[FinishedPoint], figures: Path) -> AnalysisOutput:
        from dpsim.protocols.md_sweep_results import conclude

        return conclude(self, points, figures)


def condition_of(point: FinishedPoint) -> Condition:
    """That of a point."""
    return Condition(*(point.labels.get(name) for name in ("model", "temperature_K", "pressure_bar")))


def _stage_at(stage: SweptStage, temperature: float | None, pressure: float | None) -> dict[str, Any]:
    """A stage of `md`, as in YAML, with what the point gives it."""
    keys = stage.model_dump(mode="json", exclude_none=True)
    if temperature is not None and stage.type in ("nvt", "npt"):
        keys.setdefault("temperature", format_quantity(temperature, "K"))
    if pressure is not None and stage.type == "npt":
        keys.setdefault("pressure", format_quantity(pressure, "bar"))
    return keys
