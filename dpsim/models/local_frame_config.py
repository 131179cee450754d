"""Settings of the local frame descriptor (dpsim/models/descriptors/local_frame.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from dpsim.config import StrictModel
from dpsim.models.descriptor_config import Environment, Sel, Sphere, TypePair


class _Slots(Sphere):
    """The environment of a local frame."""

    rcut_smth: float = 0.0
    sel_by_type: ClassVar[bool] = True
    sel: list[int]


class LocalFrameConfig(StrictModel):
    """Coordinates in a local frame (`loc_frame`), the first Deep Potential: NOT smooth."""

    type: Literal["loc_frame"] = "loc_frame"
    embeds_types: ClassVar[bool] = False
    caveat: ClassVar[str] = (
        "the local frame (loc_frame) is not smooth: energies jump where neighbours exchange their order or cross the "
        "cutoff, and dynamics does not conserve energy. Use another descriptor for production."
    )
    rcut: PositiveFloat = Field(6.0, description="cutoff radius, Angstrom: neighbours vanish there")
    sel_a: list[NonNegativeInt] = Field(description="of each type: how many nearest neighbours with coordinates")
    sel_r: list[NonNegativeInt] = Field(description="of each type: how many next ones with their distance only")
    axis_rule: list[NonNegativeInt] | None = Field(
        None,
        description="for each type six numbers: class (0: of sel_a, 1: of sel_r), type and rank of both axis atoms; "
        "default: the two nearest atoms",
    )
    exclude_types: list[TypePair] = Field([], description="pairs of type indices that do not see each other")

    @property
    def environments(self) -> Sequence[Environment]:
        """Where it looks: for the numbers of neighbours."""
        return [_Slots(rcut=self.rcut, sel=[a + r for a, r in zip(self.sel_a, self.sel_r, strict=True)])]

    def with_sel(self, sels: Sequence[Sel]) -> Self:
        """The same: its slots are given, never counted."""
        return self

    @model_validator(mode="after")
    def _check(self) -> LocalFrameConfig:
        n = len(self.sel_a)
        if len(self.sel_r) != n or not sum(self.sel_a) or sum(self.sel_a) + sum(self.sel_r) < 2:
            raise ValueError(
                f"`sel_a` and `sel_r` are {self.sel_a} and {self.sel_r}; expected a number for each type in both, at "
                "least one in `sel_a` and two together."
            )
        rule = self.axis_rule
        if rule is None:
            return self
        axes = [rule[k : k + 3] for k in range(0, len(rule), 3)]
        if len(rule) != 6 * n or any(
            c > 1 or t >= n or rank >= (self.sel_r if c else self.sel_a)[t] for c, t, rank in axes
        ):
            raise ValueError(
                f"`axis_rule` is {rule}; expected six numbers for each of {n} types: class 0 or 1, type, and a rank "
                "below its `sel_a` or `sel_r`, for both axes."
            )
        return self
