"""`dpa3`: its settings are those of the section `repflow`, and a few around it."""

from __future__ import annotations

from typing import cast

from torch import nn

from dpsim.errors import UnsupportedModelError
from dpsim.models.deepmd.binding import Binding, Tree, slots
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
from dpsim.models.descriptor_config import Dpa3Config
from dpsim.models.descriptors.dpa3 import Dpa3, Messages, UpdateLayer
from dpsim.models.nets import Layer

SAME = (  # settings of the same name in our config and in the section `repflow` of files and inputs
    *("n_dim", "e_dim", "a_dim", "nlayers", "e_rcut", "e_rcut_smth", "e_sel", "a_rcut", "a_rcut_smth", "a_sel"),
    *("a_compress_rate", "a_compress_e_rate", "a_compress_use_split", "n_multi_edge_message", "axis_neuron"),
    *("update_style", "update_residual", "update_residual_init", "fix_stat_std", "smooth_edge_update"),
    *("edge_init_use_dist", "use_dynamic_sel", "sel_reduce_factor"),
)
AROUND = ("concat_output_tebd", "env_protection", "use_econf_tebd", "use_tebd_bias")  # and around it
REPFLOW_DEFAULTS: Tree = {  # of training inputs
    "n_dim": 128,
    "e_dim": 64,
    "a_dim": 64,
    "nlayers": 6,
    "axis_neuron": 4,
    "update_angle": True,
    "a_compress_rate": 0,
    "a_compress_e_rate": 1,
    "a_compress_use_split": False,
    "n_multi_edge_message": 1,
    "update_style": "res_residual",
    "update_residual": 0.1,
    "update_residual_init": "const",
    "fix_stat_std": 0.3,
    "smooth_edge_update": False,
    "edge_init_use_dist": False,
    "use_exp_switch": False,
    "use_dynamic_sel": False,
    "sel_reduce_factor": 10.0,
    "sequential_update": False,
}
DEFAULTS: Tree = {
    "concat_output_tebd": False,
    "activation_function": "silu",
    "exclude_types": [],
    "env_protection": 0.0,
    "use_econf_tebd": False,
    "use_tebd_bias": False,
    "add_chg_spin_ebd": False,
    "precision": "default",
}


def _read(d: Tree) -> Dpa3Config:
    refuse_newer(d, 2, "the descriptor dpa3")
    repflow = {**REPFLOW_DEFAULTS, **d["repflow_args"]}
    if d.get("add_chg_spin_ebd"):
        refuse("a dpa3 descriptor with add_chg_spin_ebd, which embeds charge and spin of a frame")
    if repflow["sequential_update"]:
        refuse("a dpa3 descriptor with sequential_update")
    cutoffs = {"rcut": repflow["e_rcut"], "rcut_smth": repflow["e_rcut_smth"]}
    check_env_mat(cutoffs, d.get("repflow_variable", {}))  # what it says of the switch is not true
    return Dpa3Config(
        order=2 if repflow["update_angle"] else 1,
        switch="exponential" if repflow["use_exp_switch"] else "polynomial",
        activation=activation(d["activation_function"]),
        exclude_types=pairs(d["exclude_types"]),
        **{key: repflow[key] for key in SAME},
        **{key: d[key] for key in AROUND},
    )


def _from_input(params: Tree) -> Tree:
    repflow = {**REPFLOW_DEFAULTS, **params["repflow"]}
    if repflow.pop("skip_stat", False):  # the older name of this
        repflow["fix_stat_std"] = 0.3
    return {**DEFAULTS, **params, "repflow_args": repflow}


def _repflow(config: Dpa3Config) -> Tree:
    """The section `repflow`."""
    if config.order > 2:
        raise UnsupportedModelError(
            f"the descriptor dpa3 has `order` {config.order}; expected 1 or 2: DeePMD-kit's files hold no dihedrals. "
            "Keep the model as a .dpsim file."
        )
    return {key: getattr(config, key) for key in SAME} | {
        "update_angle": config.order == 2,
        "use_exp_switch": config.switch == "exponential",
        "optim_update": True,
        "sequential_update": False,
    }


