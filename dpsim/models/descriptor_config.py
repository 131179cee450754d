"""Settings of descriptors: the `model.descriptor:` section of train.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, cast

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dpsim.config import StrictModel

Activation = Literal["tanh", "gelu", "gelu_tf", "relu", "relu6", "softplus", "sigmoid", "silu", "linear", "none"]
TypePair = tuple[int, int]
Sel = int | list[int]


class Environment(Protocol):
    """Where a descriptor looks: a cutoff, a switch and the number of neighbours that normalises its sums.

    `sel_by_type`: `sel` is a number for each type of neighbour, not one for all of them.
    """

    sel_by_type: bool

    @property
    def rcut(self) -> float: ...
    @property
    def rcut_smth(self) -> float: ...
    @property
    def sel(self) -> Any: ...  # Sel | Literal["auto"]


class DescriptorConfig(StrictModel):
    """What every descriptor with a two-body environment matrix shares: all of them, but for the hybrid."""

    rcut: PositiveFloat = Field(6.0, description="cutoff radius, Angstrom")
    rcut_smth: Annotated[float, Field(ge=0)] = Field(0.5, description="where the switch starts to fall, Angstrom")
    neuron: list[PositiveInt] = Field([25, 50, 100], description="widths of the embedding net")
    activation: Activation = "tanh"
    resnet_dt: bool = Field(False, description="a trainable time step on each residual layer of the embedding net")
    exclude_types: list[TypePair] = Field([], description="pairs of type indices that do not see each other")
    env_protection: Annotated[float, Field(ge=0)] = Field(0.0, description="added to r in 1/r, Angstrom")
    sel_by_type: ClassVar[bool] = False
    embeds_types: ClassVar[bool] = False  # so that one fitting net serves all types

    @property
    def environments(self) -> Sequence[Environment]:
        """What it looks at, in the order of the descriptor's `members`: statistics are taken of each."""
        return [cast(Environment, self)]

    def with_sel(self, sels: Sequence[Sel]) -> Self:
        """The same with a `sel` for each of its environments, where "auto" stood."""
        return self.model_copy(update={"sel": sels[0]})

    @model_validator(mode="after")
    def _check(self) -> DescriptorConfig:
        if self.rcut_smth >= self.rcut:
            raise ValueError(f"`rcut_smth` is {self.rcut_smth}; expected a number below `rcut` = {self.rcut}.")
        return self


class AngularConfig(DescriptorConfig):
    """What the descriptors D = A^T A[:, :M'] share, which see angles."""

    axis_neuron: PositiveInt = Field(16, description="columns M' of the second factor of the descriptor")

    @model_validator(mode="after")
    def _check_axis(self) -> AngularConfig:
        if self.axis_neuron > self.neuron[-1]:
            raise ValueError(
                f"`axis_neuron` is {self.axis_neuron}; expected at most the last width of `neuron`, {self.neuron[-1]}."
            )
        return self


class SeE2aConfig(AngularConfig):
    """DeepPot-SE built from two-body embeddings (`se_e2_a`)."""

    type: Literal["se_e2_a"] = "se_e2_a"
    sel_by_type: ClassVar[bool] = True
    sel: list[PositiveInt] | Literal["auto"] = Field(
        "auto", description="expected largest number of neighbours of each type: the normaliser is their sum"
    )
    type_one_side: bool = Field(False, description="one embedding net per neighbour type instead of per type pair")


class SeE2rConfig(DescriptorConfig):
    """DeepPot-SE of distances alone (`se_e2_r`)."""

    type: Literal["se_e2_r"] = "se_e2_r"
    sel_by_type: ClassVar[bool] = True
    sel: list[PositiveInt] | Literal["auto"] = Field(
        "auto", description="expected largest number of neighbours of each type: the normaliser is their sum"
    )
    type_one_side: bool = Field(False, description="one embedding net per neighbour type instead of per type pair")


class Dpa1Config(AngularConfig):
    """DPA-1: type embedding and gated self-attention over the neighbours (`se_atten`)."""

    type: Literal["dpa1"] = "dpa1"
    embeds_types: ClassVar[bool] = True
    sel: PositiveInt | Literal["auto"] = Field(
        "auto", description="expected largest number of neighbours: the normaliser of the sums"
    )
    tebd_dim: PositiveInt = Field(8, description="width of the type embedding")
    tebd_input_mode: Literal["concat", "strip"] = Field(
        "concat", description="concat: types enter the embedding net with s(r); strip: a second net gates it"
    )
    type_one_side: bool = Field(True, description="embed the neighbour's type only, not the centre's")
    concat_output_tebd: bool = Field(True, description="append the type embedding to the descriptor")
    use_econf_tebd: bool = Field(False, description="electron configuration instead of one-hot type input")
    use_tebd_bias: bool = False
    attn_layer: Annotated[int, Field(ge=0)] = Field(2, description="number of gated self-attention layers")
    attn: PositiveInt = Field(128, description="hidden width of the attention")
    attn_dotr: bool = Field(True, description="gate the attention by the cosine of the angle j-i-k")
    normalize: bool = Field(True, description="normalise queries, keys and values")
    scaling_factor: PositiveFloat = 1.0
    temperature: float | None = Field(None, description="factor on q.k; default (attn * scaling_factor)^-1/2")
    ln_eps: PositiveFloat = 1e-5
    smooth: bool = Field(True, description="weight attention and gates by the switch, so that energies are smooth")


SingleConfig = Annotated[SeE2aConfig | SeE2rConfig | Dpa1Config, Field(discriminator="type")]
SingleConfigs = list[SingleConfig]  # spelled out here: in the class below `list` is a key


class HybridConfig(StrictModel):
    """Several descriptors side by side, each with its own cutoff and settings (`hybrid`)."""

    type: Literal["hybrid"] = "hybrid"
    list: Annotated[SingleConfigs, Field(min_length=1, description="the descriptors, each with a `type`")]

    @property
    def rcut(self) -> float:
        """The largest cutoff, A."""
        return max(member.rcut for member in self.list)

    @property
    def embeds_types(self) -> bool:
        """Whether any of its members does."""
        return any(member.embeds_types for member in self.list)

    @property
    def exclude_types(self) -> Sequence[TypePair]:
        """Of all members."""
        return [pair for member in self.list for pair in member.exclude_types]

    @property
    def environments(self) -> Sequence[Environment]:
        """Those of its members, one after another."""
        return [environment for member in self.list for environment in member.environments]

    def with_sel(self, sels: Sequence[Sel]) -> Self:
        """The same with a `sel` for each of its environments."""
        members, rest = [], [*sels]
        for member in self.list:
            n = len(member.environments)
            members.append(member.with_sel(rest[:n]))
            rest = rest[n:]
        return self.model_copy(update={"list": members})


AnyDescriptorConfig = Annotated[SeE2aConfig | SeE2rConfig | Dpa1Config | HybridConfig, Field(discriminator="type")]
