"""Settings of a tabulated pair potential: the `model.pair_table:` section of train.yaml, and of a table on its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dpsim.config import FilePath, StrictModel
from dpsim.models.descriptor_config import TypePair

_DECAY = 20  # exp(-20) = 2e-9: what the softmin may jump by at the cutoff


class Grid(StrictModel):
    """The knots r_min + k step, k = 0 .. n_intervals, of a table whose numbers are in the model."""

    r_min: PositiveFloat = Field(description="A")
    step: PositiveFloat = Field(description="A")
    n_intervals: PositiveInt


class TableConfig(StrictModel):
    """A pair potential u(r) for each pair of types, and where it ends."""

    table: Literal["zbl"] | Grid | FilePath = Field(
        "zbl",
        description="zbl: the universal screened nuclear repulsion; or a text file of r and u for each pair of types",
    )
    rcut: PositiveFloat | None = Field(None, description="where u ends, Angstrom; default: the descriptor's cutoff")
    sel: PositiveInt | None = Field(None, description="with deepmd_conventions: only so many nearest neighbours count")


class PairTableConfig(TableConfig):
    """A pair potential that takes over from the network where atoms come close."""

    sw_rmin: PositiveFloat = Field(0.5, description="all of it where the nearest neighbour is closer, Angstrom")
    sw_rmax: PositiveFloat = Field(1.0, description="nothing of it where the nearest neighbour is farther, Angstrom")
    smin_alpha: PositiveFloat = Field(0.1, description="width of the soft minimum over the distances, Angstrom")

    @model_validator(mode="after")
    def _check(self) -> PairTableConfig:
        if self.sw_rmin >= self.sw_rmax:
            raise ValueError(f"`sw_rmin` is {self.sw_rmin}; expected a number below `sw_rmax` = {self.sw_rmax}.")
        return self

    def check_reach(self, rcut: float) -> None:
        """Raise ValueError if neighbours at the cutoff rcut (A) move the soft minimum where it matters."""
        if self.sw_rmax + _DECAY * self.smin_alpha > rcut:
            raise ValueError(
                f"`sw_rmax` + {_DECAY} `smin_alpha` is {self.sw_rmax + _DECAY * self.smin_alpha:g}; expected at most "
                f"the cutoff, {rcut:g}, or energies jump there. Lower one of them."
            )


class PairPotentialConfig(TableConfig):
    """A tabulated pair potential on its own: a member of linear combinations."""

    kind: Literal["pair_potential"] = "pair_potential"
    type_map: list[str] = Field(min_length=1, description="element symbols; types index into it")
    rcut: PositiveFloat = Field(6.0, description="where u ends, Angstrom")
    precision: Literal["float32", "float64"] = "float64"
    pair_exclude_types: list[TypePair] = Field([], description="pairs of types that never are neighbours")
    deepmd_conventions: bool = Field(False, description="cut the list of neighbours at `sel`, as DeePMD-kit does")