def _to_input(config: Dpa3Config) -> Tree:
    return {"type": "dpa3", "repflow": _repflow(config)} | _around(config)


def _around(config: Dpa3Config) -> Tree:
    return {key: getattr(config, key) for key in AROUND} | {
        "activation_function": config.activation,
        "exclude_types": [list(pair) for pair in config.exclude_types],
        "trainable": True,
        "use_loc_mapping": True,
        "add_chg_spin_ebd": False,
        "default_chg_spin": None,
    }


def _write(config: Dpa3Config, target: Target) -> Tree:
    repflow = _repflow(config)
    not_in_layers = ("nlayers", "fix_stat_std", "edge_init_use_dist", "use_exp_switch")
    layer = {key: value for key, value in repflow.items() if key not in not_in_layers} | {
        "@class": "RepFlowLayer",
        "@version": 2,
        "e_sel": [config.e_sel],
        "ntypes": len(target.type_map),
        "activation_function": config.activation,
        "precision": target.precision,
    }
    trained_steps = config.update_style == "res_residual"
    return {
        "@class": "Descriptor",
        "type": "dpa3",
        "@version": 2,
        "ntypes": len(target.type_map),
        "type_map": target.type_map,
        "precision": target.precision,
        "repflow_args": repflow,
        **_around(config),
        "type_embedding": type_embedding(config.n_dim, config.use_econf_tebd, config.use_tebd_bias, target),
        "repflow_variable": {
            "repflow_layers": [
                {**layer, "@variables": {"a_residual": []}} if trained_steps else dict(layer)
                for _ in range(config.nlayers)
            ],
            "env_mat": env_mat(config.e_rcut, config.e_rcut_smth, 0.0),
        },
    }


def _bindings(descriptor: Dpa3) -> list[Binding]:
    edge, angle, *_ = cast(list[Layer], descriptor.first)
    own = [
        Binding("edge_embd", "edge_embd", edge),
        Binding("angle_embd", "angle_embd", angle),
        Binding("@variables.davg", "mean", slots(descriptor.davg, sum(descriptor.sel))),
        Binding("@variables.dstd", "stddev", slots(descriptor.dstd, sum(descriptor.sel))),
    ]
    for k, layer in enumerate(descriptor.layers):
        parts = _of_layer(cast(UpdateLayer, layer))
        own += [part.under(f"repflow_layers.{k}", f"layers.{k}") for part in parts]
    return [
        *(binding.under("repflow_variable", "repflows") for binding in own),
        Binding(*TYPE_EMBEDDING, descriptor.type_embedding),
    ]


def _of_layer(layer: UpdateLayer) -> list[Binding]:
    of_graph = [cast(Messages, messages) for messages in layer.messages]
    layers: dict[str, Layer | None] = {
        "node_self_mlp": layer.node_self,
        "node_sym_linear": layer.node_sym,
        "node_edge_linear": of_graph[0].passed,
        "edge_self_linear": of_graph[0].own,
    }
    if layer.order > 1:
        layers |= {
            "edge_angle_linear1": of_graph[1].passed,
            "angle_self_linear": of_graph[1].own,
            "edge_angle_linear2": cast(Layer, layer.received[0]),
            "a_compress_n_linear": layer.compress_n,
            "a_compress_e_linear": layer.compress_e,
        }
    bindings = [Binding(name, name, part) for name, part in layers.items() if part is not None]
    for k, of in enumerate("nea"[: layer.order + 1]):
        values = layer.step(k).values
        if isinstance(values, nn.Parameter):
            steps = list(values.detach())
            bindings.append(Binding(f"@variables.{of}_residual", f"{of}_residual", steps))
    return bindings


DPA3 = Codec(
    kinds=("dpa3",),
    descriptor=Dpa3,
    read=_read,
    write=_write,
    bindings=_bindings,
    from_input=_from_input,
    to_input=_to_input,
)
