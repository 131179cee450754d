"""The physics suite over every descriptor."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from model_suite import TYPE_MAP, PhysicsOfAModel, build, energy, predict

from dpsim.data.frame import Frame
from dpsim.models.config import Dpa1Config, ModelConfig, SeE2aConfig
from dpsim.models.energy_model import EnergyModel

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


@pytest.mark.parametrize("name", SE_E2_A)
class TestSeE2a(PhysicsOfAModel):
    descriptors: ClassVar = SE_E2_A


@pytest.mark.parametrize("name", DPA1)
class TestDpa1(PhysicsOfAModel):
    descriptors: ClassVar = DPA1
    smooth = frozenset(DPA1) - {"not_smooth"}


class TestCoreRepulsion:
    """Nothing at distances of the data, and a C2 wall inside, whatever the net says there."""

    def model(self, core: list[list[float]] | None) -> EnergyModel:
        model = build(SE_E2_A["two_side"])
        changed = EnergyModel(model.config.model_copy(update={"core_distances": core}))
        changed.load_state_dict(model.state_dict())
        return changed

    def pair(self, r: float) -> Frame:
        return Frame(
            np.array([[0.0, 0, 0], [r, 0, 0]]), np.array([0, 1]), TYPE_MAP, np.zeros((3, 3)), np.zeros(3, bool)
        )

    def test_wall(self) -> None:
        core = [[2.0, 1.5, 0.0], [1.5, 1.0, 0.0], [0.0, 0.0, 0.0]]
        plain, walled = self.model(None), self.model(core)
        assert energy(walled, self.pair(1.5)) == energy(plain, self.pair(1.5))
        assert energy(walled, self.pair(1.2)) - energy(plain, self.pair(1.2)) == pytest.approx(8.0, rel=1e-9)
        r, h = 1.3, 1e-5
        slope = (energy(walled, self.pair(r + h)) - energy(walled, self.pair(r - h))) / (2 * h)
        assert float(predict(walled, self.pair(r)).forces[1, 0]) == pytest.approx(-slope, rel=1e-6)

    def test_table_is_checked(self) -> None:
        with pytest.raises(ValueError, match="symmetric 3 x 3"):
            ModelConfig(type_map=list(TYPE_MAP), descriptor=SE_E2_A["two_side"], core_distances=[[1.0]])
