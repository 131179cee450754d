"""Settings of descriptors: the `model.descriptor:` section of train.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, cast

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dpsim.config import StrictModel

Activation = (
    Literal["tanh", "gelu", "gelu_tf", "relu", "relu6", "softplus", "sigmoid", "silu", "linear", "none"]
    | Annotated[str, Field(pattern=r"^silut(:\d+(\.\d*)?)?$")]  # silut:T, with its threshold
)
TypePair = tuple[int, int]
Sel = int | list[int]


class Environment(Protocol):
    """Where a descriptor looks: a cutoff, a switch and the number of neighbours that normalises its sums.

    `sel_by_type`: `sel` is a number for each type of neighbour, not one for all of them.
    """

    sel_by_type: ClassVar[bool]

    @property
    def rcut(self) -> float: ...
    @property
    def rcut_smth(self) -> float: ...
    @property
    def sel(self) -> Any: ...  # Sel | Literal["auto"]


class Sphere(StrictModel):
    """A cutoff and its switch."""

    rcut: PositiveFloat = Field(6.0, description="cutoff radius, Angstrom")
    rcut_smth: Annotated[float, Field(ge=0)] = Field(0.5, description="where the switch starts to fall, Angstrom")
    sel_by_type: ClassVar[bool] = False

    @model_validator(mode="after")
    def _check(self) -> Sphere:
        if self.rcut_smth >= self.rcut:
            raise ValueError(f"`rcut_smth` is {self.rcut_smth}; expected a number below `rcut` = {self.rcut}.")
        return self


class DescriptorConfig(Sphere):
    """What every descriptor with one two-body environment matrix shares."""

    neuron: list[PositiveInt] = Field([25, 50, 100], description="widths of the embedding net")
    activation: Activation = "tanh"
    resnet_dt: bool = Field(False, description="a trainable time step on each residual layer of the embedding net")
    exclude_types: list[TypePair] = Field([], description="pairs of type indices that do not see each other")
    env_protection: Annotated[float, Field(ge=0)] = Field(0.0, description="added to r in 1/r, Angstrom")
    embeds_types: ClassVar[bool] = False  # so that one fitting net serves all types

    @property
    def environments(self) -> Sequence[Environment]:
        """What it looks at, in the order of the descriptor's `members`: statistics are taken of each."""
        return [cast(Environment, self)]

    def with_sel(self, sels: Sequence[Sel]) -> Self:
        """The same with a `sel` for each of its environments, where "auto" stood."""
        return self.model_copy(update={"sel": sels[0]})


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


class SeE3Config(DescriptorConfig):
    """Three-body embeddings of the angles between neighbours (`se_e3`)."""

    type: Literal["se_e3"] = "se_e3"
    sel_by_type: ClassVar[bool] = True
    neuron: list[PositiveInt] = Field([10, 20, 40], description="widths of the embedding net")
    sel: list[PositiveInt] | Literal["auto"] = Field(
        "auto",
        description="expected largest number of neighbours of each type: sums over pairs are divided by products",
    )


class SeE3TebdConfig(DescriptorConfig):
    """Three-body embeddings with type embedding (`se_e3_tebd`)."""

    type: Literal["se_e3_tebd"] = "se_e3_tebd"
    embeds_types: ClassVar[bool] = True
    neuron: list[PositiveInt] = Field([10, 20, 40], description="widths of the embedding net")
    sel: PositiveInt | Literal["auto"] = Field(
        "auto", description="expected largest number of neighbours: the sum over pairs is divided by its square"
    )
    tebd_dim: PositiveInt = Field(8, description="width of the type embedding")
    tebd_input_mode: Literal["concat", "strip"] = Field(
        "concat", description="concat: types enter the embedding net with the angle; strip: a second net gates it"
    )
    concat_output_tebd: bool = Field(True, description="append the type embedding to the descriptor")
    use_econf_tebd: bool = Field(False, description="electron configuration instead of one-hot type input")
    use_tebd_bias: bool = False
    smooth: bool = Field(True, description="weight the gate by the switches of both neighbours")


