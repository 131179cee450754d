"""`se_e3` (`se_t`, `se_at` in inputs) and `se_e3_tebd` in DeePMD-kit's files."""

from __future__ import annotations

from copy import deepcopy

from dpsim.models.deepmd.binding import Binding, Networks, Tree, slots
from dpsim.models.deepmd.settings import (
    INPUT_DEFAULTS,
    TYPE_EMBEDDING,
    Codec,
    Target,
    as_input_two_body,
    refuse,
    refuse_newer,
    two_body,
    type_embedding,
    write_two_body,
)
from dpsim.models.descriptor_config import SeE3Config, SeE3TebdConfig
from dpsim.models.descriptors.three_body import SeE3, SeE3Tebd, ThreeBody


def check_angles(descriptor: ThreeBody, rcut: float = 0.0) -> None:
    """Refuse davg of the directions: empty slots would hold angles with everything."""
    if bool(descriptor.davg[:, 1:].any()):
        refuse("a three-body descriptor whose davg of x, y, z is not 0")


def statistics(descriptor: ThreeBody) -> list[Binding]:
    """davg and dstd."""
    n = sum(descriptor.sel)
    return [
        Binding("@variables.davg", "mean", slots(descriptor.davg, n)),
        Binding("@variables.dstd", "stddev", slots(descriptor.dstd, n)),
    ]


# se_e3


def _bindings(descriptor: SeE3) -> list[Binding]:
    """Files hold nets of types in both orders. One is used; the other is read into a copy, and written as one."""
    n = descriptor.n_types
    orders = [(k % n, k // n) for k in range(n * n)]
    nets = [descriptor.net(a, b) if a <= b else deepcopy(descriptor.net(b, a)) for a, b in orders]
    own = [Binding("embeddings", "filter_layers", Networks(nets, 2, n)), *statistics(descriptor)]
    return [binding.under("", "seat") for binding in own]


def _read(d: Tree) -> SeE3Config:
    refuse_newer(d, 2, "the descriptor se_e3")
    return SeE3Config(sel=d["sel"], **two_body(d))


def _write(config: SeE3Config, target: Target) -> Tree:
    return {"@class": "Descriptor", "@version": 2, **_to_input(config), **write_two_body(config, target)}


def _to_input(config: SeE3Config) -> Tree:
    return {"type": "se_e3", "sel": config.sel, **as_input_two_body(config)}


SE_E3 = Codec(
    kinds=("se_e3", "se_t", "se_at", "se_a_3be"),
    descriptor=SeE3,
    read=_read,
    write=_write,
    bindings=_bindings,
    from_input=lambda params: {**INPUT_DEFAULTS, **params},
    to_input=_to_input,
    check=check_angles,
)

# se_e3_tebd

SAME = ("tebd_dim", "tebd_input_mode", "concat_output_tebd", "use_econf_tebd", "smooth")
DEFAULTS: Tree = INPUT_DEFAULTS | {  # of training inputs
    "tebd_dim": 8,
    "tebd_input_mode": "concat",
    "concat_output_tebd": True,
    "use_econf_tebd": False,
    "use_tebd_bias": True,
    "smooth": True,
}


def _bindings_tebd(descriptor: SeE3Tebd) -> list[Binding]:
    own = [*nets_tebd(descriptor), *statistics(descriptor)]
    embedding = Binding(*TYPE_EMBEDDING, descriptor.type_embedding)  # type: ignore[arg-type]  # a model's has one
    return [*(binding.under("", "se_ttebd") for binding in own), embedding]


def nets_tebd(descriptor: SeE3Tebd) -> list[Binding]:
    """Its embedding nets."""
    nets = [("embeddings", "filter_layers", descriptor.net)]
    if descriptor.strip_net is not None:
        nets.append(("embeddings_strip", "filter_layers_strip", descriptor.strip_net))
    return [Binding(path, key, Networks([net], 0, descriptor.n_types)) for path, key, net in nets]


def _read_tebd(d: Tree) -> SeE3TebdConfig:
    refuse_newer(d, 1, "the descriptor se_e3_tebd")
    bias = d.get("type_embedding", d).get("use_tebd_bias", True)  # files keep it in the type embedding only
    sel = d["sel"] if isinstance(d["sel"], int) else sum(d["sel"])
    return SeE3TebdConfig(sel=sel, use_tebd_bias=bias, **{key: d[key] for key in SAME}, **two_body(d))


def _own(config: SeE3TebdConfig) -> Tree:
    return {"type": "se_e3_tebd"} | {key: getattr(config, key) for key in SAME}


def _write_tebd(config: SeE3TebdConfig, target: Target) -> Tree:
    return {
        "@class": "Descriptor",
        "@version": 1,
        **_own(config),
        **write_two_body(config, target),
        "sel": [config.sel],
        "ntypes": len(target.type_map),
        "type_embedding": type_embedding(config.tebd_dim, config.use_econf_tebd, config.use_tebd_bias, target),
    }


SE_E3_TEBD = Codec(
    kinds=("se_e3_tebd",),
    descriptor=SeE3Tebd,
    read=_read_tebd,
    write=_write_tebd,
    bindings=_bindings_tebd,
    from_input=lambda params: {**DEFAULTS, **params},
    to_input=lambda config: {
        **_own(config),
        **as_input_two_body(config),
        "sel": config.sel,
        "use_tebd_bias": config.use_tebd_bias,
    },
    check=check_angles,
)
