"""The physics suite over the three-body descriptors, and hybrids with them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from model_suite import PhysicsOfAModel, build, frame

from dpsim.data.frame import Batch
from dpsim.models.descriptor_config import Dpa1Config, HybridConfig, SeE2aConfig, SeE3Config, SeE3TebdConfig
from dpsim.models.descriptors.three_body import SeE3, SeE3Tebd
from dpsim.models.graph import Graph, pairs_within

SMALL: dict[str, object] = {"rcut": 3.0, "rcut_smth": 1.0, "neuron": [4, 8]}
TYPED = SMALL | {"sel": 40, "tebd_dim": 4}
SE_E3 = {
    "se_e3": SeE3Config(**SMALL, sel=[20, 20, 20]),
    "gelu_excluded": SeE3Config(**SMALL, sel=[10, 10, 10], activation="gelu", exclude_types=[(0, 1)], resnet_dt=True),
    "below_sel": SeE3Config(**SMALL, sel=[2, 2, 2]),
    "concat": SeE3TebdConfig(**TYPED),
    "residual_concat": SeE3TebdConfig(**TYPED | {"tebd_dim": 5, "neuron": [11, 11]}, concat_output_tebd=False),
    "strip": SeE3TebdConfig(**TYPED, tebd_input_mode="strip", use_tebd_bias=True),
    "strip_not_smooth": SeE3TebdConfig(**TYPED, tebd_input_mode="strip", smooth=False, use_econf_tebd=True),
    "hybrid": HybridConfig(
        list=[
            SeE2aConfig(rcut=4.0, rcut_smth=1.0, neuron=[5, 10], axis_neuron=3, sel=[20, 20, 20]),
            SeE3Config(**SMALL, sel=[20, 20, 20]),
        ]
    ),
    "hybrid_typed": HybridConfig(
        list=[SeE3TebdConfig(**TYPED), Dpa1Config(rcut=3.5, neuron=[5, 10], axis_neuron=3, sel=60, attn_layer=0)]
    ),
}


@pytest.mark.parametrize("name", SE_E3)
class TestThreeBody(PhysicsOfAModel):
    descriptors: ClassVar = SE_E3
    smooth = frozenset(SE_E3) - {"strip_not_smooth"}


def all_angles(name: str) -> tuple[SeE3 | SeE3Tebd, Graph, list[tuple[int, int, int, torch.Tensor, torch.Tensor]]]:
    """A descriptor, a graph, and (i, t_j, t_k, E_jk, w_j w_k) of all ordered pairs, by `pairs_within`."""
    descriptor = build(SE_E3[name]).descriptor
    batch = Batch.from_frames([frame()], 3.0)
    graph, _ = Graph.from_batch(batch, batch.edge_vectors(), 3)
    env, w = descriptor.environment(graph)
    first, second, _ = pairs_within(graph.center, graph.n_atoms)
    e = (env[first, 1:] * env[second, 1:]).sum(1)
    i, j, k = graph.center[first], graph.neighbor_types[first], graph.neighbor_types[second]
    return descriptor, graph, list(zip(i.tolist(), j.tolist(), k.tolist(), e, w[first] * w[second], strict=True))


def test_se_e3_is_the_sum_over_pairs_of_types_in_order() -> None:
    descriptor, graph, angles = all_angles("se_e3")
    expected = torch.zeros(graph.n_atoms, 8, dtype=torch.float64)
    for i, a, b, e, _ in angles:
        if a <= b:
            expected[i] += e * descriptor.net(a, b)(e[None, None])[0] / 20**2
    torch.testing.assert_close(descriptor(graph), expected)


@pytest.mark.parametrize("name", ["concat", "strip", "strip_not_smooth"])
def test_se_e3_tebd_is_the_sum_over_all_ordered_pairs(name: str) -> None:
    descriptor, graph, angles = all_angles(name)
    types = descriptor.type_embedding()
    expected = torch.zeros(graph.n_atoms, 8, dtype=torch.float64)
    for i, a, b, e, ww in angles:
        pair = torch.cat([types[a], types[b]])
        if name == "concat":
            g = descriptor.net(torch.cat([e[None], pair])[None])[0]
        else:
            g = descriptor.net(e[None, None])[0]
            g = g * (1 + descriptor.strip_net(pair[None])[0] * (ww if name == "strip" else 1))
        expected[i] += e * g / 40**2
    torch.testing.assert_close(descriptor(graph)[:, :8], expected)
    torch.testing.assert_close(descriptor(graph)[:, 8:], types[graph.types])
    np.testing.assert_array_less(0, expected.norm(dim=1).detach())
