"""The physics suite over every descriptor."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from model_suite import TYPE_MAP, PhysicsOfAModel, build, energy, frame, pair, predict

from dpsim.data.frame import Batch, Frame
from dpsim.models.config import ModelConfig
from dpsim.models.descriptor_config import Dpa1Config, HybridConfig, SeE2aConfig, SeE2rConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.models.graph import Graph

SMALL: dict[str, object] = {"rcut": 4.0, "rcut_smth": 1.0, "neuron": [5, 10], "axis_neuron": 3}
SE_E2_A = {
    "two_side": SeE2aConfig(**SMALL, sel=[20, 20, 20]),
    "one_side": SeE2aConfig(**SMALL, sel=[20, 20, 20], type_one_side=True, resnet_dt=True),
    "gelu_excluded": SeE2aConfig(**SMALL, sel=[20, 20, 20], activation="gelu", exclude_types=[(0, 1)]),
    "below_sel": SeE2aConfig(**SMALL, sel=[2, 2, 2]),
}
DPA1 = {
    "concat": Dpa1Config(**SMALL, sel=60, attn_layer=0, tebd_dim=4),
    "strip": Dpa1Config(**SMALL, sel=60, attn_layer=0, tebd_dim=4, tebd_input_mode="strip"),
    "strip_two_side": Dpa1Config(
        **SMALL, sel=60, attn_layer=0, tebd_dim=4, tebd_input_mode="strip", type_one_side=False, use_tebd_bias=True
    ),
    "residual_concat": Dpa1Config(**SMALL, sel=60, attn_layer=0, tebd_dim=4, concat_output_tebd=False),
    "attention": Dpa1Config(**SMALL, sel=60, attn_layer=2, attn=6, tebd_dim=4),
    "attention_strip": Dpa1Config(**SMALL, sel=60, attn_layer=1, attn=6, tebd_dim=4, tebd_input_mode="strip"),
    "attention_below_sel": Dpa1Config(**SMALL, sel=5, attn_layer=1, attn=6, tebd_dim=4),
    "attention_econf": Dpa1Config(**SMALL, sel=60, attn_layer=1, attn=6, use_econf_tebd=True, temperature=0.7),
    "not_smooth": Dpa1Config(**SMALL, sel=60, attn_layer=1, attn=6, smooth=False, attn_dotr=False, normalize=False),
}
RADIAL: dict[str, object] = {"rcut": 4.0, "rcut_smth": 1.0, "neuron": [5, 10]}
SE_E2_R = {
    "two_side": SeE2rConfig(**RADIAL, sel=[20, 20, 20]),
    "one_side": SeE2rConfig(**RADIAL, sel=[20, 20, 20], type_one_side=True, resnet_dt=True),
    "gelu_excluded": SeE2rConfig(**RADIAL, sel=[20, 20, 20], activation="gelu", exclude_types=[(0, 1)]),
    "below_sel": SeE2rConfig(**RADIAL, sel=[2, 2, 2]),
}
SHORT = {"rcut": 2.5, "rcut_smth": 0.5}
HYBRID = {
    "angular_and_radial": HybridConfig(list=[SeE2aConfig(**SMALL | SHORT, sel=[5, 5, 5]), SE_E2_R["two_side"]]),
    "with_attention": HybridConfig(
        list=[DPA1["concat"], Dpa1Config(**SMALL | SHORT, sel=15, attn_layer=1, attn=6, tebd_dim=4)]
    ),
    "three": HybridConfig(list=[SeE2rConfig(**RADIAL | SHORT, sel=[5, 5, 5]), SE_E2_A["gelu_excluded"], DPA1["strip"]]),
    "of_one": HybridConfig(list=[SE_E2_A["one_side"]]),
}


@pytest.mark.parametrize("name", SE_E2_A)
class TestSeE2a(PhysicsOfAModel):
    descriptors: ClassVar = SE_E2_A


@pytest.mark.parametrize("name", DPA1)
class TestDpa1(PhysicsOfAModel):
    descriptors: ClassVar = DPA1
    smooth = frozenset(DPA1) - {"not_smooth"}


@pytest.mark.parametrize("name", SE_E2_R)
class TestSeE2r(PhysicsOfAModel):
    descriptors: ClassVar = SE_E2_R


@pytest.mark.parametrize("name", HYBRID)
class TestHybrid(PhysicsOfAModel):
    descriptors: ClassVar = HYBRID


def test_a_hybrid_is_its_parts_side_by_side() -> None:
    model = build(HYBRID["three"])
    assert model.rcut == 4.0
    parts = [model.descriptor.members[k] for k in range(3)]
    assert [type(p).__name__ for p in parts] == ["SeE2r", "SeE2a", "Dpa1"]
    batch = Batch.from_frames([frame()], 4.0)
    graph, _ = Graph.from_batch(batch, batch.edge_vectors(), 3)
    near, _ = Graph.from_batch(short := Batch.from_frames([frame()], 2.5), short.edge_vectors(), 3)
    assert len(near.center) < len(graph.center)
    expected = torch.cat([parts[0](near), parts[1](graph), parts[2](graph)], 1)
    assert torch.equal(model.descriptor(graph), expected)
    assert expected.shape[1] == model.descriptor.dim_out


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([], "at least 1"),
        ([{"type": "hybrid", "list": []}], "'se_e2_a', 'se_e2_r', 'se_e3'"),
        ([{"type": "se_e2_r", "sel": [4]}], "expected one number for each"),
        ([{"type": "se_e2_r"}, {"type": "se_e2_a", "exclude_types": [(0, 3)]}], "excluded types are"),
        ([{"type": "se_e2_r", "axis_neuron": 4}], "axis_neuron"),
    ],
)
def test_settings_of_a_hybrid_are_checked(parts: list[dict[str, object]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ModelConfig.model_validate({"type_map": list(TYPE_MAP), "descriptor": {"type": "hybrid", "list": parts}})


def test_se_e2_r_of_an_isolated_atom_is_zero_and_without_limit() -> None:
    """D = 0 without neighbours, and each neighbour adds N(s) - N(0), however many there are."""
    descriptor = build(SE_E2_R["below_sel"]).descriptor

    def d(*r: float) -> torch.Tensor:
        """Of the first of a row of O atoms, the others at these distances from it."""
        x, n = np.array([[0.0, 0, 0], *([x, 0, 0] for x in r)]), len(r) + 1
        batch = Batch.from_frames([Frame(x, np.zeros(n, int), TYPE_MAP, np.zeros((3, 3)), np.zeros(3, bool))], 4.0)
        return descriptor(Graph.from_batch(batch, batch.edge_vectors(), 3)[0])[0]

    assert not d().any()
    torch.testing.assert_close(d(4.0), d())
    torch.testing.assert_close(d(1.0, 1.5, 2.0, 3.9), d(1.0) + d(1.5) + d(2.0) + d(3.9))
    s = 1 / (1.0 * descriptor.dstd[0, :1])
    net = descriptor.net(0, 0)
    torch.testing.assert_close(d(1.0), (net(s) - net(0 * s)) / (5 * 6))


class TestCoreRepulsion:
    """Nothing at distances of the data, and a C2 wall inside, whatever the net says there."""

    def model(self, core: list[list[float]] | None) -> EnergyModel:
        model = build(SE_E2_A["two_side"])
        changed = EnergyModel(model.config.model_copy(update={"core_distances": core}))
        changed.load_state_dict(model.state_dict())
        return changed

    def test_wall(self) -> None:
        core = [[2.0, 1.5, 0.0], [1.5, 1.0, 0.0], [0.0, 0.0, 0.0]]
        plain, walled = self.model(None), self.model(core)
        assert energy(walled, pair(1.5)) == energy(plain, pair(1.5))
        assert energy(walled, pair(1.2)) - energy(plain, pair(1.2)) == pytest.approx(8.0, rel=1e-9)
        r, h = 1.3, 1e-5
        slope = (energy(walled, pair(r + h)) - energy(walled, pair(r - h))) / (2 * h)
        assert float(predict(walled, pair(r)).forces[1, 0]) == pytest.approx(-slope, rel=1e-6)

    def test_table_is_checked(self) -> None:
        with pytest.raises(ValueError, match="symmetric 3 x 3"):
            ModelConfig(type_map=list(TYPE_MAP), descriptor=SE_E2_A["two_side"], core_distances=[[1.0]])
