"""Small models of every kind that DeePMD-kit has, and its training checkpoints of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpsim.data.frame import Batch, Frame
from dpsim.models.config import ModelConfig
from dpsim.models.deepmd import binding
from dpsim.models.deepmd.model import kind_of, kind_of_model
from dpsim.models.energy_model import EnergyModel

NET = {"neuron": [4, 8]}
AXIS = {**NET, "axis_neuron": 2}
SHORT = {"rcut": 3.0, "rcut_smth": 1.0}
REPFLOW = {"n_dim": 8, "e_dim": 6, "a_dim": 4, "nlayers": 2, "e_rcut": 4.0, "e_rcut_smth": 3.0, "e_sel": 20}
DESCRIPTORS: dict[str, dict[str, Any]] = {
    "se_e2_a": {"type": "se_e2_a", "sel": [10, 12], **AXIS, "resnet_dt": True, "exclude_types": [[0, 0]]},
    "one side": {"type": "se_e2_a", "sel": [10, 12], **AXIS, "type_one_side": True, "activation": "gelu"},
    "se_e2_r": {"type": "se_e2_r", "sel": [10, 12], **NET, "type_one_side": True},
    "dpa1": {"type": "dpa1", "sel": 20, **AXIS, "attn": 4, "temperature": 0.4, "use_tebd_bias": True, "tebd_dim": 3},
    "strip": {"type": "dpa1", "sel": 20, **AXIS, "attn_layer": 0, "tebd_input_mode": "strip", "type_one_side": False},
    "econf": {"type": "dpa1", "sel": 20, **AXIS, "attn_layer": 1, "attn": 4, "use_econf_tebd": True, "ln_eps": 1e-3},
    "se_e3": {"type": "se_e3", "sel": [10, 12], **NET, **SHORT},
    "se_e3_tebd": {"type": "se_e3_tebd", "sel": 20, **NET, **SHORT, "tebd_dim": 4},
    "dpa2": {
        "type": "dpa2",
        "repinit": {"sel": 20, **AXIS, "tebd_dim": 4},
        "three_body": {"sel": 20, "neuron": [2, 4]},
        "repformer": {"sel": 20, "nlayers": 2, "g1_dim": 8, "g2_dim": 4, "attn1_hidden": 4, "attn2_hidden": 4},
    },
    "dpa3": {"type": "dpa3", **REPFLOW, "a_rcut": 3.0, "a_rcut_smth": 2.0, "a_sel": 20},
}
DESCRIPTORS["hybrid"] = {"type": "hybrid", "list": [DESCRIPTORS[k] for k in ("se_e2_a", "strip", "se_e2_r")]}


def make(kind: str = "se_e2_a", **settings: Any) -> EnergyModel:
    config = {"type_map": ["He", "Ne"], "descriptor": DESCRIPTORS[kind], "fitting": {"neuron": [9]}, **settings}
    model = EnergyModel(ModelConfig.model_validate({"precision": "float64", **config}), seed=3)
    model.energy_bias.copy_(torch.tensor([-1.5, 2.25]))
    for member in model.descriptor.members:
        member.dstd.copy_(member.dstd * torch.tensor([[0.5, 0.25, 0.25, 0.25], [0.75, 0.5, 0.5, 0.5]]))
    return model.eval()


def batch(rcut: float = 6.0) -> Batch:
    positions = np.random.default_rng(0).uniform(0, 4, (5, 3))
    frame = Frame(positions, np.array([0, 1, 1, 0, 1]), ("He", "Ne"), np.eye(3) * 9, np.ones(3, dtype=bool))
    return Batch.from_frames([frame], rcut)


def same_numbers(a: Any, b: Any, tolerance: float = 0.0) -> None:
    x, y = a(batch(a.rcut)), b(batch(b.rcut))
    for name in ("energy", "atom_energy", "forces", "virial"):
        torch.testing.assert_close(getattr(x, name), getattr(y, name), rtol=tolerance, atol=tolerance)


def checkpoint(models: dict[str, EnergyModel], single: bool = False) -> dict[str, Any]:
    """What DeePMD-kit's trainer writes, with its copies and its empty tables."""
    state: dict[str, Any] = {}
    params: dict[str, Any] = {}
    for head, model in models.items():
        kind = kind_of(kind_of_model(model))
        params[head] = kind.to_input(model) | {"info": {"observed_type": ["He"]}, "data_stat_nbatch": 10}
        prefix = f"model.{head}.atomic_model."
        for leaf in binding.leaves(kind.bindings(model)):
            value = leaf.value.write(leaf.value.tensor.detach()).contiguous().clone()
            state[prefix + leaf.key] = value
            if ".networks." in leaf.key:
                state[prefix + leaf.key.replace(".networks.", "._networks.")] = value
        state[f"{prefix}descriptor.compress_info.0"] = torch.zeros(0)
        state[f"model.{head}.min_nbor_dist"] = torch.tensor(0.75)
    model_params = next(iter(params.values())) if single else {"shared_dict": {}, "model_dict": params}
    state["_extra_state"] = {"model_params": model_params, "train_infos": {"lr": 1e-3, "step": 9}}
    return {"model": state, "optimizer": {"state": {}}}


def checkpoint_of_heads(folder: Path) -> Path:
    """A file of two: `water`, and `ice` of the kind dpa1."""
    torch.save(checkpoint({"water": make(), "ice": make("dpa1")}), folder / "heads.pt")
    return folder / "heads.pt"
