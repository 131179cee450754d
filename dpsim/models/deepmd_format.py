"""Reading DeePMD-kit's portable model files (`.dp`, HDF5; `.yaml`) into a dpsim model.

The file's meaning wins over the papers': an imported model evaluates with `deepmd_conventions` on wherever it cuts
neighbours at `sel` or standardises with davg != 0. Its format is described in docs/model-file.md.
DeePMD-kit's names (coord, box, davg, idt, matrix) live in this file only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor

from dpsim.errors import ModelFileError, UnsupportedModelError
from dpsim.models.config import FittingConfig, ModelConfig
from dpsim.models.descriptor_config import Dpa1Config, HybridConfig, SeE2aConfig, SeE2rConfig, SingleConfig
from dpsim.models.descriptors.base import EnvironmentDescriptor, PairDescriptor
from dpsim.models.descriptors.dpa1 import Dpa1, GatedAttention
from dpsim.models.energy_model import EnergyModel

Tree = dict[str, Any]
ACTIVATIONS = {"linear": "linear", "none": "none", "": "none"}


def load_tree(path: Path) -> Tree:
    """The tree of a portable file, arrays in place of their names. Raises ModelFileError."""
    try:
        if path.suffix == ".dp":
            return _load_hdf5(path)
        if path.suffix in (".yaml", ".yml"):
            return _load_yaml(path)
    except FileNotFoundError:
        raise ModelFileError(f"`{path}` does not exist.") from None
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ModelFileError(f"`{path}` is not a readable DeePMD-kit portable model: {error}.") from error
    raise ModelFileError(
        f"`{path}` ends in '{path.suffix}'; expected .dp or .yaml. Convert it with DeePMD-kit's "
        f"`dp convert-backend {path.name} model.dp` first."
    )


def _load_hdf5(path: Path) -> Tree:
    import h5py

    with h5py.File(path) as file:
        root = json.loads(file.attrs["json"])

        def resolve(node: Any, variable: bool = False) -> Any:
            if isinstance(node, dict):
                return {k: resolve(v, variable or k == "@variables") for k, v in node.items()}
            if isinstance(node, list):
                return [resolve(v, variable) for v in node]
            return file[node][()] if variable and isinstance(node, str) else node

        return resolve(root)


def _load_yaml(path: Path) -> Tree:
    import yaml

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if node.get("@class") == "np.ndarray":
                return np.array(node["value"], dtype=np.dtype(node["dtype"]))
            return {k: resolve(v) for k, v in node.items()}
        return [resolve(v) for v in node] if isinstance(node, list) else node

    return resolve(yaml.safe_load(path.read_text()))


def read_deepmd(path: str | Path) -> EnergyModel:
    """A DeePMD-kit portable file as a dpsim model.

    Raises: ModelFileError on an unreadable file, UnsupportedModelError (naming the kind) on models dpsim lacks.
    """
    path = Path(path)
    tree = load_tree(path)
    try:
        model = build_model(tree["model"])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ModelFileError(f"`{path}` is not a complete DeePMD-kit model: {error!r} is missing or odd.") from error
    model.metadata = {
        "imported_from": {
            "file": path.name,
            "software": tree.get("software", "deepmd-kit"),
            "version": str(tree.get("version", "")),
            "min_nbor_dist": _scalar(tree.get("@variables", {}).get("min_nbor_dist")),
        }
    }
    return model


def _scalar(x: Any) -> float | None:
    return None if x is None else float(np.asarray(x).reshape(-1)[0])


def _refuse(what: str) -> NoReturn:
    raise UnsupportedModelError(
        f"the file holds {what}, which this version of dpsim does not evaluate. "
        "It reads energy models with the descriptors se_e2_a, se_e2_r, dpa1 (se_atten, se_atten_v2) and their hybrids."
    )


def build_model(tree: Tree) -> EnergyModel:
    """A model from the `model` node of a portable file."""
    if tree.get("type", "standard") != "standard":
        _refuse(f"a model of type '{tree['type']}'")
    fitting, descriptor = tree["fitting"], tree["descriptor"]
    if fitting.get("type", "ener") != "ener":
        _refuse(f"a '{fitting['type']}' fitting")
    for key, what in (
        ("numb_fparam", "frame parameters (fparam)"),
        ("numb_aparam", "atomic parameters (aparam)"),
        ("dim_case_embd", "a case embedding"),
    ):
        if fitting.get(key):
            _refuse(f"a fitting with {what}")
    if (fitting.get("exclude_types") or []) != (tree.get("atom_exclude_types") or []):
        _refuse("a fitting whose exclude_types are not the model's atom_exclude_types")
    hybrid = descriptor["type"] == "hybrid"
    parts = descriptor["list"] if hybrid else [descriptor]
    if any(d.get("spin") for d in (*parts, fitting)):
        _refuse("a spin model")
    configs = [_descriptor_config(d) for d in parts]
    config = ModelConfig(
        type_map=tree["type_map"],
        descriptor=HybridConfig(list=configs) if hybrid else configs[0],
        fitting=FittingConfig(
            neuron=fitting["neuron"],
            activation=_activation(fitting["activation_function"]),
            resnet_dt=fitting["resnet_dt"],
            type_wise=not fitting["mixed_types"],
        ),
        precision="float64" if any("64" in str(d["precision"]) for d in (*parts, fitting)) else "float32",
        atom_exclude_types=tree.get("atom_exclude_types") or [],
        pair_exclude_types=[tuple(p) for p in tree.get("pair_exclude_types") or []],
        deepmd_conventions=True,
    )
    model = EnergyModel(config)
    with torch.no_grad():
        for target, d in zip(model.descriptor.members, parts, strict=True):
            _fill_descriptor(target, d)
            _check_list(target, model.rcut)
        nets = fitting["nets"]["networks"]
        for net, source in zip(model.fitting.nets, nets, strict=True):
            _fill_net(net, source)
        bias = np.asarray(fitting["@variables"]["bias_atom_e"], dtype=np.float64).reshape(-1)
        out_bias = np.asarray(tree["@variables"]["out_bias"], dtype=np.float64)[0, :, 0]
        model.energy_bias.copy_(torch.from_numpy(bias + out_bias))
    return model


def _activation(name: str | None) -> str:
    name = str(name or "none").lower()
    known = ("tanh", "gelu", "gelu_tf", "relu", "relu6", "softplus", "sigmoid", "silu")
    if name not in (*known, *ACTIVATIONS):
        _refuse(f"the activation function '{name}'")
    return ACTIVATIONS.get(name, name)


def _shared(d: Tree) -> Tree:
    return {
        "rcut": d["rcut"],
        "rcut_smth": d["rcut_smth"],
        "neuron": d["neuron"],
        "activation": _activation(d["activation_function"]),
        "resnet_dt": d["resnet_dt"],
        "exclude_types": [tuple(p) for p in d.get("exclude_types") or []],
        "env_protection": d.get("env_protection", 0.0),
    }


def _descriptor_config(d: Tree) -> SingleConfig:
    match d["type"]:
        case "se_e2_a":
            typed = {"sel": d["sel"], "type_one_side": d["type_one_side"]}
            return SeE2aConfig(axis_neuron=d["axis_neuron"], **typed, **_shared(d))
        case "se_e2_r" | "se_r":
            return SeE2rConfig(sel=d["sel"], type_one_side=d["type_one_side"], **_shared(d))
        case "dpa1" | "se_atten" | "se_atten_v2":
            return _dpa1_config(d)
        case "hybrid":
            _refuse("a hybrid inside a hybrid")
        case kind:
            _refuse(f"the descriptor '{kind}'")


def _dpa1_config(d: Tree) -> Dpa1Config:
    if d["type"] == "se_atten_v2":  # dpa1 with these two settings, which its files do not write
        d = {**d, "tebd_input_mode": "strip", "smooth_type_embedding": True}
    sel = d["sel"] if isinstance(d["sel"], int) else sum(d["sel"])
    if d.get("attn_mask"):
        _refuse("a dpa1 descriptor with attn_mask")
    return Dpa1Config(
        sel=sel,
        axis_neuron=d["axis_neuron"],
        tebd_dim=d["tebd_dim"],
        tebd_input_mode=d["tebd_input_mode"],
        type_one_side=d["type_one_side"],
        concat_output_tebd=d["concat_output_tebd"],
        use_econf_tebd=d.get("use_econf_tebd", False),
        use_tebd_bias=d.get("use_tebd_bias", True),  # files without the key are older than the option
        attn_layer=d["attn_layer"],
        attn=d["attn"],
        attn_dotr=d["attn_dotr"],
        normalize=d["normalize"],
        scaling_factor=d["scaling_factor"],
        temperature=d["temperature"],
        ln_eps=d["ln_eps"] or 1e-5,
        smooth=d["smooth_type_embedding"],
        **_shared(d),
    )


def _fill_descriptor(target: EnvironmentDescriptor, d: Tree) -> None:
    davg, dstd = (np.asarray(d["@variables"][k], dtype=np.float64) for k in ("davg", "dstd"))
    if np.ptp(davg, axis=1).any() or np.ptp(dstd, axis=1).any():
        _refuse("a descriptor with davg or dstd that differ between the slots of one type")
    columns = davg.shape[2]  # 1: distances only
    target.davg[:, :columns].copy_(torch.from_numpy(davg[:, 0]))
    target.dstd[:, :columns].copy_(torch.from_numpy(dstd[:, 0]))
    if isinstance(target, PairDescriptor):
        n = target.n_types
        for index, source in enumerate(d["embeddings"]["networks"]):  # two-sided: index = centre + n * neighbour
            _fill_net(target.net(index % n, index if target.one_side else index // n), source)
    elif isinstance(target, Dpa1):
        if target.attention and (davg[:, :, 1:].any() or np.ptp(dstd[:, :, 1:], axis=2).any()):
            _refuse("an attention descriptor standardised differently along x, y and z")
        _fill_dpa1(target, d)


def _check_list(target: EnvironmentDescriptor, rcut: float) -> None:
    """In a hybrid, slots of dpa1 may hold atoms beyond its own cutoff. Refuse where they differ from empty slots."""
    if isinstance(target, Dpa1) and target.rcut < rcut:
        attends = len(target.attention) > 0 and not target.smooth
        if attends or bool(target.davg.any()):
            _refuse(
                "a hybrid whose dpa1 has a shorter cutoff than others, and davg != 0 or attention that is not smooth"
            )


def _fill_dpa1(target: Dpa1, d: Tree) -> None:
    _fill_net(target.net, d["embeddings"]["networks"][0])
    if target.strip_net is not None:
        _fill_net(target.strip_net, d["embeddings_strip"]["networks"][0])
    _fill_net(target.type_embedding, d["type_embedding"]["embedding"])
    sources = d["attention_layers"]["attention_layers"] if target.attention else []
    for layer, source in zip(target.attention, sources, strict=True):
        attention = cast(GatedAttention, layer)
        _fill_layer(attention.in_proj, source["attention_layer"]["in_proj"])
        _fill_layer(attention.out_proj, source["attention_layer"]["out_proj"])
        attention.norm.weight.copy_(_tensor(source["attn_layer_norm"]["@variables"]["w"]))
        attention.norm.bias.copy_(_tensor(source["attn_layer_norm"]["@variables"]["b"]))


def _tensor(x: Any) -> Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float64))


def _fill_net(net: torch.nn.Module, source: Tree) -> None:
    for layer, s in zip(net.children(), source["layers"], strict=True):
        _fill_layer(layer, s)


def _fill_layer(layer: torch.nn.Module, source: Tree) -> None:
    variables = source["@variables"]
    for name, key in (("weight", "w"), ("bias", "b"), ("idt", "idt")):
        ours, theirs = getattr(layer, name), variables.get(key)
        if (ours is None) != (theirs is None):
            raise ModelFileError(f"a layer of the file has {key} = {theirs is not None}; expected {ours is not None}.")
        if ours is not None:
            value = _tensor(theirs)
            if value.shape != ours.shape:
                raise ModelFileError(
                    f"`{key}` of a layer is of shape {tuple(value.shape)}; expected {tuple(ours.shape)}."
                )
            ours.copy_(value)
