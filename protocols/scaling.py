"""Scaling: what a step costs in time and memory against the number of atoms, for one model or several.

How it is measured: scaling_run.py; what follows: scaling_results.py.
"""

from __future__ import annotations

from math import prod
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from dpsim.config import Memory, StrictModel, Temperature, Time, WallTime
from dpsim.protocols.schema import ComparedModels

Repeat = tuple[PositiveInt, PositiveInt, PositiveInt]


class ScalingRequirements(StrictModel):
    """What `model` must reach, with the most threads."""

    time_per_atom: WallTime | None = Field(None, gt=0.0, description="at most, of a step and atom of the largest size")
    exponent: float | None = Field(None, gt=0.0, description="at most, of the time: 1.1 is nearly linear")
    atoms: PositiveInt | None = Field(None, description="at least, in `memory`")


class ScalingProtocol(ComparedModels):
    """Time and memory of a step against the number of atoms."""

    protocol: Literal["scaling"]
    repeats: tuple[Repeat, ...] = Field(min_length=2, description="supercells: [a, b, c], or n for [n, n, n]")
    threads: tuple[PositiveInt, ...] = Field((1,), min_length=1, description="numbers of threads, each measured")
    timestep: Time = Field(0.5, gt=0.0, description="for ns/day")
    temperature: Temperature = Field(300.0, gt=0.0, description="of the velocities, which wear neighbour lists out")
    blocks: int = Field(5, ge=3, description="of steps, of which the median counts")
    block_seconds: float = Field(1.0, gt=0.0, description="wall time of a block, s; a step at least")
    slowest_step_seconds: float = Field(
        30.0, gt=0.0, description="wall time, s; sizes that would be slower, by the size before, are left out"
    )
    memory: Memory = Field(16.0, gt=0.0, description="how many atoms does it hold?")
    require: ScalingRequirements = Field(ScalingRequirements(), description="limits to be judged by")

    @field_validator("repeats", mode="before")
    @classmethod
    def _cubes(cls, value: Any) -> Any:
        """`2` is short for `[2, 2, 2]`."""
        return [[n] * 3 if isinstance(n, int) else n for n in value] if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _can_be_run(self) -> ScalingProtocol:
        if self.engine == "ipi":
            raise ValueError(
                "`engine` is ipi, whose processes could not be told apart; expected ase, lammps or openmm. Choose one."
            )
        for name, values in (("threads", self.threads), ("repeats", [*map(prod, self.repeats)])):
            if len(set(values)) < len(values):
                raise ValueError(f"`{name}` has {list(values)}; expected different numbers. Leave the second out.")
        return self

    @property
    def judged(self) -> str:
        """The series of measurements that `require` is about."""
        return self.series(self.label, max(self.threads))

    def series(self, label: str, threads: int) -> str:
        """Name of the measurements of a model with so many threads."""
        return f"{label}.{threads}threads" if len(self.threads) > 1 else label

    def ordered(self) -> list[Repeat]:
        """Small to large."""
        return sorted(self.repeats, key=prod)