class RepinitConfig(Sphere):
    """The first part of DPA-2, a DPA-1 without attention: what an atom knows before messages pass."""

    sel: PositiveInt | Literal["auto"] = Field(
        "auto", description="expected largest number of neighbours: the normaliser of the sums"
    )
    neuron: list[PositiveInt] = Field([25, 50, 100], description="widths of the embedding net")
    axis_neuron: PositiveInt = Field(16, description="columns M' of the second factor of the descriptor")
    activation: Activation = "tanh"
    resnet_dt: bool = Field(False, description="a trainable time step on each residual layer of the embedding net")
    tebd_dim: PositiveInt = Field(8, description="width of the type embedding")
    tebd_input_mode: Literal["concat", "strip"] = Field(
        "concat", description="concat: types enter the embedding net with s(r); strip: a second net gates it"
    )
    type_one_side: bool = Field(False, description="embed the neighbour's type only, not the centre's")


class ThreeBodyConfig(Sphere):
    """The three-body part of DPA-2's repinit; what is not here is as in `repinit`."""

    rcut: PositiveFloat = Field(4.0, description="cutoff radius, Angstrom")
    sel: PositiveInt | Literal["auto"] = Field(
        "auto", description="expected largest number of neighbours: the sum over pairs is divided by its square"
    )
    neuron: list[PositiveInt] = Field([2, 4, 8], description="widths of the embedding net of an angle")


class RepformerConfig(Sphere):
    """The layers of DPA-2 in which messages pass: f lives on atoms, g and h on pairs."""

    rcut: PositiveFloat = Field(4.0, description="cutoff radius, Angstrom")
    sel: PositiveInt | Literal["auto"] = Field(
        "auto", description="expected largest number of neighbours: the normaliser of the sums"
    )
    nlayers: PositiveInt = 3
    g1_dim: PositiveInt = Field(128, description="width of f, the representation of an atom")
    g2_dim: PositiveInt = Field(16, description="width of g, the invariant representation of a pair")
    axis_neuron: PositiveInt = Field(4, description="columns of the second factor of the symmetrisation")
    direct_dist: bool = Field(
        False, description="g, h start from r/rcut and its vector, not from the environment matrix"
    )
    update_g1_has_conv: bool = Field(True, description="f: convolution, neighbours' f times g")
    update_g1_has_drrd: bool = Field(True, description="f: symmetrisation of the neighbours' f with h")
    update_g1_has_grrg: bool = Field(True, description="f: symmetrisation of g with h")
    update_g1_has_attn: bool = Field(True, description="f: attention to the neighbours' f")
    update_g2_has_g1g1: bool = Field(True, description="g: product of the two atoms' f")
    update_g2_has_attn: bool = Field(True, description="g: attention among the pairs of an atom, gated by angles")
    update_h2: bool = Field(False, description="update h with the attention weights of g")
    attn1_hidden: PositiveInt = Field(64, description="hidden width of a head of the attention of f")
    attn1_nhead: PositiveInt = 4
    attn2_hidden: PositiveInt = Field(16, description="hidden width of a head of the attention of g")
    attn2_nhead: PositiveInt = 4
    attn2_has_gate: bool = Field(False, description="gate the logits of the attention of g by h.h too")
    activation: Activation = "tanh"
    update_style: Literal["res_avg", "res_incr", "res_residual"] = Field(
        "res_avg", description="how updates are added: averaged, as increments, or each with a trained vector"
    )
    update_residual: Annotated[float, Field(ge=0)] = Field(0.001, description="initial size of the trained vectors")
    update_residual_init: Literal["norm", "const"] = Field("norm", description="random with that size, or equal to it")
    trainable_ln: bool = Field(True, description="train shift and scale of the layer norm of g's attention")
    ln_eps: PositiveFloat = 1e-5
    use_sqrt_nnei: bool = Field(True, description="divide symmetrised sums by sqrt(sel), not by sel")
    g1_out_conv: bool = Field(True, description="add the convolution itself, not through the layer on all channels")
    g1_out_mlp: bool = Field(True, description="add a layer of f itself, not f through the layer on all channels")

    @model_validator(mode="after")
    def _check_axis(self) -> RepformerConfig:
        widths = [self.g1_dim] * self.update_g1_has_drrd + [self.g2_dim] * self.update_g1_has_grrg
        if self.axis_neuron > min(widths, default=self.axis_neuron):
            raise ValueError(
                f"`axis_neuron` is {self.axis_neuron}; expected at most `g1_dim` and `g2_dim`, {min(widths)} here."
            )
        if not (widths or not self.g1_out_mlp or (self.update_g1_has_conv and not self.g1_out_conv)):
            raise ValueError(
                "`update_g1_has_grrg` and `update_g1_has_drrd` are both false and nothing else enters the layer on all "
                "channels; expected one of them, `g1_out_mlp: false`, or a convolution with `g1_out_conv: false`."
            )
        return self


