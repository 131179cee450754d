"""The local frame descriptor: what holds of the physics, and its formula written out slowly."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from model_suite import TYPE_MAP, PhysicsOfAModel, build, frame, moved, predict

from dpsim.data.frame import Batch, Frame
from dpsim.models.energy_model import EnergyModel
from dpsim.models.graph import Graph
from dpsim.models.local_frame_config import LocalFrameConfig

LOCAL_FRAME = {
    "nearest": LocalFrameConfig(rcut=4.0, sel_a=[3, 3, 3], sel_r=[2, 2, 2]),
    "few_slots": LocalFrameConfig(rcut=4.0, sel_a=[1, 2, 0], sel_r=[0, 1, 1], exclude_types=[(0, 0)]),
    "axis_rule": LocalFrameConfig(
        rcut=4.0, sel_a=[2, 2, 2], sel_r=[1, 3, 0], axis_rule=[0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 2, 0, 2, 1, 1, 0, 0]
    ),
}


@pytest.mark.parametrize("name", LOCAL_FRAME)
class TestLocalFrame(PhysicsOfAModel):
    """Everything but smoothness: the frames of the suite are away from exchanges of neighbours."""

    descriptors: ClassVar = LOCAL_FRAME
    smooth = frozenset()

    @pytest.fixture
    def model(self, name: str) -> EnergyModel:
        model = build(self.descriptors[name])
        model.descriptor.standardise([graph_of(frame(seed=s)) for s in range(5)])
        return model

    def test_the_formula(self, model: EnergyModel) -> None:
        f = frame(12, 4)
        d = model.descriptor.coordinates(
            model_graph := graph_of(f).without_pairs(model.descriptor.config.exclude_types)
        )
        expected = np.array([slowly(model.descriptor.config, model_graph, i) for i in range(12)])
        np.testing.assert_allclose(d, expected, atol=1e-13)
        avg, std = (x.numpy()[model_graph.types] for x in (model.descriptor.avg, model.descriptor.std))
        np.testing.assert_allclose(model.descriptor(graph_of(f)), (expected - avg) / std, atol=1e-11)

    def test_energy_jumps_at_the_cutoff(self, model: EnergyModel, name: str) -> None:
        """That it does is what its documentation says."""
        if name != "nearest":
            pytest.skip("one is enough")
        jumps = []
        for r in (4.0 - 1e-9, 4.0 + 1e-9):
            x = np.array([[0.0, 0, 0], [1.0, 0.2, 0], [0, 1.3, 0.1], [0, 0, r]])
            f = Frame(x, np.array([0, 1, 1, 2]), TYPE_MAP, np.zeros((3, 3)), np.zeros(3, bool))
            jumps.append(float(predict(model, f, forces=False, virial=False).atom_energy[0]))
        assert abs(jumps[0] - jumps[1]) > 1e-6

    def test_parallel_axes(self, model: EnergyModel) -> None:
        """Atoms in a row have no second axis: finite, and as invariant as ever."""
        x = np.array([[0.0, 0, 0], [1.0, 0, 0], [2.1, 0, 0], [3.3, 0, 0]])
        f = Frame(x, np.array([0, 1, 0, 2]), TYPE_MAP, np.zeros((3, 3)), np.zeros(3, bool))
        p, turned = predict(model, f), predict(model, moved(f, x[:, [2, 0, 1]]))
        assert np.isfinite(p.forces).all()
        assert float(turned.energy[0]) == pytest.approx(float(p.energy[0]), abs=1e-10)


def graph_of(f: Frame) -> Graph:
    batch = Batch.from_frames([replace(f, types=np.sort(f.types))], 4.0)
    return Graph.from_batch(batch, batch.edge_vectors(), 3)[0]


def slowly(config: LocalFrameConfig, graph: Graph, i: int) -> np.ndarray:
    """D_i by loops."""
    x = graph.edge_vec[graph.center == i].numpy()
    t = graph.neighbor_types[graph.center == i].numpy()
    order = np.argsort(np.linalg.norm(x, axis=1))
    of_type = [[x[k] for k in order if t[k] == a] for a in range(3)]
    full, radial = [], []
    for a in range(3):
        n, m = config.sel_a[a], config.sel_r[a]
        full += [*of_type[a][:n], *[np.zeros(3)] * n][:n]
        radial += [*of_type[a][n : n + m], *[np.zeros(3)] * m][:m]
    if config.axis_rule is None:
        slots = sorted((v for v in full + radial if v.any()), key=np.linalg.norm)
        a, b = slots[:2]
    else:
        rule = config.axis_rule[6 * int(graph.types[i]) :][:6]
        a, b = (
            [full, radial][c][sum([config.sel_a, config.sel_r][c][:of]) + rank] for c, of, rank in (rule[:3], rule[3:])
        )
    e1 = a / np.linalg.norm(a)
    e2 = b - (b @ e1) * e1
    e2 /= np.linalg.norm(e2)
    e3 = np.cross(e1, e2)
    rows = []
    for v in full:
        r = np.linalg.norm(v)
        rows += [1 / r, v @ e1 / r**2, v @ e2 / r**2, v @ e3 / r**2] if r else [0.0] * 4
    return np.array(rows + [1 / np.linalg.norm(v) if v.any() else 0.0 for v in radial])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sel_r": [1]}, "expected a number for each type in both"),
        ({"axis_rule": [0, 1, 0]}, "expected six numbers"),
        ({"axis_rule": [0, 1, 3, 0, 1, 1] * 3}, "a rank below"),
    ],
)
def test_settings_are_checked(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LocalFrameConfig.model_validate({"sel_a": [3, 3, 3], "sel_r": [2, 2, 2]} | changes)


def test_who_opens_one_is_warned() -> None:
    from dpsim.calculators.base import calculator_of

    with pytest.warns(UserWarning, match="not smooth"):
        calculator_of(build(LOCAL_FRAME["nearest"]))
    assert torch.is_tensor(build(LOCAL_FRAME["nearest"]).descriptor.avg)
