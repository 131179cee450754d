"""The physics suite over DPA-3, and what is its own: graphs, dihedrals, dead layers."""

from __future__ import annotations

import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from model_suite import TYPE_MAP, PhysicsOfAModel, build, frame, predict

from dpsim.data.frame import Frame
from dpsim.errors import ConfigError
from dpsim.kernels.environment import exponential_environment
from dpsim.models.descriptor_config import Dpa3Config
from dpsim.models.energy_model import EnergyModel
from dpsim.models.graph import Graph, pairs_within

WIDTHS = {"n_dim": 8, "e_dim": 6, "a_dim": 4, "d_dim": 4, "nlayers": 3, "axis_neuron": 3, "activation": "silut:10.0"}
REACH = {"e_rcut": 4.0, "a_rcut": 3.0, "d_rcut": 2.5, "e_rcut_smth": 1.0, "a_rcut_smth": 1.0, "d_rcut_smth": 0.5}
SMALL: dict[str, object] = WIDTHS | REACH | {"e_sel": 60, "a_sel": 30, "d_sel": 20}
DPA3 = {
    "pairs": Dpa3Config(**SMALL, order=1),
    "angles": Dpa3Config(**SMALL),
    "dihedrals": Dpa3Config(**SMALL | {"nlayers": 4}, order=3),
    "all_of_atom_and_pair": Dpa3Config(**SMALL, a_compress_rate=0, edge_init_use_dist=False, update_style="res_avg"),
    "linear_compression": Dpa3Config(
        **SMALL, a_compress_e_rate=1, a_compress_use_split=False, update_style="res_incr", n_multi_edge_message=2
    ),
    "dynamic_multi_norm": Dpa3Config(
        **SMALL, use_dynamic_sel=True, n_multi_edge_message=3, update_residual_init="norm", concat_output_tebd=True
    ),
    "econf_excluded": Dpa3Config(**SMALL, use_econf_tebd=True, use_tebd_bias=True, exclude_types=[(0, 1)]),
    "below_sel": Dpa3Config(**SMALL | {"e_sel": 3, "a_sel": 2}),
    "not_smooth": Dpa3Config(**SMALL, smooth_edge_update=False),
    "exponential": Dpa3Config(**SMALL | {"e_rcut_smth": 3.5, "a_rcut_smth": 2.6}, switch="exponential"),
}


@pytest.mark.parametrize("name", DPA3)
class TestDpa3(PhysicsOfAModel):
    descriptors: ClassVar = DPA3
    smooth = frozenset(DPA3) - {"exponential"}

    def test_smooth_at_every_cutoff(self, model: EnergyModel, name: str) -> None:
        """The force of a pair, with a third atom near, has a continuous slope at each cutoff."""
        if name in ("exponential", "not_smooth"):
            pytest.skip("not smooth by design")

        def force(r: float) -> float:
            atoms = np.array([[0.0, 0, 0], [r, 0, 0], [0.5, 1.3, 0.2], [0.3, -0.8, 0.9]])
            f = Frame(atoms, np.array([0, 2, 1, 1]), TYPE_MAP, np.zeros((3, 3)), np.zeros(3, bool))
            return float(predict(model, f).forces[1, 0])

        for reach in model.config.descriptor.environments:  # the second difference of a C2 energy's force: ~ d^2
            bends = []
            for d in (4e-3, 2e-3, 1e-3):
                f = [force(reach.rcut + k * d) for k in (-1, 0, 1)]
                bends.append(abs(f[0] - 2 * f[1] + f[2]))
            assert bends[0] > 1e-12
            assert bends[1] <= bends[0] / 3
            assert bends[2] <= bends[1] / 3


def graph_of(n_atoms: int = 5, n_edges: int = 40) -> Graph:
    """Edges at random, not sorted."""
    g = torch.Generator().manual_seed(0)
    center, neighbor = torch.randint(0, n_atoms, (2, n_edges), generator=g)
    edge_vec, types = torch.randn(n_edges, 3, generator=g), torch.zeros(n_atoms, dtype=torch.int64)
    return Graph(edge_vec, center, neighbor, types, [n_atoms], types)


