"""The energy fitting net in DeePMD-kit's files."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from dpsim.errors import UnsupportedModelError
from dpsim.models.config import FittingConfig, ModelConfig
from dpsim.models.deepmd.binding import Binding, Networks, Tree
from dpsim.models.deepmd.settings import Target, activation, refuse, refuse_newer
from dpsim.models.fitting import EnergyFitting
from dpsim.models.nets import MLP, Layer

DEFAULTS: Tree = {  # of training inputs
    "type": "ener",
    "neuron": [120, 120, 120],
    "activation_function": "tanh",
    "resnet_dt": True,
    "precision": "default",
}
PARAMETERS = ("case_embd", "fparam_avg", "fparam_inv_std", "aparam_avg", "aparam_inv_std")


def read(d: Tree, atom_exclude_types: list[int]) -> FittingConfig:
    """Settings of a file as ours."""
    if d.get("type", "ener") != "ener":
        refuse(f"a '{d['type']}' fitting")
    refuse_newer(d, 4, "the fitting")
    if d.get("use_aparam_as_mask"):
        refuse("a fitting with use_aparam_as_mask")
    if (d.get("exclude_types") or []) != atom_exclude_types:
        refuse("a fitting whose exclude_types are not the model's atom_exclude_types")
    if d.get("spin"):
        refuse("a spin model")
    if d.get("tot_ener_zero") or any(energy is not None for energy in d.get("atom_ener") or []):
        refuse("a fitting with energies of atoms in vacuum (atom_ener, tot_ener_zero)")
    if d.get("layer_name") and any(d["layer_name"]):
        refuse("a fitting whose types share layers by name")
    return FittingConfig(
        neuron=d["neuron"],
        activation=activation(d["activation_function"]),
        resnet_dt=d["resnet_dt"],
        type_wise=not d["mixed_types"],
        numb_fparam=d.get("numb_fparam", 0),
        numb_aparam=d.get("numb_aparam", 0),
        default_fparam=d.get("default_fparam"),
        dim_case_embd=d.get("dim_case_embd", 0),
    )


def write(config: ModelConfig, fitting: EnergyFitting, dim_descriptor: int, target: Target) -> Tree:
    """Our settings as those of a file."""
    c = config.fitting
    return {
        "@class": "Fitting",
        "@version": 4,
        "type": "ener",
        "var_name": "energy",
        "dim_out": 1,
        "ntypes": len(target.type_map),
        "type_map": target.type_map,
        "dim_descrpt": dim_descriptor,
        "mixed_types": not fitting.type_wise,
        **_shared(c, target),
        "exclude_types": config.atom_exclude_types,
        "rcond": None,
        "tot_ener_zero": False,
        "trainable": [True] * (len(c.neuron) + 1),
        "layer_name": None,
        "use_aparam_as_mask": False,
        "spin": None,
        "atom_ener": [],
        "@variables": dict.fromkeys(PARAMETERS),
    }


def _shared(config: FittingConfig, target: Target) -> Tree:
    return {
        "neuron": config.neuron,
        "activation_function": config.activation,
        "resnet_dt": config.resnet_dt,
        "precision": target.precision,
        "numb_fparam": config.numb_fparam,
        "numb_aparam": config.numb_aparam,
        "default_fparam": config.default_fparam,
        "dim_case_embd": config.dim_case_embd,
    }


def from_input(params: Tree, mixed_types: bool) -> Tree:
    """The section of a training input as the settings of a file."""
    return {**DEFAULTS, **params, "mixed_types": mixed_types}


def to_input(config: FittingConfig, target: Target) -> Tree:
    """Our settings as the section of a training input."""
    return {"type": "ener", **_shared(config, target)}


def bindings(fitting: EnergyFitting, n_types: int) -> list[Binding]:
    """Where the nets lie, and what standardises parameters."""
    nets = [cast(MLP, net) for net in fitting.nets]
    collection = Networks(nets, 1 if fitting.type_wise else 0, n_types, fitting=True)
    buffers = dict(fitting.named_buffers(recurse=False))
    return [
        Binding("nets", "filter_layers", collection),
        *(Binding(f"@variables.{name}", name, buffers[name]) for name in PARAMETERS if name in buffers),
    ]


@torch.no_grad()
def take_off(fitting: EnergyFitting, constant: Tensor) -> None:
    """Let the nets give the same for D + constant[t] as they gave for D: the first biases take it.

    Args: constant (n_types, dim_descriptor). Raises UnsupportedModelError where one net would have to take several.
    """
    if not fitting.type_wise and bool((constant != constant[:1]).any()):
        raise UnsupportedModelError(
            "the model has se_e2_r and one fitting net for all types; expected `fitting.type_wise: true`: "
            "in DeePMD-kit the descriptor has a constant of each type on top, which the nets must take off."
        )
    for net, c in zip(fitting.nets, constant, strict=False):
        first = cast(Layer, cast(MLP, net)[0])
        if first.residual or first.bias is None:
            raise UnsupportedModelError(
                f"the first layer of the fitting net is as wide as its input, {first.n_in}, or twice as wide; expected "
                "another width: in DeePMD-kit se_e2_r has a constant on top, which a residual layer cannot take off."
            )
        first.bias.sub_(c @ first.weight[: len(c)])
