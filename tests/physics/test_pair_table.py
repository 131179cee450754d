"""Networks with a pair table that takes over where atoms come close, tables alone, and sums: the physics of each."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from model_suite import TYPE_MAP, PhysicsOfAModel, build, frame, pair, predict

from dpsim.models.descriptor_config import Dpa1Config, SeE2aConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.models.linear_model import LinearModel
from dpsim.models.pair_table import PairPotential
from dpsim.models.pair_table_config import PairPotentialConfig, PairTableConfig

SMALL = {"rcut": 4.0, "rcut_smth": 1.0, "neuron": [5, 10], "axis_neuron": 3}
SE_E2_A = SeE2aConfig(**SMALL, sel=[20, 20, 20])
ATTENTION = Dpa1Config(**SMALL, sel=60, attn_layer=1, attn=6, tebd_dim=4)
SWITCH = {"sw_rmin": 0.8, "sw_rmax": 1.6}
ZBL = {
    "zbl": (SE_E2_A, PairTableConfig(**SWITCH)),
    "attention": (ATTENTION, PairTableConfig(**SWITCH)),
    "shorter": (SE_E2_A, PairTableConfig(**SWITCH, rcut=3.7)),
    "longer": (SE_E2_A, PairTableConfig(**SWITCH, rcut=5.0)),
}


def build_zbl(name: str, precision: str = "float64") -> EnergyModel:
    descriptor, table = ZBL[name]
    network = build(descriptor, precision)
    model = EnergyModel(network.config.model_copy(update={"pair_table": table}))
    model.load_state_dict(network.state_dict(), strict=False)
    return model


@pytest.mark.parametrize("name", ZBL)
class TestInterpolation(PhysicsOfAModel):
    descriptors: ClassVar = ZBL

    @pytest.fixture
    def model(self, name: str) -> EnergyModel:
        return build_zbl(name)

    def test_single_precision(self, name: str) -> None:
        double, single = build_zbl(name), build_zbl(name, "float32")
        single.load_state_dict({k: v.to(single.state_dict()[k].dtype) for k, v in double.state_dict().items()})
        d, s = predict(double, frame()), predict(single, frame())
        assert float(s.energy[0]) == pytest.approx(float(d.energy[0]), rel=1e-5)
        np.testing.assert_allclose(s.forces, d.forces, atol=3e-5 * float(d.forces.abs().max() + 1))

    def test_smooth_where_it_sets_in(self, model: EnergyModel) -> None:
        """Second differences of the force fall like d^2 where w begins and ends; with a kink, like d."""
        for r in (SWITCH["sw_rmin"], SWITCH["sw_rmax"]):
            bends = []
            for d in (1e-2, 5e-3):
                f = [float(predict(model, pair(r + k * d)).forces[1, 0]) for k in (-1, 0, 1)]
                bends.append(abs(f[0] - 2 * f[1] + f[2]))
            assert bends[1] <= bends[0] / 3

    def test_who_rules_where(self, model: EnergyModel, name: str) -> None:
        network = build(ZBL[name][0])
        far, near = pair(1.7), pair(0.7)
        assert float(predict(model, far).energy[0]) == pytest.approx(float(predict(network, far).energy[0]), abs=1e-12)
        assert model.pair_table is not None
        config = PairPotentialConfig(type_map=list(TYPE_MAP), table=model.pair_table.grid, rcut=model.pair_table.rcut)
        alone = PairPotential(config)
        alone.table.load_state_dict(model.pair_table.state_dict())
        expected = float(predict(alone, near).energy[0]) - 4.0  # and the biases of O and H
        assert float(predict(model, near).energy[0]) == pytest.approx(expected, abs=1e-10)


def build_pair() -> PairPotential:
    return PairPotential(PairPotentialConfig(type_map=list(TYPE_MAP), rcut=4.0))


def build_linear() -> LinearModel:
    return LinearModel.of([build(SE_E2_A), build_pair(), build(ATTENTION)], [0.3, 1.2, -0.5])


class Other(PhysicsOfAModel):
    """Models without a descriptor of their own."""

    descriptors: ClassVar = {"": None}

    def test_single_precision(self, name: str) -> None:
        pytest.skip("tables are float64; members have their own tests")


@pytest.mark.parametrize("name", [""])
class TestPairPotential(Other):
    @pytest.fixture
    def model(self, name: str) -> PairPotential:
        return build_pair()

    def test_training_gradient_is_that_of_plain_autograd(self, name: str) -> None:
        pytest.skip("nothing to train")


@pytest.mark.parametrize("name", [""])
class TestLinear(Other):
    @pytest.fixture
    def model(self, name: str) -> LinearModel:
        return build_linear()

    def test_it_is_the_sum(self, model: LinearModel) -> None:
        p, parts = predict(model, frame()), [predict(member, frame()) for member in model.members]
        for name in ("energy", "atom_energy", "forces", "virial"):
            expected = sum(c * getattr(q, name) for c, q in zip((0.3, 1.2, -0.5), parts, strict=True))
            np.testing.assert_allclose(getattr(p, name).detach(), expected.detach(), rtol=1e-12, atol=1e-12)
