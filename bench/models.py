"""The models that the benchmarks compare, in the words of DeePMD-kit's input: one file of weights serves both sides."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from side_by_side import HERE

if TYPE_CHECKING:
    from dpsim.models.energy_model import EnergyModel


@dataclass(frozen=True)
class Model:
    """A descriptor (`model.descriptor` of the peer's input), its fitting net's activation and what is aimed at.

    native: the statistics leave davg = 0, and `sel` holds all neighbours of the water measured here, so dpsim gives
    the same numbers without DeePMD-kit's conventions; otherwise the imported model is measured as it is.
    inference, training: how many times as fast as the peer, the target of bench/teachers.py.
    """

    descriptor: dict[str, Any]
    activation: str = "tanh"
    native: bool = True
    inference: float = 1.0
    training: float = 1.0


COMMON: dict[str, Any] = {"rcut": 6.0, "rcut_smth": 0.5, "neuron": [25, 50, 100], "axis_neuron": 16}
SE_E2_A: dict[str, Any] = {**COMMON, "type": "se_e2_a", "sel": [46, 92], "type_one_side": False}


def dpa1(layers: int, mode: str) -> dict[str, Any]:
    """DPA-1 of `layers` attention layers; `mode`: how types enter the embedding net."""
    return {
        **COMMON, "type": "dpa1", "sel": 138, "tebd_dim": 8, "attn": 128, "attn_layer": layers, "attn_dotr": True,
        "tebd_input_mode": mode, "type_one_side": True, "concat_output_tebd": True, "smooth_type_embedding": True,
        "set_davg_zero": True,
    }  # fmt: skip


def dpa2(layers: int, attention: bool) -> dict[str, Any]:
    """DPA-2 of the peer's water examples: `small` has 3 layers without attention, `medium` 6 with gated attention."""
    return {
        "type": "dpa2", "add_tebd_to_repinit_out": False,
        "repinit": {
            "tebd_dim": 8, "rcut": 6.0, "rcut_smth": 0.5, "nsel": 120, "neuron": [25, 50, 100], "axis_neuron": 12,
            "use_three_body": True, "three_body_sel": 48, "three_body_rcut": 4.0, "three_body_rcut_smth": 3.5,
        },
        "repformer": {
            "rcut": 4.0, "rcut_smth": 3.5, "nsel": 48, "nlayers": layers, "g1_dim": 128, "g2_dim": 32,
            "attn2_hidden": 32, "attn2_nhead": 4, "attn1_hidden": 128, "attn1_nhead": 4, "axis_neuron": 4,
            "update_h2": False, "update_g1_has_conv": True, "update_g1_has_grrg": True, "update_g1_has_drrd": True,
            "update_g1_has_attn": False, "update_g2_has_g1g1": False, "update_g2_has_attn": attention,
            "attn2_has_gate": True, "update_style": "res_residual", "update_residual": 0.01,
            "update_residual_init": "norm", "use_sqrt_nnei": True, "g1_out_conv": True, "g1_out_mlp": True,
        },
    }  # fmt: skip


def dpa3(layers: int) -> dict[str, Any]:
    """DPA-3 of the paper's Table S-6, a line graph series of order 2."""
    return {
        "type": "dpa3", "activation_function": "silut:10.0", "use_tebd_bias": False, "concat_output_tebd": False,
        "repflow": {
            "nlayers": layers, "n_dim": 128, "e_dim": 64, "a_dim": 32, "axis_neuron": 4,
            "e_rcut": 6.0, "e_rcut_smth": 5.3, "e_sel": 120, "a_rcut": 4.0, "a_rcut_smth": 3.5, "a_sel": 30,
            "a_compress_rate": 1, "a_compress_e_rate": 2, "a_compress_use_split": True, "update_angle": True,
            "smooth_edge_update": True, "edge_init_use_dist": True, "use_exp_switch": True, "fix_stat_std": 0.3,
            "update_style": "res_residual", "update_residual": 0.1, "update_residual_init": "const",
        },
    }  # fmt: skip


MODELS: dict[str, Model] = {
    "se_e2_a": Model({**SE_E2_A, "set_davg_zero": True}),
    "dpa1_L0_concat": Model(dpa1(0, "concat")),
    "dpa1_L0_strip": Model(dpa1(0, "strip")),
    "dpa1_L2": Model(dpa1(2, "concat")),
    "dpa2_small": Model(dpa2(3, False), native=False, inference=4, training=2),
    "dpa2_medium": Model(dpa2(6, True), native=False, inference=4, training=2),
    "dpa3_L3": Model(dpa3(3), "silut:10.0", native=False, inference=8, training=3),
    "dpa3_L6": Model(dpa3(6), "silut:10.0", native=False, inference=8, training=3),
}
CLASSICS = [name for name in MODELS if not name.startswith(("dpa2", "dpa3"))]
TEACHERS = [name for name in MODELS if name not in CLASSICS]

LOSS = {
    "start_pref_e": 0.02, "limit_pref_e": 1.0,
    "start_pref_f": 1000.0, "limit_pref_f": 1.0,
    "start_pref_v": 0.0, "limit_pref_v": 0.0,
}  # fmt: skip
LEARNING_RATE = {"start_lr": 1e-3, "stop_lr": 1e-8, "decay_steps": 5000}
N_STEPS = 1_000_000  # of the schedule; never reached


def peer_input(model: Model, data: Path) -> dict[str, Any]:
    """Model and training as an input of DeePMD-kit 3.2."""
    fitting = {"neuron": [240, 240, 240], "resnet_dt": True, "activation_function": model.activation}
    return {
        "model": {
            "type_map": ["O", "H"],
            "descriptor": {**model.descriptor, "precision": "float32", "seed": 1},
            "fitting_net": {**fitting, "precision": "float32", "seed": 1},
        },
        "learning_rate": {"type": "exp", **LEARNING_RATE},
        "loss": {"type": "ener", **LOSS},
        "training": {
            "training_data": {"systems": [str(data)], "batch_size": 1},
            "numb_steps": N_STEPS,
            "seed": 10,
            "disp_freq": N_STEPS,
            "save_freq": N_STEPS,
            "disp_training": False,
        },
    }


def make_model(name: str, data: Path, peer_python: str | None, folder: Path) -> dict[str, Path]:
    """The file of a model for each side: `model.pth` and `model.dpsim`.

    The peer makes it, with random weights and the statistics of the data, in its portable format too (`model.dp`),
    from which dpsim imports. Without a peer: random weights of our own.
    """
    from dpsim import read_deepmd, save_model
    from dpsim.models.energy_model import EnergyModel

    folder.mkdir(parents=True, exist_ok=True)
    own = folder / "model.dpsim"
    if peer_python is None:
        save_model(own, random_model(name), {})
        return {"dpsim": own}
    (folder / "input.json").write_text(json.dumps(peer_input(MODELS[name], data), indent=1))
    command = [peer_python, str(HERE / "workers/peer_model.py"), "input.json"]
    environment = {**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": "", "NUM_WORKERS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: DeePMD-kit could not make the model:\n{done.stderr[-3000:]}")
    model = read_deepmd(folder / "model.dp")
    if MODELS[name].native:
        imported = model.state_dict()
        model = EnergyModel(model.config.model_copy(update={"deepmd_conventions": False}))
        model.load_state_dict(imported)
    save_model(own, model, {})
    return {"deepmd-kit": folder / "model.pth", "dpsim": own}


def random_model(name: str, seed: int = 0) -> EnergyModel:
    """A model of the table with random weights, without the peer."""
    from dpsim.models.config import FittingConfig, ModelConfig
    from dpsim.models.deepmd.codec import codec_of
    from dpsim.models.energy_model import EnergyModel

    model = MODELS[name]
    codec = codec_of(model.descriptor["type"])
    config = ModelConfig(
        type_map=["O", "H"],
        descriptor=codec.read(codec.from_input(model.descriptor)),
        fitting=FittingConfig(activation=model.activation),
        deepmd_conventions=not model.native,
    )
    return EnergyModel(config, seed=seed)
