"""`dpa2` in DeePMD-kit's files."""

from __future__ import annotations

from typing import Any, cast

from dpsim.models.deepmd.binding import Binding, Networks, Tree, slots
from dpsim.models.deepmd.settings import (
    TYPE_EMBEDDING,
    Codec,
    Target,
    activation,
    check_env_mat,
    env_mat,
    pairs,
    refuse,
    refuse_newer,
    type_embedding,
)
from dpsim.models.deepmd.three_body import check_angles, nets_tebd
from dpsim.models.descriptor_config import Dpa2Config, RepformerConfig, RepinitConfig, ThreeBodyConfig
from dpsim.models.descriptors.base import EnvironmentDescriptor
from dpsim.models.descriptors.dpa2 import Dpa2
from dpsim.models.descriptors.repformer import RepformerLayer

# Settings of the same name in our config, in files and in inputs.
SAME = ("concat_output_tebd", "smooth", "env_protection", "add_tebd_to_repinit_out", "use_econf_tebd")
SAME_REPINIT = (
    *("rcut", "rcut_smth", "neuron", "axis_neuron", "tebd_dim", "tebd_input_mode", "resnet_dt", "type_one_side"),
)
SAME_REPFORMER = (
    *("rcut", "rcut_smth", "nlayers", "g1_dim", "g2_dim", "axis_neuron", "direct_dist", "update_g1_has_conv"),
    *("update_g1_has_drrd", "update_g1_has_grrg", "update_g1_has_attn", "update_g2_has_g1g1", "update_g2_has_attn"),
    *("update_h2", "attn1_hidden", "attn1_nhead", "attn2_hidden", "attn2_nhead", "attn2_has_gate", "update_style"),
    *("update_residual", "update_residual_init", "trainable_ln", "use_sqrt_nnei", "g1_out_conv", "g1_out_mlp"),
    "ln_eps",
)
PAIR_UPDATES = ("update_g2_has_g1g1", "update_g2_has_attn", "update_h2")
OF_MODEL = ("nlayers", "direct_dist", "update_residual", "update_residual_init")  # settings that layers do not repeat


def _args(section: RepinitConfig | RepformerConfig, same: tuple[str, ...]) -> Tree:
    """A section in the words of files and inputs."""
    own = {key: getattr(section, key) for key in same}
    return own | {"nsel": section.sel, "activation_function": section.activation, "set_davg_zero": True}


def _own(config: Dpa2Config) -> tuple[Tree, Tree, Tree]:
    """What files and inputs have in common: repinit, repformer, the rest."""
    three_body = config.three_body or ThreeBodyConfig(sel=40)  # with these settings where there is none
    repinit = _args(config.repinit, SAME_REPINIT) | {"use_three_body": config.three_body is not None}
    repinit |= {f"three_body_{key}": getattr(three_body, key) for key in ("neuron", "sel", "rcut", "rcut_smth")}
    rest = {key: getattr(config, key) for key in (*SAME, "use_tebd_bias")}
    rest |= {"type": "dpa2", "exclude_types": [list(pair) for pair in config.exclude_types], "trainable": True}
    return repinit, _args(config.repformer, SAME_REPFORMER), rest


# A section of a training input that names nothing.
_REPINIT, _REPFORMER, _REST = _own(Dpa2Config())
DEFAULTS = _REST
DEFAULTS_REPINIT = {key: value for key, value in _REPINIT.items() if key not in ("rcut", "rcut_smth", "nsel")}
DEFAULTS_REPFORMER = {key: value for key, value in _REPFORMER.items() if key not in ("rcut", "rcut_smth", "nsel")}


def _from_input(params: Tree) -> Tree:
    sections = {
        "repinit_args": DEFAULTS_REPINIT | params["repinit"],
        "repformer_args": DEFAULTS_REPFORMER | params["repformer"],
    }
    return {"precision": "default", "@version": 3, **DEFAULTS, **params, **sections}


def _to_input(config: Dpa2Config) -> Tree:
    repinit, repformer, rest = _own(config)
    return {**rest, "repinit": repinit, "repformer": repformer}


