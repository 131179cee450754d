"""The descriptors that dpsim reads from and writes to DeePMD-kit's files, by kind.

To add a kind, write one file (`pair.py` is the shortest) with a `Codec` and put it into `CODECS`:

    SE_E2_A = Codec(
        kinds=("se_e2_a", "se_a"),       # names in files and inputs, ours among them
        descriptor=SeE2a,                # our class
        read=_read,                      # {"rcut": 6.0, "sel": [46, 92], ...} of a file -> SeE2aConfig
        write=_write,                    # SeE2aConfig, Target(type_map, precision) -> the same settings, no arrays
        bindings=_bindings,              # descriptor -> where its weights lie, as below
        from_input=_from_input,          # section of a training input, defaults left out -> settings for `read`
        to_input=_to_input,              # SeE2aConfig -> section of a training input
    )
    def _bindings(descriptor):           # path in .dp,       key in .pt,          our layer, net, tensor, ...
        return [Binding("embeddings",    "sea.filter_layers", Networks(descriptor.nets, 1, descriptor.n_types)),
                Binding("@variables.davg", "sea.mean",        slots(descriptor.davg, sum(descriptor.sel))), ...]

Layers, nets and norms know their own nodes; `write` gives everything around them. A list of nodes with settings of
their own (layers) comes from `write`, its nets from bindings `layers.0.linear1`. `read` gets whatever the file says:
refuse by name (`refuse`) what the descriptor cannot do; pydantic refuses the rest. Missing and extra arrays, shapes and
activations of layers are checked for all kinds in `binding.py`. tests/parity/test_deepmd.py takes the kind by its
fixture: settings written are those of DeePMD-kit's own file, all round trips are exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpsim.errors import UnsupportedModelError
from dpsim.models.deepmd.binding import Binding, Tree
from dpsim.models.deepmd.dpa1 import DPA1
from dpsim.models.deepmd.dpa2 import DPA2
from dpsim.models.deepmd.dpa3 import DPA3
from dpsim.models.deepmd.pair import SE_E2_A, SE_E2_R
from dpsim.models.deepmd.settings import Codec, Target, refuse
from dpsim.models.deepmd.three_body import SE_E3, SE_E3_TEBD
from dpsim.models.descriptor_config import HybridConfig
from dpsim.models.descriptors.hybrid import Hybrid


def codec_of(kind: str) -> Codec:
    """The codec of a kind of descriptor. Raises UnsupportedModelError, naming it."""
    for codec in CODECS:
        if kind in codec.kinds:
            return codec
    refuse(f"the descriptor '{kind}'")


def write_descriptor(config: Any, target: Target) -> Tree:
    """Settings as in a portable file, without arrays. Raises UnsupportedModelError where no such file can hold them."""
    if not any(config.type in codec.kinds for codec in CODECS):
        raise UnsupportedModelError(
            f"the model has the descriptor '{config.type}', which DeePMD-kit's files cannot hold; expected another. "
            "Keep the .dpsim file."
        )
    return codec_of(config.type).write(config, target)


# A hybrid is a list of the others.


def _read(d: Tree) -> HybridConfig:
    for member in d["list"]:
        if member["type"] in ("hybrid", "dpa3"):
            refuse(f"a hybrid with a descriptor '{member['type']}' in it")
    return HybridConfig(list=[codec_of(member["type"]).read(member) for member in d["list"]])


def _write(config: HybridConfig, target: Target) -> Tree:
    members = [write_descriptor(member, target) for member in config.list]
    return {"@class": "Descriptor", "type": "hybrid", "@version": 1, "list": members}


def _parts(descriptor: Hybrid) -> list[tuple[Codec, Any]]:
    """The parts and their codecs."""
    return [(next(c for c in CODECS if type(part) is c.descriptor), part) for part in descriptor.parts]


def _bindings(descriptor: Hybrid) -> list[Binding]:
    return [
        binding.under(f"list.{k}", f"descrpt_list.{k}")
        for k, (codec, part) in enumerate(_parts(descriptor))
        for binding in codec.bindings(part)
    ]


def _from_input(params: Tree) -> Tree:
    return {**params, "list": [codec_of(member["type"]).from_input(member) for member in params["list"]]}


def _to_input(config: HybridConfig) -> Tree:
    return {"type": "hybrid", "list": [codec_of(member.type).to_input(member) for member in config.list]}


def _check(descriptor: Hybrid, rcut: float) -> None:
    for codec, part in _parts(descriptor):
        codec.check(part, rcut)


def _constant(descriptor: Hybrid) -> Tensor | None:
    constants = [(codec.constant(part), part.dim_out) for codec, part in _parts(descriptor)]
    some = next((constant for constant, _ in constants if constant is not None), None)
    if some is None:
        return None
    return torch.cat([some.new_zeros(len(some), dim) if c is None else c for c, dim in constants], 1)


HYBRID = Codec(
    kinds=("hybrid",),
    descriptor=Hybrid,
    read=_read,
    write=_write,
    bindings=_bindings,
    from_input=_from_input,
    to_input=_to_input,
    check=_check,
    constant=_constant,
)

CODECS = (SE_E2_A, SE_E2_R, SE_E3, SE_E3_TEBD, DPA1, DPA2, DPA3, HYBRID)
