"""`dpa1`, also called `se_atten`, and `se_atten_v2` in DeePMD-kit's files."""

from __future__ import annotations

from typing import cast

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
from dpsim.models.descriptor_config import Dpa1Config
from dpsim.models.descriptors.dpa1 import Dpa1, GatedAttention

SAME = (  # settings of the same name in our config, in files and in inputs
    *("axis_neuron", "tebd_dim", "tebd_input_mode", "type_one_side", "concat_output_tebd", "use_econf_tebd"),
    *("use_tebd_bias", "attn_layer", "attn", "attn_dotr", "normalize", "scaling_factor", "temperature", "ln_eps"),
)
DEFAULTS: Tree = {  # of training inputs
    **INPUT_DEFAULTS,
    "axis_neuron": 4,
    "tebd_dim": 8,
    "tebd_input_mode": "concat",
    "type_one_side": False,
    "concat_output_tebd": True,
    "use_econf_tebd": False,
    "use_tebd_bias": False,
    "attn_layer": 2,
    "attn": 128,
    "attn_dotr": True,
    "attn_mask": False,
    "normalize": True,
    "scaling_factor": 1.0,
    "temperature": None,
    "ln_eps": 1e-5,
    "smooth_type_embedding": False,
}


def _read(d: Tree) -> Dpa1Config:
    refuse_newer(d, 2, "the descriptor dpa1")
    if d["type"] == "se_atten_v2":  # dpa1 with these two settings, which its files do not write
        d = {**d, "tebd_input_mode": "strip", "smooth_type_embedding": True}
    if d.get("attn_mask"):
        refuse("a dpa1 descriptor with attn_mask")
    if d.get("lmax", 1) != 1:
        refuse(f"a dpa1 descriptor with lmax {d['lmax']}")
    d = {"use_econf_tebd": False, "use_tebd_bias": True, **d}  # files without these are older than the options
    return Dpa1Config(
        sel=d["sel"] if isinstance(d["sel"], int) else sum(d["sel"]),
        smooth=d["smooth_type_embedding"],
        **{key: d[key] for key in SAME} | {"ln_eps": d["ln_eps"] or 1e-5},
        **two_body(d),
    )


def _own(config: Dpa1Config) -> Tree:
    """What files and inputs have in common beside the two-body settings."""
    shared = {"attn_mask": False, "smooth_type_embedding": config.smooth, "trainable_ln": True}
    return {"type": "dpa1"} | {key: getattr(config, key) for key in SAME} | shared


def _write(config: Dpa1Config, target: Target) -> Tree:
    tebd = type_embedding(config.tebd_dim, config.use_econf_tebd, config.use_tebd_bias, target)
    return {
        "@class": "Descriptor",
        "@version": 2,
        **_own(config),
        **write_two_body(config, target),
        "sel": [config.sel],
        "ntypes": len(target.type_map),
        "attention_layers": _write_attention(config, target),
        "type_embedding": tebd,
        "spin": None,
    }


def _write_attention(config: Dpa1Config, target: Target) -> Tree:
    """The node of the attention layers, without their arrays."""
    shared = {
        "nnei": config.sel,
        "embed_dim": config.neuron[-1],
        "hidden_dim": config.attn,
        "dotr": config.attn_dotr,
        "do_mask": False,
        "scaling_factor": config.scaling_factor,
        "normalize": config.normalize,
        "temperature": config.temperature,
        "precision": target.precision,
    }
    norm = {"trainable_ln": True, "ln_eps": config.ln_eps}
    attention = {**shared, "num_heads": 1, "bias": True, "smooth": config.smooth}
    return {
        "@class": "NeighborGatedAttention",
        "@version": 1,
        "layer_num": config.attn_layer,
        **shared,
        **norm,
        "attention_layers": [{**shared, **norm, "attention_layer": dict(attention)} for _ in range(config.attn_layer)],
    }


def _bindings(descriptor: Dpa1) -> list[Binding]:
    n, n_slots = descriptor.n_types, sum(descriptor.sel)
    own = [
        Binding("embeddings", "filter_layers", Networks([descriptor.net], 0, n)),
        Binding("@variables.davg", "mean", slots(descriptor.davg, n_slots)),
        Binding("@variables.dstd", "stddev", slots(descriptor.dstd, n_slots)),
    ]
    if descriptor.strip_net is not None:
        own.append(Binding("embeddings_strip", "filter_layers_strip", Networks([descriptor.strip_net], 0, n)))
    for k, layer in enumerate(descriptor.attention):
        attention = cast(GatedAttention, layer)
        parts = [
            Binding("attention_layer.in_proj", "attention_layer.in_proj", attention.in_proj),
            Binding("attention_layer.out_proj", "attention_layer.out_proj", attention.out_proj),
            Binding("attn_layer_norm", "attn_layer_norm", attention.norm),
        ]
        at = f"attention_layers.{k}"
        own += [part.under(f"attention_layers.{at}", f"dpa1_attention.{at}") for part in parts]
    return [
        *(binding.under("", "se_atten") for binding in own),
        Binding(*TYPE_EMBEDDING, descriptor.type_embedding),
    ]


def _from_input(params: Tree) -> Tree:
    if params["type"] == "se_atten_v2":
        params = {**params, "tebd_input_mode": "strip", "smooth_type_embedding": True}
    return {**DEFAULTS, **params}


def _check(descriptor: Dpa1, rcut: float) -> None:
    """In a hybrid, slots of dpa1 may hold atoms beyond its own cutoff. Refuse where they differ from empty slots."""
    attends = len(descriptor.attention) > 0
    xyz = descriptor.dstd[:, 1:]
    if attends and bool(descriptor.davg[:, 1:].any() or (xyz != xyz[:, :1]).any()):
        refuse("an attention descriptor standardised differently along x, y and z")
    if descriptor.rcut < rcut and ((attends and not descriptor.smooth) or bool(descriptor.davg.any())):
        refuse("a hybrid whose dpa1 has a shorter cutoff than others, and davg != 0 or attention that is not smooth")


DPA1 = Codec(
    kinds=("dpa1", "se_atten", "se_atten_v2"),
    descriptor=Dpa1,
    read=_read,
    write=_write,
    bindings=_bindings,
    from_input=_from_input,
    to_input=lambda config: {**_own(config), **as_input_two_body(config), "sel": config.sel},
    check=_check,
)