def _read(d: Tree) -> Dpa2Config:
    refuse_newer(d, 3, "the descriptor dpa2")
    repinit, repformer = d["repinit_args"], d["repformer_args"]
    d = {"use_tebd_bias": True, "use_econf_tebd": False, **d}  # files without these are older than the options
    if d.get("@version", 1) < 3:
        repformer = {**repformer, "use_sqrt_nnei": False, "g1_out_conv": False, "g1_out_mlp": False}
    three_body = None
    if repinit.get("use_three_body"):
        three_body = {key: repinit[f"three_body_{key}"] for key in ("neuron", "sel", "rcut", "rcut_smth")}
        check_env_mat(three_body, d.get("repinit_three_body_variable", {}))
    check_env_mat(repinit, d.get("repinit_variable", {}))
    check_env_mat(repformer, d.get("repformers_variable", {}))
    _check_layers(d.get("repformers_variable", {}).get("repformer_layers"), repformer)

    def section(args: Tree, same: tuple[str, ...]) -> Tree:
        own = {key: args[key] for key in same if args.get(key) is not None}
        return own | {"sel": args["nsel"], "activation": activation(args["activation_function"])}

    return Dpa2Config(
        repinit=cast(Any, section(repinit, SAME_REPINIT)),
        three_body=cast(Any, three_body),
        repformer=cast(Any, section(repformer, SAME_REPFORMER)),
        use_tebd_bias=d["use_tebd_bias"],
        exclude_types=pairs(d.get("exclude_types")),
        **{key: d[key] for key in SAME},
    )


def _check_layers(layers: list[Tree] | None, repformer: Tree) -> None:
    """Refuse layers that are not as the settings of all layers say."""
    for k, layer in enumerate(layers or []):
        last = k == repformer["nlayers"] - 1
        for key in set(SAME_REPFORMER) & set(layer):
            expected = False if last and key in PAIR_UPDATES else repformer[key]
            if layer[key] != expected and key != "ln_eps":
                refuse(f"a dpa2 descriptor whose layer {k} has {key} = {layer[key]}, the others {expected}")
        if layer.get("update_chnnl_2", not last) == last:
            refuse(f"a dpa2 descriptor whose layer {k} has update_chnnl_2 = {last}")


def _write(config: Dpa2Config, target: Target) -> Tree:
    repinit, repformer, rest = _own(config)
    embedding = type_embedding(config.repinit.tebd_dim, config.use_econf_tebd, config.use_tebd_bias, target)
    tree: Tree = {
        "@class": "Descriptor",
        "@version": 3,
        **rest,
        "ntypes": len(target.type_map),
        "type_map": target.type_map,
        "precision": target.precision,
        "repinit_args": repinit,
        "repformer_args": repformer,
        "type_embedding": embedding,
        "g1_shape_tranform": {"@class": "Identity", "@version": 1},
        "repinit_variable": {"env_mat": env_mat(config.repinit.rcut, config.repinit.rcut_smth, 0.0)},
        "repformers_variable": {
            "env_mat": env_mat(config.repformer.rcut, config.repformer.rcut_smth, 0.0),
            "repformer_layers": [_write_layer(config, k, target) for k in range(config.repformer.nlayers)],
        },
    }
    if config.three_body is not None:
        tree["repinit_three_body_variable"] = {
            "env_mat": env_mat(config.three_body.rcut, config.three_body.rcut_smth, 0.0)
        }
    return tree


def _write_layer(config: Dpa2Config, k: int, target: Target) -> Tree:
    """The settings of a layer and of its attentions, without arrays."""
    c = config.repformer
    pair = k < c.nlayers - 1
    settings = {key: getattr(c, key) for key in SAME_REPFORMER if key not in OF_MODEL}
    settings |= {key: pair and getattr(c, key) for key in PAIR_UPDATES}
    layer: Tree = {
        "@class": "RepformerLayer",
        "@version": 2,
        **settings,
        "sel": [c.sel],
        "ntypes": len(target.type_map),
        "update_chnnl_2": pair,
        "activation_function": c.activation,
        "smooth": config.smooth,
        "precision": target.precision,
    }

    def heads(kind: str, width: int, n: int, **more: Any) -> Tree:
        shared = {"@class": kind, "@version": 1, "input_dim": width, "head_num": n, "precision": target.precision}
        return shared | more

    shift = {"smooth": config.smooth, "attnw_shift": 20.0}
    if settings["update_g2_has_attn"] or settings["update_h2"]:
        gate = {"hidden_dim": c.attn2_hidden, "has_gate": c.attn2_has_gate}
        layer["attn2g_map"] = heads("Atten2Map", c.g2_dim, c.attn2_nhead, **gate, **shift)
    if settings["update_g2_has_attn"]:
        layer["attn2_mh_apply"] = heads("Atten2MultiHeadApply", c.g2_dim, c.attn2_nhead)
    if settings["update_h2"]:
        layer["attn2_ev_apply"] = heads("Atten2EquiVarApply", c.g2_dim, c.attn2_nhead)
    if c.update_g1_has_attn:
        layer["loc_attn"] = heads("LocalAtten", c.g1_dim, c.attn1_nhead, hidden_dim=c.attn1_hidden, **shift)
    return layer


