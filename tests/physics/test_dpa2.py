"""The physics suite over DPA-2, every switch of it, and what is its own."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from model_suite import TYPE_MAP, PhysicsOfAModel, build, predict

from dpsim.data.frame import Frame
from dpsim.models.config import ModelConfig
from dpsim.models.descriptor_config import Dpa2Config

REPINIT = {"rcut": 4.0, "rcut_smth": 1.0, "sel": 60, "neuron": [5, 10], "axis_neuron": 3, "tebd_dim": 4}
THREE_BODY = {"rcut": 3.0, "sel": 30, "neuron": [2, 4]}
REPFORMER = {"rcut": 2.5, "sel": 20, "nlayers": 2, "g1_dim": 8, "g2_dim": 6, "axis_neuron": 2} | {
    "attn1_hidden": 5,
    "attn1_nhead": 2,
    "attn2_hidden": 4,
    "attn2_nhead": 3,
}
NO_ATTENTION = {"update_g1_has_attn": False, "update_g2_has_attn": False, "update_g2_has_g1g1": False}
RESIDUAL = {"update_style": "res_residual", "update_residual": 0.3}


def dpa2(repformer: dict[str, Any] | None = None, repinit: dict[str, Any] | None = None, **others: Any) -> Dpa2Config:
    sections = {"repinit": REPINIT | (repinit or {}), "repformer": REPFORMER | (repformer or {})}
    return Dpa2Config.model_validate(sections | others)


DPA2 = {
    "defaults": dpa2(),
    "small": dpa2(NO_ATTENTION | RESIDUAL, three_body=THREE_BODY),
    "medium": dpa2(RESIDUAL | {"attn2_has_gate": True, "nlayers": 3}, three_body=THREE_BODY),
    "paper": dpa2({"g1_out_conv": False, "g1_out_mlp": False, "use_sqrt_nnei": False, "attn2_has_gate": True}),
    "strip": dpa2(NO_ATTENTION, {"tebd_input_mode": "strip"}, three_body=THREE_BODY, concat_output_tebd=False),
    "strip_not_smooth": dpa2({}, {"tebd_input_mode": "strip"}, three_body=THREE_BODY, smooth=False),
    "turning": dpa2({"update_h2": True, "update_style": "res_incr", "nlayers": 3}),
    "turning_only": dpa2(NO_ATTENTION | RESIDUAL | {"update_h2": True, "attn2_has_gate": True}),
    "direct": dpa2({"direct_dist": True, "update_h2": True}),
    "convolution": dpa2(NO_ATTENTION | {"update_g1_has_grrg": False, "update_g1_has_drrd": False, "g1_out_mlp": False}),
    "attention": dpa2({"update_g1_has_conv": False, "update_g1_has_drrd": False, "activation": "silu"}),
    "excluded": dpa2({}, {"type_one_side": True}, three_body=THREE_BODY, exclude_types=[(0, 1)], use_tebd_bias=True),
    "econf": dpa2({"nlayers": 1}, add_tebd_to_repinit_out=True, use_econf_tebd=True, env_protection=0.1),
    "below_sel": dpa2({"sel": 2}, {"sel": 5}, three_body=THREE_BODY | {"sel": 3}),
    "as_wide": dpa2({"g1_dim": 30, "trainable_ln": False, "update_residual_init": "const"} | RESIDUAL),
    "not_smooth": dpa2({"use_sqrt_nnei": False, "update_h2": True}, smooth=False),
}


@pytest.mark.parametrize("name", DPA2)
class TestDpa2(PhysicsOfAModel):
    descriptors: ClassVar = DPA2
    smooth = frozenset(DPA2) - {"not_smooth", "strip_not_smooth"}


@pytest.mark.parametrize("nlayers", [1, 2, 3])
def test_messages_reach_as_far_as_there_are_layers(nlayers: int) -> None:
    """Along a row of atoms 2 A apart, seen up to 2.5 A: forces end where nlayers steps end."""
    model = build(dpa2({"nlayers": nlayers}, {"rcut": 2.6}))
    x = np.array([[2.0 * k, 0, 0] for k in range(8)])
    row = Frame(x, np.ones(8, int), TYPE_MAP, np.zeros((3, 3)), np.zeros(3, bool))
    e = predict(model, row).atom_energy
    x = x.copy()
    x[0, 1] += 0.1
    moved = predict(model, Frame(x, row.types, TYPE_MAP, row.cell, row.pbc)).atom_energy
    changed = (e != moved).nonzero()[:, 0].tolist()
    assert changed == list(range(nlayers + 2))  # one step for the repinit


def test_the_last_layer_has_no_pairs_to_update() -> None:
    layers = build(DPA2["turning"]).descriptor.repformer.layers
    assert [layer.linear2 is not None for layer in layers] == [True, True, False]
    model = build(DPA2["turning"])
    loss = predict(model.set_second_order(), frame_of_three(), create_graph=True).forces.pow(2).sum()
    parameters = dict(model.named_parameters())
    unused = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    assert [name for name, g in zip(parameters, unused, strict=True) if g is None] == ["fitting.nets.0.2.bias"]


def frame_of_three() -> Frame:
    x = np.array([[0.0, 0, 0], [1.1, 0.2, 0], [0.3, 1.0, 0.5]])
    return Frame(x, np.array([0, 1, 2]), TYPE_MAP, np.zeros((3, 3)), np.zeros(3, bool))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"repformer": {"rcut": 7.0}}, "`repformer.rcut` is 7.0; expected at most `repinit.rcut` = 6.0"),
        ({"three_body": {"rcut": 6.5}}, "`three_body.rcut` is 6.5"),
        ({"three_body": {"rcut": 3.0, "rcut_smth": 3.5}}, "`rcut_smth` is 3.5"),
        ({"repinit": {"axis_neuron": 101}}, "`repinit.axis_neuron` is 101"),
        ({"repformer": {"axis_neuron": 17}}, "`axis_neuron` is 17; expected at most"),
        ({"repformer": {"update_g1_has_grrg": False, "update_g1_has_drrd": False}}, "nothing else enters"),
        ({"repformer": {"update_style": "res_sum"}}, "res_avg"),
        ({"exclude_types": [(0, 3)]}, "excluded types are"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ModelConfig.model_validate({"type_map": list(TYPE_MAP), "descriptor": {"type": "dpa2", **settings}})


def test_sel_of_each_part() -> None:
    config = Dpa2Config(three_body={})
    assert [part.rcut for part in config.environments] == [6.0, 4.0, 4.0]
    given = config.with_sel([100, 40, 30])
    assert (given.repinit.sel, given.three_body.sel, given.repformer.sel) == (100, 40, 30)
    assert [part.sel for part in build(given).descriptor.members] == [[100], [40], [30]]
