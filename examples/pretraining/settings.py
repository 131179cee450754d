"""The pre-training of docs/pretraining.md: twelve public sets, seven levels of theory, one DPA-3 descriptor.

Also the models that it is compared with: one per set, of the same architecture, which see as many batches of their set
as the pre-training does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

# How often a set is drawn, relative to the others: by its size and its variety, and water, whose frames are six times
# as large as a batch of the others, less.
WEIGHTS = {
    "perovskite_pbesol": 2.0,
    "tio2_pbe": 2.0,
    "inp_lda": 1.5,
    "spice_dipeptides": 1.0,
    "llzo": 1.0,
    "ta_pbe": 0.75,
    "mlearn_mo": 0.75,
    "mlearn_si": 0.75,
    "mlearn_ge": 0.75,
    "mlearn_li": 0.75,
    "mlearn_cu": 0.75,
    "water_pbe_dipole": 0.5,
}
LEVELS = {
    "perovskite_pbesol": "PBEsol (ABACUS)",
    "tio2_pbe": "PBE (QE)",
    "inp_lda": "LDA",
    "spice_dipeptides": "wB97M-D3(BJ)",
    "llzo": "PBEsol (VASP)",
    "ta_pbe": "PBE (VASP)",
    "mlearn_mo": "PBE (VASP)",
    "mlearn_si": "PBE (VASP)",
    "mlearn_ge": "PBE (VASP)",
    "mlearn_li": "PBE (VASP)",
    "mlearn_cu": "PBE (VASP)",
    "water_pbe_dipole": "PBE (VASP, 1500 eV)",
}
# All that occur, by atomic number.
ELEMENTS = ["H", "Li", "C", "N", "O", "Na", "Mg", "Si", "P", "S", "Ca", "Ti", "Cu", "Zn", "Ge", "Sr", "Zr", "Nb", "Mo",
            "In", "Ba", "La", "Hf", "Ta", "Pb", "Bi"]  # fmt: skip
BATCHES_PER_STEP = 4
STEPS = 6000
DRAWS_PER_WEIGHT = BATCHES_PER_STEP * STEPS / sum(WEIGHTS.values())
# Sets that the pre-training never sees, and the set whose head is asked about them.
UNSEEN = {
    "water_scan": "water_pbe_dipole",
    "water_pbe0ts": "water_pbe_dipole",
    "hfo2_pbe": "perovskite_pbesol",
    "si_pbe_qe": "mlearn_si",
    "acac": "spice_dipeptides",
    "3bpa": "spice_dipeptides",
}


def model() -> dict[str, Any]:
    """DPA-3 of three layers, half the paper's widths, cutoffs that suit molecules and metals alike."""
    return {
        "type_map": ELEMENTS,
        "descriptor": {
            "type": "dpa3",
            "nlayers": 3,
            "n_dim": 64,
            "e_dim": 32,
            "a_dim": 16,
            "e_rcut": 5.5,
            "e_rcut_smth": 3.85,
            "a_rcut": 3.7,
            "a_rcut_smth": 2.6,
            "edge_init_use_dist": False,
        },
        "fitting": {"neuron": [120, 120, 120]},
    }


def recipe(steps: int) -> dict[str, Any]:
    """What all runs share: that of docs/accuracy.md, half its learning rate."""
    return {
        "loss": {
            "energy": {"start": 0.2, "limit": 20.0},
            "forces": {"start": 100.0, "limit": 60.0},
            "virial": {"start": 0.02, "limit": 0.1},
        },
        "optimizer": {"type": "soap"},
        "schedule": {"kind": "cosine", "start_lr": 5e-3, "stop_lr": 3e-5, "warmup_steps": 100},
        "ema": {"decay": 0.995},
        "steps": steps,
        "seed": 1,
        "threads": 1,
        "log_every": 100,
        "checkpoint": {"every": 250},
        "tensorboard": False,
    }


def pretraining(data: Path) -> dict[str, Any]:
    """train.yaml of the pre-training, for the sets in the folder `data`."""
    tasks = {
        name: {"train": [str(data / name / "train")], "batch_size": "max:64", "weight": weight}
        for name, weight in WEIGHTS.items()
    }
    return {
        "model": model(),
        "heads": "separate",
        "tasks": tasks,
        "batches_per_step": BATCHES_PER_STEP,
        **recipe(STEPS),
    }


def single(name: str, data: Path) -> dict[str, Any]:
    """train.yaml of a model of one set, which makes as many draws of it as the pre-training does on average."""
    return {
        "model": model(),
        "data": {"train": [str(data / name / "train")], "batch_size": "max:64"},
        **recipe(round(DRAWS_PER_WEIGHT * WEIGHTS[name])),
    }