class Dpa2Config(StrictModel):
    """DPA-2: a repinit, optionally with three-body terms, and repformer layers that pass messages (`dpa2`)."""

    type: Literal["dpa2"] = "dpa2"
    embeds_types: ClassVar[bool] = True
    repinit: RepinitConfig = Field(default_factory=RepinitConfig)
    three_body: ThreeBodyConfig | None = Field(None, description="three-body terms in the repinit; none without it")
    repformer: RepformerConfig = Field(default_factory=RepformerConfig)
    concat_output_tebd: bool = Field(True, description="append the type embedding to the descriptor")
    add_tebd_to_repinit_out: bool = Field(False, description="add a linear map of the type embedding to the repinit")
    use_econf_tebd: bool = Field(False, description="electron configuration instead of one-hot type input")
    use_tebd_bias: bool = False
    smooth: bool = Field(
        True, description="weight sums, attention and gates by the switch, so that energies are smooth"
    )
    exclude_types: list[TypePair] = Field([], description="pairs of type indices that do not see each other")
    env_protection: Annotated[float, Field(ge=0)] = Field(0.0, description="added to r in 1/r, Angstrom")

    @property
    def rcut(self) -> float:
        """The largest cutoff, A: that of the repinit."""
        return self.repinit.rcut

    @property
    def environments(self) -> Sequence[Environment]:
        """Repinit, its three-body part if there is one, repformer."""
        return [part for part in (self.repinit, self.three_body, self.repformer) if part is not None]

    def with_sel(self, sels: Sequence[Sel]) -> Self:
        """The same with a `sel` for each of its environments."""
        names = [name for name in ("repinit", "three_body", "repformer") if getattr(self, name) is not None]
        parts = zip(names, sels, strict=True)
        return self.model_copy(update={k: getattr(self, k).model_copy(update={"sel": sel}) for k, sel in parts})

    @property
    def repinit_descriptor(self) -> Dpa1Config:
        """The repinit as the DPA-1 that it is."""
        return Dpa1Config(attn_layer=0, concat_output_tebd=False, **self._shared(), **self.repinit.model_dump())

    @property
    def three_body_descriptor(self) -> SeE3TebdConfig | None:
        """The three-body part as a descriptor of its own."""
        if self.three_body is None:
            return None
        as_repinit = self.repinit.model_dump(include={"activation", "resnet_dt", "tebd_dim", "tebd_input_mode"})
        return SeE3TebdConfig(concat_output_tebd=False, **self._shared(), **as_repinit, **self.three_body.model_dump())

    def _shared(self) -> dict[str, Any]:
        return self.model_dump(include={"use_econf_tebd", "use_tebd_bias", "smooth", "exclude_types", "env_protection"})

    @model_validator(mode="after")
    def _check_parts(self) -> Dpa2Config:
        for name in ("three_body", "repformer"):
            part = getattr(self, name)
            if part is not None and part.rcut > self.repinit.rcut:
                raise ValueError(
                    f"`{name}.rcut` is {part.rcut}; expected at most `repinit.rcut` = {self.repinit.rcut}."
                )
        if self.repinit.axis_neuron > self.repinit.neuron[-1]:
            raise ValueError(
                f"`repinit.axis_neuron` is {self.repinit.axis_neuron}; expected at most the last width of "
                f"`repinit.neuron`, {self.repinit.neuron[-1]}."
            )
        return self


