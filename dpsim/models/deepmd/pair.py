"""`se_e2_a` and `se_e2_r` (`se_r` in files) in DeePMD-kit's files."""

from __future__ import annotations

import torch
from torch import Tensor

from dpsim.errors import UnsupportedModelError
from dpsim.models.deepmd.binding import Binding, Networks, Tree, slots
from dpsim.models.deepmd.settings import (
    INPUT_DEFAULTS,
    Codec,
    Target,
    as_input_two_body,
    refuse_newer,
    two_body,
    write_two_body,
)
from dpsim.models.descriptor_config import SeE2aConfig, SeE2rConfig
from dpsim.models.descriptors.base import PairDescriptor
from dpsim.models.descriptors.se_e2_a import SeE2a
from dpsim.models.descriptors.se_e2_r import SeE2r


def _nets(descriptor: PairDescriptor) -> Networks:
    """The embedding nets as files count them: two-sided, the centre's type runs fastest."""
    n = descriptor.n_types
    if descriptor.one_side:
        return Networks([descriptor.net(0, t) for t in range(n)], 1, n)
    return Networks([descriptor.net(k % n, k // n) for k in range(n * n)], 2, n)


def _bindings(descriptor: PairDescriptor, prefix: str, columns: int) -> list[Binding]:
    n = sum(descriptor.sel)
    return [
        Binding("embeddings", "filter_layers", _nets(descriptor)).under("", prefix),
        Binding("@variables.davg", "mean", slots(descriptor.davg, n, columns)).under("", prefix),
        Binding("@variables.dstd", "stddev", slots(descriptor.dstd, n, columns)).under("", prefix),
    ]


def _write(config: SeE2aConfig | SeE2rConfig, target: Target) -> Tree:
    head = {"@class": "Descriptor", "@version": 2, "sel": config.sel, "type_one_side": config.type_one_side}
    return {**head, **write_two_body(config, target), "spin": None}


def _to_input(config: SeE2aConfig | SeE2rConfig) -> Tree:
    return {**as_input_two_body(config), "sel": config.sel, "type_one_side": config.type_one_side}


def _read_a(d: Tree) -> SeE2aConfig:
    refuse_newer(d, 2, "the descriptor se_e2_a")
    return SeE2aConfig(sel=d["sel"], type_one_side=d["type_one_side"], axis_neuron=d["axis_neuron"], **two_body(d))


def _from_input_a(params: Tree) -> Tree:
    return {**INPUT_DEFAULTS, "type_one_side": False, "axis_neuron": 4, **params}


SE_E2_A = Codec(
    kinds=("se_e2_a", "se_a"),
    descriptor=SeE2a,
    read=_read_a,
    write=lambda config, target: {"type": "se_e2_a", "axis_neuron": config.axis_neuron, **_write(config, target)},
    bindings=lambda descriptor: _bindings(descriptor, "sea", columns=4),
    from_input=_from_input_a,
    to_input=lambda config: {"type": "se_e2_a", "axis_neuron": config.axis_neuron, **_to_input(config)},
)


def _read_r(d: Tree) -> SeE2rConfig:
    refuse_newer(d, 2, "the descriptor se_e2_r")
    return SeE2rConfig(sel=d["sel"], type_one_side=d["type_one_side"], **two_body(d))


def _write_r(config: SeE2rConfig, target: Target) -> Tree:
    if not config.type_one_side:
        raise UnsupportedModelError(
            "`type_one_side` is false in a descriptor se_e2_r; expected true: DeePMD-kit has no other. Train it so."
        )
    return {"type": "se_r", **_write(config, target)}


@torch.no_grad()
def _constant(descriptor: SeE2r) -> Tensor:
    """Natively a sum over neighbours of N(s~) - N(s~_empty); in DeePMD-kit sel_t N(s~_empty) more, for all slots."""
    rows = []
    for ti in range(descriptor.n_types):
        empty = -descriptor.davg[ti, :1] / descriptor.dstd[ti, :1]
        rows.append(sum(n * descriptor.net(ti, tj)(empty) for tj, n in enumerate(descriptor.sel)))
    return torch.stack(rows) / (5 * sum(descriptor.sel))


SE_E2_R = Codec(
    kinds=("se_e2_r", "se_r"),
    descriptor=SeE2r,
    read=_read_r,
    write=_write_r,
    bindings=lambda descriptor: _bindings(descriptor, "", columns=1),
    # DeePMD-kit's torch code is one-sided whatever its input says.
    from_input=lambda params: {**INPUT_DEFAULTS, **params, "type_one_side": True},
    to_input=lambda config: {"type": "se_e2_r", **_to_input(config)},
    constant=_constant,
)
