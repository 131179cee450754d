"""What a model is made of: the `model:` section of train.yaml and the config inside a model file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dpsim.config import StrictModel

Activation = Literal["tanh", "gelu", "gelu_tf", "relu", "relu6", "softplus", "sigmoid", "silu", "linear", "none"]
Precision = Literal["float32", "float64"]
TypePair = tuple[int, int]


class DescriptorConfig(StrictModel):
    """What every descriptor with a two-body environment matrix shares: all of them, but for the hybrid."""

    rcut: PositiveFloat = Field(6.0, description="cutoff radius, Angstrom")
    rcut_smth: Annotated[float, Field(ge=0)] = Field(0.5, description="where the switch starts to fall, Angstrom")
    neuron: list[PositiveInt] = Field([25, 50, 100], description="widths of the embedding net")
    activation: Activation = "tanh"
    resnet_dt: bool = Field(False, description="a trainable time step on each residual layer of the embedding net")
    exclude_types: list[TypePair] = Field([], description="pairs of type indices that do not see each other")
    env_protection: Annotated[float, Field(ge=0)] = Field(0.0, description="added to r in 1/r, Angstrom")

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
    sel: list[PositiveInt] | Literal["auto"] = Field(
        "auto", description="expected largest number of neighbours of each type: the normaliser is their sum"
    )
    type_one_side: bool = Field(False, description="one embedding net per neighbour type instead of per type pair")


class SeE2rConfig(DescriptorConfig):
    """DeepPot-SE of distances alone (`se_e2_r`)."""

    type: Literal["se_e2_r"] = "se_e2_r"
    sel: list[PositiveInt] | Literal["auto"] = Field(
        "auto", description="expected largest number of neighbours of each type: the normaliser is their sum"
    )
    type_one_side: bool = Field(False, description="one embedding net per neighbour type instead of per type pair")


class Dpa1Config(AngularConfig):
    """DPA-1: type embedding and gated self-attention over the neighbours (`se_atten`)."""

    type: Literal["dpa1"] = "dpa1"
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


class FittingConfig(StrictModel):
    """The net that maps a descriptor to an atomic energy."""

    neuron: list[PositiveInt] = Field([240, 240, 240], description="widths of the hidden layers")
    activation: Activation = "tanh"
    resnet_dt: bool = Field(True, description="a trainable time step on each residual layer")
    type_wise: bool | None = Field(
        None, description="one net per centre type; default: yes, but not where dpa1 embeds the types"
    )


class ModelConfig(StrictModel):
    """An energy model: descriptor, fitting net, elements, precision."""

    type_map: list[str] = Field(min_length=1, description="element symbols; types index into it")
    descriptor: Annotated[SeE2aConfig | SeE2rConfig | Dpa1Config | HybridConfig, Field(discriminator="type")]
    fitting: FittingConfig = Field(default_factory=FittingConfig)
    precision: Precision = "float32"
    atom_exclude_types: list[int] = Field([], description="types whose atoms carry no energy")
    pair_exclude_types: list[TypePair] = Field([], description="pairs of types that never are neighbours")
    core_distances: list[list[float]] | Literal["auto"] | None = Field(
        None,
        description="below these distances of each pair of types, Angstrom, a steep repulsion sets in; auto: the "
        "shortest ones in the training data",
    )
    deepmd_conventions: bool = Field(
        False, description="evaluate as DeePMD-kit does: cut the list at `sel`, let empty slots contribute"
    )

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        n = len(self.type_map)
        if len(set(self.type_map)) != n:
            raise ValueError(f"`type_map` is {self.type_map}; expected every element once.")
        for sel in (d.sel for d in self.descriptors):
            if isinstance(sel, list) and len(sel) != n:
                raise ValueError(f"`sel` is {sel}; expected one number for each of {self.type_map}.")
        core = self.core_distances
        if isinstance(core, list) and (
            [len(row) for row in core] != [n] * n or any(core[a][b] != core[b][a] for a in range(n) for b in range(n))
        ):
            raise ValueError(f"`core_distances` is {core}; expected a symmetric {n} x {n} table for {self.type_map}.")
        pairs = [*self.pair_exclude_types, *(p for d in self.descriptors for p in d.exclude_types)]
        bad = [t for t in [*self.atom_exclude_types, *(t for p in pairs for t in p)] if not 0 <= t < n]
        if bad:
            raise ValueError(f"excluded types are {bad}; expected indices into `type_map`, 0 to {n - 1}.")
        return self

    @property
    def descriptors(self) -> SingleConfigs:
        """The descriptor, or those of a hybrid."""
        return self.descriptor.list if isinstance(self.descriptor, HybridConfig) else [self.descriptor]