class Reach(Sphere):
    """A cutoff, its switch, and the number of neighbours inside that normalises sums over them."""

    sel: PositiveInt | Literal["auto"]


class Dpa3Config(StrictModel):
    """DPA-3: messages on a series of line graphs, of atoms, pairs, angles, and dihedrals (`dpa3`).

    Defaults are the paper's (Table S-6), with a switch that is smooth at the cutoff: the exponential one with
    `rcut_smth` 5.3 and 3.5 falls where the polynomial one does with 4.4 and 2.9.
    """

    type: Literal["dpa3"] = "dpa3"
    embeds_types: ClassVar[bool] = True
    nlayers: PositiveInt = 6
    order: Literal[1, 2, 3] = Field(2, description="1: messages along pairs; 2: also along angles; 3: dihedrals too")
    n_dim: PositiveInt = Field(128, description="width of the features of an atom, and of the type embedding")
    e_dim: PositiveInt = Field(64, description="width of the features of a pair")
    a_dim: PositiveInt = Field(32, description="width of the features of an angle")
    d_dim: PositiveInt = Field(32, description="width of the features of a dihedral")
    e_rcut: PositiveFloat = Field(6.0, description="cutoff of pairs, Angstrom")
    e_rcut_smth: PositiveFloat = Field(4.4, description="where their switch starts to fall, Angstrom")
    e_sel: PositiveInt | Literal["auto"] = Field(
        "auto", description="expected largest number of neighbours: the normaliser of sums over pairs"
    )
    a_rcut: PositiveFloat = Field(4.0, description="cutoff of the pairs that form angles, Angstrom")
    a_rcut_smth: PositiveFloat = Field(2.9, description="where their switch starts to fall, Angstrom")
    a_sel: PositiveInt | Literal["auto"] = Field("auto", description="the same number within `a_rcut`")
    d_rcut: PositiveFloat = Field(2.8, description="cutoff of the pairs that form dihedrals, Angstrom")
    d_rcut_smth: PositiveFloat = Field(2.0, description="where their switch starts to fall, Angstrom")
    d_sel: PositiveInt | Literal["auto"] = Field("auto", description="the same number within `d_rcut`")
    switch: Literal["polynomial", "exponential"] = Field(
        "polynomial", description="exponential: the paper's, which leaves a step of 1e-6 of an edge at the cutoff"
    )
    axis_neuron: PositiveInt = Field(4, description="columns of the second factor of the symmetrisation")
    n_multi_edge_message: PositiveInt = Field(1, description="messages along a pair, each with a step of its own")
    a_compress_rate: Annotated[int, Field(ge=0)] = Field(
        1, description="c: an angle reads a_dim/c numbers of the atom, half as many of each pair; 0: it reads all"
    )
    a_compress_e_rate: PositiveInt = Field(2, description="times as many of each pair")
    a_compress_use_split: bool = Field(True, description="the first numbers of each; false: linear maps of all")
    edge_init_use_dist: bool = Field(True, description="pairs start from r; false: from the standardised w(r)/r")
    smooth_edge_update: bool = Field(
        True, description="pairs without angles get no message of angles; false: their own features in its place"
    )
    use_dynamic_sel: bool = Field(False, description="normalise by `sel` / `sel_reduce_factor`")
    sel_reduce_factor: PositiveFloat = 10.0
    activation: Activation = "silut:10.0"
    update_style: Literal["res_avg", "res_incr", "res_residual"] = Field(
        "res_residual", description="how updates are added: averaged, as increments, or each with a trained vector"
    )
    update_residual: Annotated[float, Field(ge=0)] = Field(0.1, description="initial size of the trained vectors")
    update_residual_init: Literal["norm", "const"] = Field("const", description="random with that size, or equal to it")
    fix_stat_std: Annotated[float, Field(ge=0)] = Field(
        0.3, description="the standard deviation of environment rows; 0: that of the data"
    )
    use_econf_tebd: bool = Field(False, description="electron configuration instead of one-hot type input")
    use_tebd_bias: bool = False
    concat_output_tebd: bool = Field(False, description="append the type embedding to the descriptor")
    exclude_types: list[TypePair] = Field([], description="pairs of type indices that do not see each other")
    env_protection: Annotated[float, Field(ge=0)] = Field(0.0, description="added to r in 1/r, Angstrom")

    @property
    def rcut(self) -> float:
        """The largest cutoff, A: that of pairs."""
        return self.e_rcut

    @property
    def environments(self) -> Sequence[Reach]:
        """Where it looks for pairs, for angles and for dihedrals."""
        return [
            Reach(**{key: getattr(self, f"{graph}_{key}") for key in ("rcut", "rcut_smth", "sel")})
            for graph in "ead"[: self.order]
        ]

    def with_sel(self, sels: Sequence[Sel]) -> Self:
        """The same with a `sel` for each of its environments."""
        named = zip("ead"[: self.order], sels, strict=True)
        return self.model_copy(update={f"{graph}_sel": sel for graph, sel in named})

    @property
    def compressed(self) -> tuple[int, int]:
        """How many numbers of an atom and of a pair enter an angle."""
        if self.a_compress_rate == 0:
            return self.n_dim, self.e_dim
        c = self.a_compress_rate
        return self.a_dim // c, self.a_dim // (2 * c) * self.a_compress_e_rate

    @model_validator(mode="after")
    def _check_reach(self) -> Dpa3Config:
        above = float("inf"), ""
        for graph in "ead"[: self.order]:
            rcut, smth = getattr(self, f"{graph}_rcut"), getattr(self, f"{graph}_rcut_smth")
            if smth >= rcut:
                raise ValueError(f"`{graph}_rcut_smth` is {smth}; expected a number below `{graph}_rcut` = {rcut}.")
            if rcut > above[0]:
                raise ValueError(f"`{graph}_rcut` is {rcut}; expected at most `{above[1]}` = {above[0]}.")
            above = rcut, f"{graph}_rcut"
        return self

    @model_validator(mode="after")
    def _check_widths(self) -> Dpa3Config:
        c = self.a_compress_rate
        if c and (self.a_dim * self.a_compress_e_rate) % (2 * c):
            raise ValueError(
                f"`a_compress_rate` is {c}; expected one that makes a_dim * a_compress_e_rate / (2 * a_compress_rate) "
                f"a whole number, with {self.a_dim} and {self.a_compress_e_rate}."
            )
        n, e = self.compressed
        if self.order > 1 and self.a_compress_use_split and (n > self.n_dim or e > self.e_dim):
            raise ValueError(
                f"`a_compress_use_split` takes the first {n} numbers of an atom and {e} of a pair; expected at most "
                f"`n_dim` = {self.n_dim} and `e_dim` = {self.e_dim}. Raise `a_compress_rate`."
            )
        if self.axis_neuron > min(self.n_dim, self.e_dim):
            raise ValueError(
                f"`axis_neuron` is {self.axis_neuron}; expected at most `n_dim` and `e_dim`, "
                f"{min(self.n_dim, self.e_dim)} here."
            )
        return self


SingleConfig = Annotated[
    SeE2aConfig | SeE2rConfig | SeE3Config | SeE3TebdConfig | Dpa1Config | Dpa2Config, Field(discriminator="type")
]
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


AnyDescriptorConfig = Annotated[SingleConfig | Dpa3Config | HybridConfig, Field(discriminator="type")]