def _bindings(descriptor: Dpa2) -> list[Binding]:
    repinit, three_body, repformer = descriptor.repinit, descriptor.three_body, descriptor.repformer
    n = repinit.n_types

    def statistics(part: EnvironmentDescriptor, path: str, key: str) -> list[Binding]:
        return [
            Binding(f"{path}.@variables.davg", f"{key}.mean", slots(part.davg, part.sel[0])),
            Binding(f"{path}.@variables.dstd", f"{key}.stddev", slots(part.dstd, part.sel[0])),
        ]

    bindings = [
        Binding(*TYPE_EMBEDDING, repinit.type_embedding),
        Binding("repinit_variable.embeddings", "repinit.filter_layers", Networks([repinit.net], 0, n)),
        *statistics(repinit, "repinit_variable", "repinit"),
        Binding("repformers_variable.g2_embd", "repformers.g2_embd", repformer.g_embedding),
        *statistics(repformer, "repformers_variable", "repformers"),
    ]
    if repinit.strip_net is not None:
        place = ("repinit_variable.embeddings_strip", "repinit.filter_layers_strip")
        bindings.append(Binding(*place, Networks([repinit.strip_net], 0, n)))
    if three_body is not None:
        place = ("repinit_three_body_variable", "repinit_three_body")
        bindings += [binding.under(*place) for binding in nets_tebd(three_body)] + statistics(three_body, *place)
    if descriptor.shape_transform is not None:
        bindings.append(Binding("g1_shape_tranform", "g1_shape_tranform", descriptor.shape_transform))
    if descriptor.tebd_transform is not None:
        bindings.append(Binding("tebd_transform", "tebd_transform", descriptor.tebd_transform))
    for k, layer in enumerate(repformer.layers):
        place = (f"repformers_variable.repformer_layers.{k}", f"repformers.layers.{k}")
        bindings += [binding.under(*place) for binding in _bindings_layer(cast(RepformerLayer, layer))]
    return bindings


def _bindings_layer(layer: RepformerLayer) -> list[Binding]:
    parts: dict[str, Any] = {
        "linear1": layer.linear1,
        "linear2": layer.linear2,
        "g1_self_mlp": layer.self_mlp,
        "proj_g1g2": layer.conv,
        "proj_g1g1g2": layer.product,
    }
    if layer.attention is not None:
        parts["loc_attn.mapq"], parts["loc_attn.mapkv"] = layer.attention.query, layer.attention.key_value
        parts["loc_attn.head_map"] = layer.attention.out
    if (attention := layer.pair_attention) is not None:
        parts["attn2g_map.mapqk"] = attention.query_key
        parts["attn2_ev_apply.head_map"] = attention.turn
        if attention.of_g:
            parts["attn2_mh_apply.mapv"], parts["attn2_mh_apply.head_map"] = attention.value, attention.out
            parts["attn2_lm"] = attention.norm
    bindings = [Binding(name, name, part) for name, part in parts.items() if part is not None]
    if layer.style == "res_residual":
        for name in ("g1_residual", "g2_residual", "h2_residual"):
            bindings.append(Binding(f"@variables.{name}", name, list(getattr(layer, name))))
    return bindings


def _check(descriptor: Dpa2, rcut: float) -> None:
    if descriptor.three_body is not None:
        check_angles(descriptor.three_body)


DPA2 = Codec(
    kinds=("dpa2",),
    descriptor=Dpa2,
    read=_read,
    write=_write,
    bindings=_bindings,
    from_input=_from_input,
    to_input=_to_input,
    check=_check,
)
