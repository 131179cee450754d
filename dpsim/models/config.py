"""What a model is made of: the `model:` section of train.yaml and the config inside a model file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from dpsim.config import StrictModel
from dpsim.models.descriptor_config import Activation, AnyDescriptorConfig, TypePair
from dpsim.models.local_frame_config import LocalFrameConfig
from dpsim.models.pair_table_config import PairTableConfig

Precision = Literal["float32", "float64"]


class FittingConfig(StrictModel):
    """The net that maps a descriptor to an atomic energy."""

    neuron: list[PositiveInt] = Field([240, 240, 240], description="widths of the hidden layers")
    activation: Activation = "tanh"
    resnet_dt: bool = Field(True, description="a trainable time step on each residual layer")
    type_wise: bool | None = Field(
        None, description="one net per centre type; default: yes, but not where dpa1 embeds the types"
    )
    numb_fparam: NonNegativeInt = Field(
        0, description="numbers that each frame comes with, such as an electronic temperature"
    )
    numb_aparam: NonNegativeInt = Field(0, description="numbers that each atom comes with")
    default_fparam: list[float] | None = Field(None, description="the parameters of frames that come without")
    dim_case_embd: NonNegativeInt = Field(
        0, description="length of the code of a data set, of models that learned from several"
    )

    @model_validator(mode="after")
    def _check(self) -> FittingConfig:
        if self.default_fparam is not None and len(self.default_fparam) != self.numb_fparam:
            raise ValueError(
                f"`default_fparam` is {self.default_fparam}; expected `numb_fparam` = {self.numb_fparam} numbers."
            )
        return self


class ModelConfig(StrictModel):
    """An energy model: descriptor, fitting net, elements, precision."""

    type_map: list[str] = Field(min_length=1, description="element symbols; types index into it")
    descriptor: Annotated[AnyDescriptorConfig | LocalFrameConfig, Field(discriminator="type")]
    fitting: FittingConfig = Field(default_factory=FittingConfig)
    precision: Precision = "float32"
    atom_exclude_types: list[int] = Field([], description="types whose atoms carry no energy")
    pair_exclude_types: list[TypePair] = Field([], description="pairs of types that never are neighbours")
    core_distances: list[list[float]] | Literal["auto"] | None = Field(
        None,
        description="below these distances of each pair of types, Angstrom, a steep repulsion sets in; auto: a "
        "little below the shortest ones in the training data",
    )
    pair_table: PairTableConfig | None = Field(
        None, description="a pair potential, such as `{table: zbl}`, that takes over where atoms come close"
    )
    deepmd_conventions: bool = Field(
        False, description="evaluate as DeePMD-kit does: cut the list at `sel`, let empty slots contribute"
    )

    @property
    def caveat(self) -> str:
        """What everybody who uses such a model must know; "" where there is nothing."""
        return self.descriptor.caveat if isinstance(self.descriptor, LocalFrameConfig) else ""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        n = len(self.type_map)
        if len(set(self.type_map)) != n:
            raise ValueError(f"`type_map` is {self.type_map}; expected every element once.")
        for sel in (e.sel for e in self.descriptor.environments):
            if isinstance(sel, list) and len(sel) != n:
                raise ValueError(f"`sel` is {sel}; expected one number for each of {self.type_map}.")
        core = self.core_distances
        if isinstance(core, list) and (
            [len(row) for row in core] != [n] * n or any(core[a][b] != core[b][a] for a in range(n) for b in range(n))
        ):
            raise ValueError(f"`core_distances` is {core}; expected a symmetric {n} x {n} table for {self.type_map}.")
        if self.pair_table is not None:
            if core is not None:
                raise ValueError(
                    f"`core_distances` is {core} beside a `pair_table`; expected one of the two. Remove one."
                )
            self.pair_table.check_reach(self.pair_table.rcut or self.descriptor.rcut)
        pairs = [*self.pair_exclude_types, *self.descriptor.exclude_types]
        bad = [t for t in [*self.atom_exclude_types, *(t for p in pairs for t in p)] if not 0 <= t < n]
        if bad:
            raise ValueError(f"excluded types are {bad}; expected indices into `type_map`, 0 to {n - 1}.")
        return self
