"""The physics suite over every descriptor."""

from __future__ import annotations

from typing import ClassVar

import pytest
from model_suite import PhysicsOfAModel

from dpsim.models.config import Dpa1Config, SeE2aConfig

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
