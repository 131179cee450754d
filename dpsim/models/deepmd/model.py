"""The kinds of whole models that dpsim reads from and writes to DeePMD-kit's files."""

from __future__ import annotations

from typing import Any

import torch

from dpsim.models.deepmd import standard
from dpsim.models.deepmd.binding import Tree
from dpsim.models.deepmd.combined import LINEAR, PAIRTAB, ZBL
from dpsim.models.deepmd.settings import refuse
from dpsim.models.deepmd.standard import STANDARD, ModelKind
from dpsim.models.energy_model import EnergyModel
from dpsim.models.linear_model import LinearModel
from dpsim.models.pair_table import PairPotential

Readable = EnergyModel | LinearModel | PairPotential
MODELS: dict[str, ModelKind] = {
    "standard": STANDARD,
    "zbl": ZBL,
    "linear": LINEAR,
    "linear_ener": LINEAR,
    "pairtab": PAIRTAB,
}


def kind_of(name: str) -> ModelKind:
    """The kind of a model of a file. Raises UnsupportedModelError, naming it."""
    if name not in MODELS:
        refuse(f"a model of type '{name}'")
    return MODELS[name]


def kind_of_input(params: Tree) -> str:
    """Which kind of model the model section of a training input describes. Raises UnsupportedModelError."""
    if params.get("spin"):
        refuse("a spin model")
    if params.get("bridging_method", "None") != "None":
        refuse(f"a model with bridging_method '{params['bridging_method']}'")
    kind = str(params.get("type", "standard"))
    if kind == "standard" and params.get("use_srtab"):
        return "zbl"
    return "linear" if kind == "linear_ener" else kind


def kind_of_model(model: Any) -> str:
    """Under which kind a model of ours is written."""
    if isinstance(model, LinearModel):
        return "linear"
    if isinstance(model, PairPotential):
        return "pairtab"
    return "standard" if model.pair_table is None else "zbl"


def with_conventions(model: Any, deepmd: bool) -> Any:
    """The model with `deepmd_conventions` on or off and the same numbers, as long as `sel` does not bind.

    Raises: UnsupportedModelError where that cannot be, as `standard.with_conventions` says.
    """
    other: LinearModel | PairPotential
    if isinstance(model, LinearModel):
        members = [with_conventions(member, deepmd) for member in model.members]
        other = LinearModel(model.config.model_copy(update={"members": [member.config for member in members]}))
        other.members = torch.nn.ModuleList(members)
        other.energy_bias.copy_(model.energy_bias)
    elif isinstance(model, PairPotential):
        other = PairPotential(model.config.model_copy(update={"deepmd_conventions": deepmd}))
        other.load_state_dict(model.state_dict())
    else:
        return standard.with_conventions(model, deepmd)
    other.metadata = model.metadata
    return other.eval()
