"""Every run of the accuracy table (docs/accuracy.md): a table of data sets, a table of models, one recipe for all.

The recipe is the same for every run; a set gives elements and cutoffs, a model gives sizes. What a run leaves in its
`train.yaml` is this file, written out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

STEPS = 3000
EMA = 0.995
LOG_EVERY, CHECKPOINT_EVERY = 100, 500  # steps


class DataSet(NamedTuple):
    """elements; cutoff of the neighbours, A; cutoff of the angles (DPA-3) and of the inner layers (DPA-2), A; tests."""

    elements: list[str]
    rcut: float
    inner_rcut: float
    tests: tuple[str, ...] = ("",)  # folders below <set>/test, each one column of the table


# Angles reach the second shell of bcc and diamond, the first of fcc, bonds and hydrogen bonds of molecules.
SETS = {
    "mlearn_mo": DataSet(["Mo"], 5.5, 4.0),
    "mlearn_si": DataSet(["Si"], 5.0, 4.0),
    "mlearn_ge": DataSet(["Ge"], 5.2, 4.2),
    "mlearn_li": DataSet(["Li"], 5.5, 4.2),
    "mlearn_cu": DataSet(["Cu"], 5.0, 3.5),
    "acac": DataSet(["H", "C", "O"], 5.0, 3.0, ("MD_300K", "MD_600K", "dihedral", "H_transfer")),
    "ta_pbe": DataSet(["Ta"], 5.5, 4.0),
    "water_pbe0ts": DataSet(["O", "H"], 5.0, 3.0),
}


def dpa1(data: DataSet) -> dict[str, Any]:
    """DPA-1 without attention layers, which cost eight times as much here."""
    return {
        "type": "dpa1",
        "rcut": data.rcut,
        "rcut_smth": 2.0,
        "neuron": [25, 50, 100],
        "axis_neuron": 8,
        "attn_layer": 0,
    }


def dpa2(data: DataSet) -> dict[str, Any]:
    """DPA-2 with the switches of the paper's small model: three repformers without attention, a three-body repinit."""
    return {
        "type": "dpa2",
        "repinit": {"rcut": data.rcut, "rcut_smth": 2.0, "neuron": [25, 50, 100], "axis_neuron": 8},
        "three_body": {"rcut": data.inner_rcut, "rcut_smth": data.inner_rcut - 0.5},
        "repformer": {
            "rcut": data.inner_rcut,
            "rcut_smth": data.inner_rcut - 0.5,
            "nlayers": 3,
            "g1_dim": 64,
            "g2_dim": 32,
            "update_g1_has_attn": False,
            "update_g2_has_g1g1": False,
            "update_g2_has_attn": False,
            "update_style": "res_residual",
            "update_residual": 0.01,
        },
    }


def dpa3(data: DataSet) -> dict[str, Any]:
    """DPA-3 of three layers, with half the paper's widths."""
    return {
        "type": "dpa3",
        "nlayers": 3,
        "n_dim": 64,
        "e_dim": 32,
        "a_dim": 16,
        "e_rcut": data.rcut,
        "e_rcut_smth": 0.7 * data.rcut,
        "a_rcut": data.inner_rcut,
        "a_rcut_smth": 0.7 * data.inner_rcut,
        "edge_init_use_dist": False,
    }


MODELS = {"dpa1": dpa1, "dpa2": dpa2, "dpa3": dpa3}


def training(data: DataSet, model: str, folder: Path) -> dict[str, Any]:
    """The contents of train.yaml for the data set in `folder`. All its training frames train; none validate."""
    return {
        "model": {
            "type_map": data.elements,
            "descriptor": MODELS[model](data),
            "fitting": {"neuron": [120, 120, 120]},
        },
        "data": {"train": [str(folder / "train")], "batch_size": "max:64"},
        "loss": {
            "energy": {"start": 0.2, "limit": 20.0},
            "forces": {"start": 100.0, "limit": 60.0},
            "virial": {"start": 0.02, "limit": 0.1},
        },
        "optimizer": {"type": "soap"},
        "schedule": {"kind": "cosine", "start_lr": 1e-2, "stop_lr": 3e-5, "warmup_steps": 100},
        "ema": {"decay": EMA},
        "steps": STEPS,
        "seed": 1,
        "threads": 1,
        "log_every": LOG_EVERY,
        "checkpoint": {"every": CHECKPOINT_EVERY},
        "tensorboard": False,
    }
