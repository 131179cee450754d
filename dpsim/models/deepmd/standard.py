"""Models of a descriptor and an energy fitting net, `standard` in DeePMD-kit's files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dpsim.errors import UnsupportedModelError
from dpsim.models.config import ModelConfig
from dpsim.models.deepmd import fitting as fitting_codec
from dpsim.models.deepmd.binding import Adapted, Binding, Tree
from dpsim.models.deepmd.codec import codec_of, write_descriptor
from dpsim.models.deepmd.settings import Target, pairs, precision, refuse, refuse_newer
from dpsim.models.energy_model import EnergyModel


@dataclass(frozen=True)
class ModelKind:
    """How files hold a whole model of one kind; as `Codec`, with `build` for our model of a config."""

    read: Callable[[Tree], Any]
    build: Callable[[Any], Any]
    write: Callable[[Any], Tree]
    bindings: Callable[[Any], list[Binding]]
    from_input: Callable[[Tree], Tree]
    to_input: Callable[[Any], Tree]
    check: Callable[[Any], None]


def _read(tree: Tree) -> ModelConfig:
    refuse_newer(tree, 2, "a model")
    descriptor, fitting = tree["descriptor"], tree["fitting"]
    parts = descriptor["list"] if descriptor["type"] == "hybrid" else [descriptor]
    if any(part.get("spin") for part in parts):
        refuse("a spin model")
    atom_exclude_types = tree.get("atom_exclude_types") or []
    fitting_config = fitting_codec.read(fitting, atom_exclude_types)
    return ModelConfig(
        type_map=tree["type_map"],
        descriptor=codec_of(descriptor["type"]).read(descriptor),
        fitting=fitting_config,
        precision=precision([str(part["precision"]) for part in (*parts, fitting)]),
        atom_exclude_types=atom_exclude_types,
        pair_exclude_types=pairs(tree.get("pair_exclude_types")),
        deepmd_conventions=True,
    )


def _write(model: EnergyModel) -> Tree:
    config = model.config
    if config.core_distances is not None:
        raise UnsupportedModelError(
            "the model has `core_distances`; expected none: DeePMD-kit's files cannot hold this repulsion. "
            "Train without it, or keep the .dpsim file."
        )
    target = Target(list(model.type_map), config.precision)
    return {
        **around("standard", config.type_map, config),
        "descriptor": write_descriptor(config.descriptor, target),
        "fitting": fitting_codec.write(config, model.fitting, model.descriptor.dim_out, target),
    }


def around(kind: str, type_map: list[str], excluded: Any = None) -> Tree:
    """What every model's node begins with. Args: excluded: a config with excluded types; None: without."""
    return {
        "@class": "Model",
        "@version": 2,
        "type": kind,
        "type_map": type_map,
        "atom_exclude_types": [] if excluded is None else excluded.atom_exclude_types,
        "pair_exclude_types": [] if excluded is None else [list(pair) for pair in excluded.pair_exclude_types],
        "rcond": None,
        "preset_out_bias": None,
    }


def _bindings(model: EnergyModel) -> list[Binding]:
    descriptor = codec_of(model.config.descriptor.type).bindings(model.descriptor)
    n = len(model.type_map)
    return [
        *bias_bindings(model.energy_bias),
        *(binding.under("descriptor", "descriptor") for binding in descriptor),
        *(binding.under("fitting", "fitting_net") for binding in fitting_codec.bindings(model.fitting, n)),
        Binding(
            "fitting.@variables.bias_atom_e",
            "fitting_net.bias_atom_e",
            Adapted(model.energy_bias, (n, 1), lambda x: x[:, 0], lambda x: torch.zeros_like(x)[:, None], add=True),
        ),
    ]


def bias_bindings(energy_bias: torch.Tensor) -> list[Binding]:
    """Where the bias of each element lies, (n_types,) eV, and the standard deviation beside it, which nothing reads."""
    shape = (1, len(energy_bias), 1)
    bias = Adapted(energy_bias, shape, lambda x: x[0, :, 0], lambda x: x[None, :, None])
    return [
        Binding("@variables.out_bias", "out_bias", bias),
        Binding("@variables.out_std", "out_std", torch.ones(shape, dtype=torch.float64, device=energy_bias.device)),
    ]


def _from_input(params: Tree) -> Tree:
    codec = codec_of(params["descriptor"]["type"])
    descriptor = codec.from_input(params["descriptor"])
    mixed_types = codec.read(descriptor).embeds_types
    fitting = fitting_codec.from_input(params.get("fitting_net", {}), mixed_types)
    excluded = params.get("atom_exclude_types", [])
    return {**params, "descriptor": descriptor, "fitting": {"exclude_types": excluded, **fitting}}


def _to_input(model: EnergyModel) -> Tree:
    config = model.config
    target = Target(list(model.type_map), config.precision)
    descriptor = codec_of(config.descriptor.type).to_input(config.descriptor)
    for part in descriptor.get("list", [descriptor]):
        part["precision"] = target.precision
    kept = ("type", "type_map", "atom_exclude_types", "pair_exclude_types", "preset_out_bias")
    return {
        **{key: value for key, value in around("standard", config.type_map, config).items() if key in kept},
        "descriptor": descriptor,
        "fitting_net": fitting_codec.to_input(config.fitting, target),
    }


def _check(model: EnergyModel) -> None:
    codec_of(model.config.descriptor.type).check(model.descriptor, model.rcut)


def with_conventions(model: EnergyModel, deepmd: bool) -> EnergyModel:
    """The model with `deepmd_conventions` on or off and the same numbers, as long as `sel` does not bind.

    Where a descriptor of DeePMD-kit's has a constant on top, the fitting nets take it off, or add it.
    Raises: UnsupportedModelError where davg is not 0: natively, energies would jump at the cutoff.
    """
    if model.config.deepmd_conventions == deepmd:
        return model
    if any(bool(member.davg.any()) for member in model.descriptor.members):
        raise UnsupportedModelError(
            "the model standardises with davg != 0, `deepmd_conventions: true`; expected davg = 0 without them. "
            "Keep them on: empty slots of its neighbour list contribute."
        )
    other = EnergyModel(model.config.model_copy(update={"deepmd_conventions": deepmd}))
    other.load_state_dict(model.state_dict())
    other.metadata = model.metadata
    constant = codec_of(model.config.descriptor.type).constant(other.descriptor)
    if constant is not None:
        fitting_codec.take_off(other.fitting, constant if deepmd else -constant)
    return other.eval()


STANDARD = ModelKind(
    read=_read,
    build=EnergyModel,
    write=_write,
    bindings=_bindings,
    from_input=_from_input,
    to_input=_to_input,
    check=_check,
)
