"""What a student is made of: the config inside its file, checked strictly. The equations are in docs/students.md."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from dpsim.config import StrictModel
from dpsim.models.config import Precision
from dpsim.models.descriptor_config import Activation, TypePair

# Bounds that no student comes near: they keep the arithmetic on shapes of a hostile file within 64 bits.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Index = Annotated[int, Field(ge=0, le=1_000_000)]


class PartConfig(StrictModel):
    """One descriptor: a table of its embedding for each pair of types, and how it is contracted."""

    kind: Literal["angular", "radial"]
    rcut: PositiveFloat = Field(description="cutoff radius, Angstrom")
    rcut_smth: NonNegativeFloat = Field(description="where the switch starts to fall, Angstrom")
    protection: NonNegativeFloat = Field(description="added to r in 1/r, Angstrom")
    step: PositiveFloat = Field(description="distance of the table's nodes, Angstrom")
    n_intervals: Count = Field(description="nodes lie at r_min + k step, k = 0 to n_intervals: the last at rcut")
    width: Count = Field(description="functions of r in the table of one pair of types")
    channels: Count = Field(description="columns of the contraction")
    axis: Index = Field(description="rows of the Gram matrix that are features; 0 where radial")
    channel_offset: list[Index] = Field(description="the first channel of each neighbour type")
    slots: Literal["none", "per_type", "shared"] = Field(
        description="how empty neighbour slots count (imported models)"
    )
    sel: list[Count] = Field(description="the slots: one number for each type, one for all, or none")
    n_listed: Index = Field(0, description="neighbours of the list that `sel` is taken from; 0: sum(sel)")
    excluded: list[TypePair] = Field(description="pairs of types that do not see each other in this part")
    excluded_counted: bool = Field(description="whether such pairs occupy slots")

    @property
    def n_features(self) -> int:
        """Numbers that the fitting nets are given by this part."""
        return self.channels if self.kind == "radial" else self.axis * self.channels - self.axis * (self.axis - 1) // 2

    @model_serializer(mode="wrap")
    def _without_default(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`n_listed` is written where it matters only: for hybrids imported from DeePMD-kit."""
        return {key: value for key, value in write(self).items() if key != "n_listed" or value}

    @model_validator(mode="after")
    def _check(self) -> PartConfig:
        if self.rcut_smth >= self.rcut:
            raise ValueError(f"`rcut_smth` is {self.rcut_smth}; expected a number below `rcut` = {self.rcut}.")
        if any(o + self.width > self.channels for o in self.channel_offset):
            raise ValueError(
                f"`channel_offset` is {self.channel_offset}; expected `width` = {self.width} channels of "
                f"{self.channels} from each on."
            )
        if not (self.axis == 0 if self.kind == "radial" else 1 <= self.axis <= self.channels):
            raise ValueError(f"`axis` is {self.axis}; expected 0 where radial, else 1 to {self.channels}.")
        return self


class LayerConfig(StrictModel):
    """One hidden layer of the fitting nets, y = act(x W + b) * idt + `residual` copies of x."""

    n_in: Count
    n_out: Count
    activation: Activation
    residual: Literal[0, 1, 2]
    idt: bool
    bias: bool

    @model_validator(mode="after")
    def _check(self) -> LayerConfig:
        if self.residual and self.n_out != self.residual * self.n_in:
            raise ValueError(f"`residual` is {self.residual} from {self.n_in} to {self.n_out}; expected 0, or a match.")
        return self


class StudentConfig(StrictModel):
    """A student: its parts, the layers of its fitting nets (one net per centre type, all alike), its elements."""

    type_map: Annotated[list[str], Field(min_length=1, max_length=128)]
    precision: Precision = Field(description="what it computes in unless asked otherwise; its file holds float64")
    r_min: PositiveFloat = Field(description="where the tables begin, Angstrom")
    parts: Annotated[list[PartConfig], Field(min_length=1, max_length=16)]
    fitting: Annotated[list[LayerConfig], Field(min_length=1, max_length=64)]
    core_distances: list[list[float]] | None
    atom_exclude_types: list[Index]
    pair_exclude_types: list[TypePair]

    @property
    def rcut(self) -> float:
        """The largest cutoff, A."""
        return max(part.rcut for part in self.parts)

    @model_validator(mode="after")
    def _check(self) -> StudentConfig:
        n = len(self.type_map)
        if len(set(self.type_map)) != n:
            raise ValueError(f"`type_map` is {self.type_map}; expected every element once.")
        for part in self.parts:
            if len(part.channel_offset) != n:
                raise ValueError(f"`channel_offset` is {part.channel_offset}; expected one number for each type.")
            if len(part.sel) != {"none": 0, "per_type": n, "shared": 1}[part.slots]:
                raise ValueError(f"`sel` is {part.sel}; expected as many numbers as `slots` = {part.slots} needs.")
            if abs(self.r_min + part.n_intervals * part.step - part.rcut) > 1e-9:
                raise ValueError(
                    f"a table runs from {self.r_min} in {part.n_intervals} steps of {part.step}; expected to end at "
                    f"`rcut` = {part.rcut}."
                )
        widths = [sum(part.n_features for part in self.parts), *(layer.n_out for layer in self.fitting)]
        if any(layer.n_in != width for layer, width in zip(self.fitting, widths, strict=False)):
            raise ValueError(f"`n_in` of the layers are {[x.n_in for x in self.fitting]}; expected {widths[:-1]}.")
        core = self.core_distances
        if core is not None and (
            [len(row) for row in core] != [n] * n or any(core[a][b] != core[b][a] for a in range(n) for b in range(n))
        ):
            raise ValueError(f"`core_distances` is {core}; expected a symmetric {n} x {n} table for {self.type_map}.")
        pairs = [*self.pair_exclude_types, *(p for part in self.parts for p in part.excluded)]
        bad = [t for t in [*self.atom_exclude_types, *(t for p in pairs for t in p)] if not 0 <= t < n]
        if bad:
            raise ValueError(f"excluded types are {bad}; expected indices into `type_map`, 0 to {n - 1}.")
        return self