def test_angles_are_all_pairs_of_short_edges_of_a_centre() -> None:
    graph = graph_of()
    short = graph.edge_vec.norm(dim=1) <= 1.5
    pairs = pairs_within(torch.where(short, graph.center, graph.n_atoms), graph.n_atoms)
    m = [k for k in range(len(short)) if short[k]]
    expected = [(a, b) for a in m for b in m if graph.center[a] == graph.center[b]]
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == expected
    assert torch.equal(pairs.offsets.diff(), torch.bincount(pairs.first, minlength=len(short)))
    nothing = torch.full_like(graph.center, graph.n_atoms)
    assert len(pairs_within(nothing, graph.n_atoms).first) == 0


@pytest.mark.parametrize("order", [1, 2, 3])
def test_what_no_atom_hears_of_changes_nothing(order: int) -> None:
    """Features of graph k reach atoms in k more layers: the last layers' weights for them have no gradient."""
    model = build(Dpa3Config(**SMALL | {"nlayers": 4}, order=order))
    p = predict(model, frame(), create_graph=True)
    used = torch.autograd.grad(p.energy.sum(), list(model.descriptor.layers.parameters()), allow_unused=True)
    dead = {
        name
        for (name, _), g in zip(model.descriptor.layers.named_parameters(), used, strict=True)
        if g is None or not g.any()
    }
    for k in range(1, order + 1):  # graph k passes messages in the first 5 - k layers, and changes in the first 4 - k
        for layer in range(4):
            assert (f"{layer}.messages.{k - 1}.passed.weight" in dead) == (layer >= 5 - k)
            assert (f"{layer}.messages.{k - 1}.own.weight" in dead) == (layer >= 4 - k)


def test_dihedrals_are_smooth_where_three_atoms_come_into_line() -> None:
    """cos(eta) jumps there; the force does not, nor its slope."""
    model = build(DPA3["dihedrals"])

    def force(y: float) -> float:
        atoms = np.array([[0.0, 0, 0], [1.0, 0, 0], [-1.1, y, 0], [-0.3, 1.0, 0.5], [0.1, -0.4, 1.2]])
        f = Frame(atoms, np.array([0, 1, 2, 1, 0]), TYPE_MAP, np.zeros((3, 3)), np.zeros(3, bool))
        return float(predict(model, f).forces[2, 1])

    bends = [abs(force(d) - 2 * force(0.0) + force(-d)) for d in (2e-3, 1e-3)]
    assert bends[0] > 1e-12
    assert bends[1] < bends[0] / 3


def test_the_exponential_switch_leaves_a_small_step() -> None:
    """As DeePMD-kit's: with its usual cutoffs 8e-7 of what an edge says."""
    _, w = exponential_environment(torch.tensor([[6.0, 0, 0], [0, 5.3, 0]], dtype=torch.float64), 5.3)
    assert float(w[0]) == pytest.approx(8.0e-7, rel=0.01)
    assert float(w[1]) == pytest.approx(np.exp(-1))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"e_rcut_smth": 4.0}, "`e_rcut_smth` is 4.0; expected a number below `e_rcut` = 4.0"),
        ({"a_rcut": 5.0}, "`a_rcut` is 5.0; expected at most `e_rcut` = 4.0"),
        ({"d_rcut": 3.5, "order": 3}, "`d_rcut` is 3.5; expected at most `a_rcut` = 3.0"),
        ({"a_compress_rate": 3}, "`a_compress_rate` is 3"),
        ({"a_dim": 12}, "Raise `a_compress_rate`"),
        ({"axis_neuron": 7}, "`axis_neuron` is 7; expected at most"),
        ({"activation": "silut:x"}, "silut"),
        ({"d_rcut": 9.0}, None),  # no dihedrals: no matter
    ],
)
def test_settings_are_checked(settings: dict[str, object], says: str | None) -> None:
    if says is None:
        Dpa3Config(**SMALL | settings)
    else:
        with pytest.raises(ValueError, match=re.escape(says)):
            Dpa3Config(**SMALL | settings)


def test_sel_of_each_reach() -> None:
    config = Dpa3Config(order=3)
    assert [(e.rcut, e.rcut_smth, e.sel) for e in config.environments] == [
        *((6.0, 4.4, "auto"), (4.0, 2.9, "auto"), (2.8, 2.0, "auto")),
    ]
    with pytest.raises(ConfigError, match="is 'auto'; expected numbers"):
        build(config)
    resolved = config.with_sel([100, 40, 10])
    assert (resolved.e_sel, resolved.a_sel, resolved.d_sel) == (100, 40, 10)
