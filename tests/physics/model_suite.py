"""The physics every energy model obeys. A test class for a new descriptor inherits `PhysicsOfAModel` and names configs.

All models here are float64 with random weights, standardised like a trained one, so that no term is small by luck.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpsim.data.frame import Batch, Frame, Prediction
from dpsim.models.config import FittingConfig, ModelConfig
from dpsim.models.energy_model import EnergyModel

TYPE_MAP = ("O", "H", "C")


def build(descriptor: object, precision: str = "float64") -> EnergyModel:
    config = ModelConfig(
        type_map=list(TYPE_MAP),
        descriptor=descriptor,  # type: ignore[arg-type]
        fitting=FittingConfig(neuron=[10, 10]),
        precision=precision,  # type: ignore[arg-type]
    )
    model = EnergyModel(config, seed=3)
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for part in model.descriptor.members:
            part.dstd.copy_(0.1 + 0.05 * torch.rand(3, 4, generator=g))
            part.dstd[:, 2:] = part.dstd[:, 1:2]  # x, y and z alike: rotations
        model.energy_bias.copy_(torch.tensor([-3.0, -1.0, 2.0]))
        for net in model.fitting.nets:
            net[-1].weight.mul_(10.0)  # energies of eV, not meV
    return model


def frame(n: int = 9, seed: int = 0, pbc: bool | tuple[bool, bool, bool] = True, scale: float = 1.0) -> Frame:
    """Random atoms at least 0.8 A apart in a small triclinic cell: its heights are below twice the cutoff."""
    rng = np.random.default_rng(seed)
    cell = np.array([[5.0, 0.3, 0.0], [0.7, 5.5, -0.4], [0.2, -0.6, 6.0]]) * scale
    points: list[np.ndarray] = []
    while len(points) < n:
        p = rng.random(3) @ cell
        near = [np.linalg.norm((d := p - q) - np.round(d @ np.linalg.inv(cell)) @ cell) for q in points]
        if not near or min(near) > 0.8:
            points.append(p)
    periodic = np.broadcast_to(np.asarray(pbc), 3).copy()
    return Frame(
        np.array(points), rng.integers(0, 3, n), TYPE_MAP, cell if periodic.any() else np.zeros((3, 3)), periodic
    )


def pair(r: float) -> Frame:
    """An O and an H at a distance."""
    return Frame(np.array([[0.0, 0, 0], [r, 0, 0]]), np.array([0, 1]), TYPE_MAP, np.zeros((3, 3)), np.zeros(3, bool))


def triple(r: float) -> Frame:
    """An H, a C at a distance, and an H beside the first."""
    x = np.array([[0.0, 0, 0], [r, 0, 0], [-0.5, 1.0, 0.3]])
    return Frame(x, np.array([1, 2, 1]), TYPE_MAP, np.zeros((3, 3)), np.zeros(3, bool))


def predict(model: EnergyModel, *frames: Frame, **options: bool) -> Prediction:
    return model(Batch.from_frames(frames, model.rcut), **options)


def energy(model: EnergyModel, f: Frame) -> float:
    return float(predict(model, f, forces=False, virial=False).energy[0])


def moved(f: Frame, positions: np.ndarray, cell: np.ndarray | None = None) -> Frame:
    return Frame(positions, f.types, f.type_map, f.cell if cell is None else cell, f.pbc)


def random_rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


class PhysicsOfAModel:
    """Inherit, and give `descriptors`: name -> config."""

    descriptors: dict[str, object]
    smooth: frozenset[str] | None = None  # names whose energy is smooth at the cutoff; None: all of them

    @pytest.fixture
    def model(self, name: str) -> EnergyModel:
        return build(self.descriptors[name])

    @pytest.mark.parametrize("pbc", [True, False, (True, True, False)])
    def test_invariances(self, model: EnergyModel, pbc: bool) -> None:
        f = frame(pbc=pbc)
        p = predict(model, f)
        rotation, order = random_rotation(5), np.random.default_rng(6).permutation(f.n_atoms)
        shifted = predict(model, moved(f, f.positions + np.array([0.3, -11.0, 4.0])))
        turned = predict(model, moved(f, f.positions @ rotation.T, f.cell @ rotation.T))
        permuted = predict(model, Frame(f.positions[order], f.types[order], TYPE_MAP, f.cell, f.pbc))
        for other in (shifted, turned, permuted):
            assert float(other.energy[0]) == pytest.approx(float(p.energy[0]), abs=1e-9)
        np.testing.assert_allclose(shifted.forces, p.forces, atol=1e-9)
        np.testing.assert_allclose(turned.forces, p.forces.numpy() @ rotation.T, atol=1e-9)
        np.testing.assert_allclose(permuted.forces, p.forces.numpy()[order], atol=1e-9)
        np.testing.assert_allclose(turned.virial[0], rotation @ p.virial[0].numpy() @ rotation.T, atol=1e-9)

    def test_wrapping_changes_nothing(self, model: EnergyModel) -> None:
        f = frame()
        images = np.random.default_rng(7).integers(-2, 3, (f.n_atoms, 3))
        assert energy(model, moved(f, f.positions + images @ f.cell)) == pytest.approx(energy(model, f), abs=1e-9)

    @pytest.mark.parametrize("pbc", [True, False])
    def test_forces_are_minus_the_gradient(self, model: EnergyModel, pbc: bool) -> None:
        f = frame(pbc=pbc)
        forces = predict(model, f).forces.numpy()
        np.testing.assert_allclose(forces.sum(0), 0, atol=1e-10)
        for i, a in [(0, 0), (3, 1), (8, 2)]:
            e = []
            for h in (1e-4, -1e-4):
                x = f.positions.copy()
                x[i, a] += h
                e.append(energy(model, moved(f, x)))
            assert forces[i, a] == pytest.approx(-(e[0] - e[1]) / 2e-4, rel=1e-5, abs=1e-6)

    def test_virial_is_minus_the_strain_derivative(self, model: EnergyModel) -> None:
        f = frame()
        p = predict(model, f, atom_virial=True)
        np.testing.assert_allclose(p.atom_virial.sum(0), p.virial[0], atol=1e-10)
        for a, b in [(0, 0), (1, 2), (2, 1)]:
            e = []
            for h in (1e-5, -1e-5):
                strain = np.eye(3)
                strain[a, b] += h
                e.append(energy(model, moved(f, f.positions @ strain.T, f.cell @ strain.T)))
            assert float(p.virial[0, a, b]) == pytest.approx(-(e[0] - e[1]) / 2e-5, rel=1e-5, abs=1e-5)

    def test_extensive(self, model: EnergyModel) -> None:
        f = frame()
        images = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)])
        big = Frame(
            np.concatenate([f.positions + s @ f.cell for s in images]),
            np.tile(f.types, 8),
            TYPE_MAP,
            2 * f.cell,
            f.pbc,
        )
        one, eight = predict(model, f), predict(model, big)
        assert float(eight.energy[0]) == pytest.approx(8 * float(one.energy[0]), abs=1e-8)
        np.testing.assert_allclose(eight.forces, np.tile(one.forces.numpy(), (8, 1)), atol=1e-9)

    def test_isolated_atom_and_no_neighbours(self, model: EnergyModel) -> None:
        for t in range(3):
            alone = Frame(np.zeros((1, 3)), np.array([t]), TYPE_MAP, np.zeros((3, 3)), np.zeros(3, bool))
            p = predict(model, alone)
            assert np.isfinite(float(p.energy[0]))
            assert not p.forces.any() and not p.virial.any()
            far = Frame(
                np.array([[0.0, 0, 0], [50.0, 0, 0]]), np.array([t, t]), TYPE_MAP, np.zeros((3, 3)), np.zeros(3, bool)
            )
            assert energy(model, far) == pytest.approx(2 * float(p.energy[0]), abs=1e-10)
            own_image = Frame(np.zeros((1, 3)), np.array([t]), TYPE_MAP, np.eye(3) * 3.0, np.ones(3, bool))
            assert np.isfinite(energy(model, own_image))

    def test_smooth_at_the_cutoff(self, model: EnergyModel, name: str) -> None:
        """As an atom leaves, energy, force and the force's slope go to those without it: C2."""
        if self.smooth is not None and name not in self.smooth:
            pytest.skip("not smooth by design")
        rng = np.random.default_rng(8)
        core = rng.normal(size=(5, 3))
        core *= 1.2 * np.arange(1, 6)[:, None] / np.linalg.norm(core, axis=1, keepdims=True) / 2
        types = np.array([0, 1, 2, 1, 0, 1])
        direction = np.array([0.6, 0.0, 0.8])

        def force(r: float) -> float:
            """Of an atom at distance r from atom 0, along the line, when only atom 0 is within the cutoff."""
            atoms = np.vstack([core[0] * 0, core[:4] * 0 + core[:4] - 9 * direction, direction * r])
            del_ = Frame(atoms, types, TYPE_MAP, np.zeros((3, 3)), np.zeros(3, bool))
            return float(predict(model, del_).forces.numpy()[-1] @ direction)

        rc = model.rcut
        f = np.array([force(rc - d) for d in (2e-2, 1e-2, 5e-3)])
        assert force(rc + 1e-6) == 0.0
        # w ~ v^3, so a C2 energy has a force that falls at least like d^2: a factor >= 3.5 for each halving
        assert (np.abs(f[1:]) <= np.abs(f[:-1]) / 3.5 + 1e-13).all()

    def test_smooth_at_every_cutoff(self, model: EnergyModel, name: str) -> None:
        """Where there are several: the force on a leaving atom has a continuous slope.

        Second differences of it fall like d^2; where the force has a kink, like d.
        """
        cutoffs = {part.rcut for part in model.descriptor.members} if isinstance(model, EnergyModel) else ()
        if len(cutoffs) < 2 or (self.smooth is not None and name not in self.smooth):
            pytest.skip("one cutoff, or not smooth by design")
        for rcut in cutoffs:
            bends = []
            for d in (2e-2, 1e-2):
                f = [float(predict(model, triple(rcut + k * d)).forces[1, 0]) for k in (-1, 0, 1)]
                bends.append(abs(f[0] - 2 * f[1] + f[2]))
            assert bends[0] > 1e-12
            assert bends[1] <= bends[0] / 3

    def test_frames_of_a_batch_do_not_mix(self, model: EnergyModel) -> None:
        frames = [frame(9, 0), frame(4, 1, pbc=False), frame(1, 2), frame(7, 3)]
        together = predict(model, *frames)
        start = 0
        for k, f in enumerate(frames):
            alone = predict(model, f)
            assert float(together.energy[k]) == pytest.approx(float(alone.energy[0]), abs=1e-10)
            np.testing.assert_allclose(together.forces[start : start + f.n_atoms], alone.forces, atol=1e-10)
            np.testing.assert_allclose(together.virial[k], alone.virial[0], atol=1e-10)
            start += f.n_atoms

    def test_training_gradient_is_that_of_plain_autograd(self, model: EnergyModel) -> None:
        batch = Batch.from_frames([frame(6, 0), frame(5, 1)], model.rcut)
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = []
        for second_order in (True, False):
            model.set_second_order(second_order)
            p = model(batch, create_graph=True)
            loss = p.energy.sin().sum() + p.forces.pow(2).sum() + p.virial.sin().sum()
            gradients.append(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
        for plain, fused in zip(*gradients, strict=True):
            np.testing.assert_allclose(fused, plain, atol=1e-10 * (1 + float(plain.abs().max())))

    def test_hessian_is_the_slope_of_the_forces(self, model: EnergyModel) -> None:
        f = frame(5, 1)
        batch = Batch.from_frames([f], model.rcut)
        batch.positions.requires_grad_()
        forces = model.set_second_order()(batch, virial=False).forces
        (row,) = torch.autograd.grad(forces[2, 1], batch.positions)
        h = 1e-5
        for j, b in [(0, 0), (2, 1), (4, 2)]:
            f_pm = []
            for sign in (1, -1):
                x = f.positions.copy()
                x[j, b] += sign * h
                f_pm.append(float(predict(model, moved(f, x)).forces[2, 1]))
            assert float(row[j, b]) == pytest.approx((f_pm[0] - f_pm[1]) / (2 * h), rel=1e-5, abs=1e-5)

    def test_single_precision(self, name: str) -> None:
        double, single = build(self.descriptors[name]), build(self.descriptors[name], "float32")
        single.load_state_dict({k: v.to(single.state_dict()[k].dtype) for k, v in double.state_dict().items()})
        f = frame()
        d, s = predict(double, f), predict(single, f)
        assert float(s.energy[0]) == pytest.approx(float(d.energy[0]), abs=2e-5)
        np.testing.assert_allclose(s.forces, d.forces, atol=2e-5 * float(d.forces.abs().max() + 1))
