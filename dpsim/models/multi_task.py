"""A model that learned from several data sets at once: one descriptor, and of each set a head.

    separate:  E_i = fit^s_{t_i}(D_i) + bias^s[t_i]              of head s, with nets of its own
    encoded:   E_i = fit_{t_i}(D_i, c^s) + bias^s[t_i]           one net for all, c^s the one-hot code of the set

Every head is a plain `EnergyModel`, whose descriptor (and, encoded, whose nets) are those of the others too. All count
types in one type_map. A head loaded from a file (`load_model("file.dpsim:head")`) is an EnergyModel like any other.
Source: Zhang et al., DPA-2, npj Comput. Mater. 10, 293 (2024), Methods, "Multi-task pre-training"; the code: DPA-3,
arXiv 2506.01686, Eq. 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, StringConstraints, model_validator
from torch import Tensor, nn

from dpsim.config import StrictModel
from dpsim.errors import ModelFileError, did_you_mean
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel

HeadName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
Sharing = Literal["separate", "encoded"]


class MultiTaskConfig(StrictModel):
    """What the heads have in common, and their names."""

    model: ModelConfig
    heads: list[HeadName] = Field(min_length=1)
    sharing: Sharing = Field("separate", description="fitting nets of each head, or one that gets the code of the set")

    @property
    def type_map(self) -> list[str]:
        return self.model.type_map

    @property
    def precision(self) -> str:
        return self.model.precision

    @property
    def caveat(self) -> str:
        return self.model.caveat

    @model_validator(mode="after")
    def _check(self) -> MultiTaskConfig:
        if len(set(self.heads)) != len(self.heads):
            raise ValueError(f"`heads` is {self.heads}; expected every name once.")
        expected = len(self.heads) if self.sharing == "encoded" else 0
        if self.model.fitting.dim_case_embd != expected:
            raise ValueError(
                f"`fitting.dim_case_embd` is {self.model.fitting.dim_case_embd}; expected {expected}, with "
                f"{len(self.heads)} {self.sharing} heads. Leave it out: it follows from the tasks."
            )
        return self


class MultiTaskModel(nn.Module):
    """See the module's docstring. Every parameter and every weight occurs once, under the name of what is shared."""

    def __init__(self, config: MultiTaskConfig, seed: int | None = None):
        super().__init__()
        heads = [EnergyModel(config.model, seed=(seed or 0) + k) for k in range(len(config.heads))]
        first = heads[0]
        self.config = config.model_copy(update={"model": first.config})
        self.type_map, self.rcut, self.metadata = first.type_map, first.rcut, dict[str, Any]()
        # What is shared comes first, and so gives parameters their names.
        self.descriptor, self.pair_table = first.descriptor, first.pair_table
        self.fitting = nn.ModuleDict({"nets": first.fitting.nets} if config.sharing == "encoded" else {})
        for k, head in enumerate(heads):
            head.descriptor, head.pair_table = first.descriptor, first.pair_table
            if config.sharing == "encoded":
                head.fitting.nets = first.fitting.nets
                head.fitting.set_case(k)
        self.head = nn.ModuleDict(dict(zip(config.heads, heads, strict=True)))

    @property
    def heads(self) -> dict[str, EnergyModel]:
        """The models by name, in the order of the config."""
        return {name: cast(EnergyModel, head) for name, head in self.head.items()}

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Every tensor once: `descriptor.*`, encoded `fitting.nets.*`, and what is of one head, `head.<name>.*`."""
        shared = ("descriptor.", "pair_table.", *(f"fitting.{name}." for name in self.fitting))
        again = tuple(f"head.{name}.{part}" for name in self.head for part in shared)
        return {k: v for k, v in super().state_dict(*args, **options).items() if not k.startswith(again)}

    def load_state_dict(self, tensors: Mapping[str, Any], *args: Any, **options: Any) -> None:  # type: ignore[override]
        """The inverse of `state_dict`."""
        for name, head in self.heads.items():
            head.load_state_dict(tensors_of_head(tensors, name), *args, **options)


Trainable = EnergyModel | MultiTaskModel


def heads_of(model: Trainable) -> dict[str, EnergyModel]:
    """The heads by name; an ordinary model is the one head ""."""
    return model.heads if isinstance(model, MultiTaskModel) else {"": model}


def tensors_of_head(tensors: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """The state of one head, as its EnergyModel names it."""
    shared = {k: v for k, v in tensors.items() if not k.startswith("head.")}
    prefix = f"head.{head}."
    return shared | {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def pick_head(config: MultiTaskConfig, head: str | None, path: str | Path) -> str:
    """The head that is asked for; the only one needs no name. Raises ModelFileError, listing them."""
    if head is None and len(config.heads) == 1:
        return config.heads[0]
    if head in config.heads:
        return head
    got = "absent" if head is None else repr(head)
    raise ModelFileError(
        f"`head` is {got}; `{path}` has {', '.join(config.heads)}; expected one of them."
        f"{did_you_mean(head or '', config.heads)} Write for example `{path}:{config.heads[0]}`."
    )


def header_of_head(header: Mapping[str, Any], config: MultiTaskConfig, head: str) -> dict[str, Any]:
    """The header that the file of this head alone would have: of what is said by head, its own."""
    provenance = {**header["provenance"], "head": head}
    if isinstance(data := provenance.get("data"), dict) and head in data:
        provenance["data"] = data[head]
    if isinstance(elements := provenance.get("elements"), dict) and head in elements:
        provenance["elements"] = {"": elements[head]}
    if isinstance(training := provenance.get("training"), dict) and isinstance(training.get("metrics"), dict):
        prefix = f"{head}/"
        own = {k.removeprefix(prefix): v for k, v in training["metrics"].items() if k.startswith(prefix)}
        provenance["training"] = {**training, "metrics": own}
    return {**header, "kind": "model", "config": config.model.model_dump(mode="json"), "provenance": provenance}
