"""DPA-2 in every combination of channels that matters, with weights from a formula: DeePMD-kit's numbers for them.

No file of weights is needed: both sides fill the arrays of the portable format by their paths. Run by a Python with
DeePMD-kit, this file writes what it says to dpa2_channels.json, which test_dpa2_channels.py compares with dpsim.

    python tests/parity/dpa2_channels.py
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).with_suffix(".json")
TYPE_MAP = ["O", "H", "C"]
REPINIT = {"rcut": 4.5, "rcut_smth": 0.5, "nsel": 130, "neuron": [3, 6], "axis_neuron": 2, "tebd_dim": 3}
THREE_BODY = {"use_three_body": True, "three_body_sel": 90, "three_body_neuron": [2, 4], "three_body_rcut_smth": 2.0}
REPFORMER = {"rcut": 3.8, "rcut_smth": 2.0, "nsel": 80, "nlayers": 3, "g1_dim": 6, "g2_dim": 4, "axis_neuron": 2} | {
    "attn1_hidden": 5,
    "attn1_nhead": 2,
    "attn2_hidden": 3,
    "attn2_nhead": 3,
}
QUIET = {"update_g1_has_attn": False, "update_g2_has_attn": False, "update_g2_has_g1g1": False}
RESIDUAL = {"update_style": "res_residual"}
CHANNELS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {  # repinit, repformer, the rest
    "defaults": ({}, {}, {}),
    "paper": ({}, {"g1_out_conv": False, "g1_out_mlp": False, "use_sqrt_nnei": False, "attn2_has_gate": True}, {}),
    "local_attention": ({}, QUIET | {"update_g1_has_attn": True}, {}),
    "product": ({}, QUIET | RESIDUAL | {"update_g2_has_g1g1": True}, {}),
    "turning": ({}, {"update_h2": True, "update_style": "res_incr"}, {}),
    "turning_gated": ({}, QUIET | RESIDUAL | {"update_h2": True, "attn2_has_gate": True}, {}),
    "direct": (THREE_BODY, {"direct_dist": True, "update_h2": True}, {}),
    "not_smooth": (THREE_BODY, {"update_h2": True}, {"smooth": False}),
    "not_smooth_strip": (
        THREE_BODY | {"tebd_input_mode": "strip", "type_one_side": True},
        RESIDUAL | {"use_sqrt_nnei": False, "g1_out_conv": False, "attn2_has_gate": True},
        {"smooth": False},
    ),
    "econf": (
        {"resnet_dt": True, "activation_function": "gelu"},
        {"activation_function": "silu", "nlayers": 1},
        {"use_econf_tebd": True, "use_tebd_bias": True, "add_tebd_to_repinit_out": True, "concat_output_tebd": False},
    ),
    "excluded": (THREE_BODY, {}, {"exclude_types": [[0, 1], [2, 2]], "env_protection": 0.1}),
    "as_wide": ({}, QUIET | {"g1_dim": 12}, {}),
    "few_slots": (
        THREE_BODY | {"nsel": 40, "three_body_sel": 20},
        {"nsel": 15, "update_h2": True},
        {"exclude_types": [[1, 1]]},
    ),
}


def model_input(name: str) -> dict[str, Any]:
    """The `model` section of a training input."""
    repinit, repformer, rest = CHANNELS[name]
    descriptor = {"type": "dpa2", "repinit": REPINIT | repinit, "repformer": REPFORMER | repformer, **rest}
    return {
        "type_map": TYPE_MAP,
        "descriptor": descriptor | {"precision": "float64"},
        "fitting_net": {"type": "ener", "neuron": [6, 6], "resnet_dt": True, "precision": "float64"},
    }


def weights(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array at a path of the portable format, the same on any machine."""
    x = np.sin(zlib.crc32(path.encode()) % 1000 + 1.7 * np.arange(np.prod(shape, dtype=int))).reshape(shape)
    name = path.rsplit(".", 1)[-1]
    if name in ("davg", "dstd"):  # for each type and slot the mean and deviation of s, x, y, z
        of_type = np.arange(1, 1 + shape[0])[:, None, None]
        mean, deviation = ([0.02, 0, 0, 0], [0.2, 0.1, 0.1, 0.1])
        return np.broadcast_to(of_type * (mean if name == "davg" else deviation), shape).copy()
    if name == "w":
        return x * (1.5 / np.sqrt(shape[0]) if len(shape) == 2 else 1.0)
    return 0.5 * x + (1.0 if name == "idt" else 0.0)


def frame() -> dict[str, np.ndarray]:
    """Seven atoms of three elements in a triclinic cell that is smaller than the cutoffs."""
    cell = np.array([[4.6, 0.3, 0.0], [0.7, 4.9, -0.4], [0.2, -0.6, 5.3]])
    k = np.arange(7)
    fractions = np.stack([0.05 + 0.28 * k % 1, 0.1 + 0.43 * k % 1, 0.15 + 0.61 * k % 1], 1) + 0.05 * np.sin(
        3.0 * np.arange(21)
    ).reshape(7, 3)
    return {"coord": fractions @ cell, "cell": cell, "type": k % 3}


def main() -> None:
    """Write DeePMD-kit's numbers."""
    import torch
    from deepmd.pt.model.model import get_model
    from deepmd.pt.model.model.model import BaseModel
    from deepmd.utils.argcheck import normalize

    numbers = {}
    f = frame()
    for name in CHANNELS:
        config = {"model": model_input(name), "training": {"training_data": {"systems": []}, "numb_steps": 1}}
        tree = get_model(normalize(config)["model"]).serialize()

        def fill(node: Any, path: str) -> Any:
            if isinstance(node, dict):
                return {k: fill(v, f"{path}.{k}") for k, v in node.items()}
            if isinstance(node, list):
                return [fill(v, f"{path}.{k}") for k, v in enumerate(node)]
            keep = not isinstance(node, np.ndarray) or path.endswith("out_std")
            return node if keep else weights(path.removeprefix("."), node.shape)

        model = BaseModel.deserialize(fill(tree, ""))
        x, cell, types = (torch.tensor(f[k])[None] for k in ("coord", "cell", "type"))
        out = model(x.requires_grad_(), types, cell.reshape(1, 9))
        numbers[name] = {k: out[k].detach().numpy().ravel().tolist() for k in ("atom_energy", "force", "virial")}
    PATH.write_text(json.dumps(numbers, indent=0) + "\n")


if __name__ == "__main__":
    main()
