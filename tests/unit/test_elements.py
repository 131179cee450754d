"""dpsim/models/elements.py: the elements that stay keep every number; new ones can be trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dpsim.data.frame import Batch, Frame
from dpsim.errors import UnsupportedModelError
from dpsim.models.config import ModelConfig
from dpsim.models.elements import with_elements
from dpsim.models.energy_model import EnergyModel

SMALL = {"neuron": [4, 8], "rcut": 4.0}
DESCRIPTORS: dict[str, dict[str, Any]] = {
    "se_e2_a": {"type": "se_e2_a", "sel": [4, 5, 6], "axis_neuron": 2, **SMALL},
    "se_e2_a one side": {"type": "se_e2_a", "sel": [4, 5, 6], "axis_neuron": 2, "type_one_side": True, **SMALL},
    "se_e3": {"type": "se_e3", "sel": [4, 5, 6], **SMALL},
    "dpa1": {"type": "dpa1", "sel": 12, "axis_neuron": 2, **SMALL},
    "dpa1 of 3": {"type": "dpa1", "sel": 12, "axis_neuron": 2, "tebd_dim": 3, **SMALL},  # a residual type embedding
    "dpa1 of 4": {"type": "dpa1", "sel": 12, "axis_neuron": 2, "tebd_dim": 4, "use_tebd_bias": True, **SMALL},
    "dpa1 econf": {"type": "dpa1", "sel": 12, "axis_neuron": 2, "use_econf_tebd": True, **SMALL},
    "dpa2": {
        "type": "dpa2",
        "repinit": {"rcut": 4.0, "sel": 12, "neuron": [4, 8], "axis_neuron": 2},
        "three_body": {"rcut": 3.0, "sel": 12},
        "repformer": {"rcut": 3.0, "sel": 12, "nlayers": 2, "g1_dim": 8, "g2_dim": 4},
    },
    "dpa3": {
        "type": "dpa3",
        "nlayers": 2,
        "e_rcut": 4.0,
        "e_rcut_smth": 2.0,
        "e_sel": 12,
        "a_rcut": 3.0,
        "a_rcut_smth": 2.0,
        "a_sel": 8,
        "n_dim": 16,
        "e_dim": 8,
        "a_dim": 8,
    },
    "hybrid": {
        "type": "hybrid",
        "list": [
            {"type": "se_e2_r", "sel": [4, 5, 6], **SMALL},
            {"type": "dpa1", "sel": 12, "axis_neuron": 2, **SMALL},
        ],
    },
}


def model_of(descriptor: dict[str, Any], **more: Any) -> EnergyModel:
    settings = {"type_map": ["H", "C", "O"], "precision": "float64", "fitting": {"neuron": [6]}}
    model = EnergyModel(ModelConfig.model_validate({**settings, "descriptor": descriptor, **more}), seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype))
            if name.endswith("dstd"):
                tensor.clamp_(min=0.2)
    return model


def water(type_map: tuple[str, ...]) -> Frame:
    rng = np.random.default_rng(5)
    symbols = ["O", "H", "H", "O", "H", "H"]
    positions = np.array([[0, 0, 0], [1, 0, 0], [-0.3, 0.9, 0], [2.8, 0, 0], [3.3, 0.8, 0], [3.1, -0.5, 0.8]])
    return Frame(
        positions=positions + rng.uniform(-0.05, 0.05, positions.shape),
        types=np.array([type_map.index(s) for s in symbols]),
        type_map=type_map,
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
    )


def energy_and_forces(model: EnergyModel) -> tuple[float, np.ndarray]:
    p = model(Batch.from_frames([water(model.type_map)], model.rcut), virial=False)
    assert p.forces is not None
    return p.energy.item(), p.forces.numpy()


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_what_stays_keeps_every_number(name: str) -> None:
    model = model_of(DESCRIPTORS[name])
    energy, forces = energy_and_forces(model)
    for type_map in (["O", "H"], ["O", "C", "H"]):
        other = with_elements(model, type_map)
        assert other.type_map == tuple(type_map)
        e, f = energy_and_forces(other)
        assert e == pytest.approx(energy, abs=1e-12)
        np.testing.assert_allclose(f, forces, atol=1e-12)


@pytest.mark.parametrize("name", ["dpa1", "dpa1 of 3", "dpa1 of 4", "dpa1 econf", "dpa2", "dpa3"])
@pytest.mark.parametrize("type_wise", [None, True])
def test_new_elements_leave_the_others_alone(name: str, type_wise: bool | None) -> None:
    model = model_of(DESCRIPTORS[name], fitting={"neuron": [6], "type_wise": type_wise})
    energy, forces = energy_and_forces(model)
    other = with_elements(model, ["N", *model.type_map], seed=1)
    e, f = energy_and_forces(other)
    assert e == pytest.approx(energy, abs=1e-12)
    np.testing.assert_allclose(f, forces, atol=1e-12)
    assert other.energy_bias[0].item() == pytest.approx(model.energy_bias.mean().item())
    assert all(torch.isfinite(t).all() for t in other.state_dict().values())


def test_core_distances_follow() -> None:
    core = [[1.0, 1.1, 0.9], [1.1, 1.3, 1.2], [0.9, 1.2, 2.0]]
    other = with_elements(model_of(DESCRIPTORS["dpa1"], core_distances=core), ["O", "H", "N"])
    assert other.config.core_distances == [[2.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("more", "type_map", "message"),
    [
        ({"descriptor": DESCRIPTORS["se_e2_a"]}, ["H", "C", "O", "N"], "has nets of its own for each pair of elements"),
        ({"pair_table": {"table": "zbl"}}, ["H", "O"], "has a pair table"),
        ({"deepmd_conventions": True}, ["H", "O"], "has `deepmd_conventions`"),
        ({"atom_exclude_types": [1]}, ["H", "O"], "has excluded types"),
    ],
)
def test_models_that_cannot_change(more: dict[str, Any], type_map: list[str], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        with_elements(model_of(**{"descriptor": DESCRIPTORS["dpa1"], **more}), type_map)
