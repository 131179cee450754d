"""dpsim/train/loss.py against sums written out, frame by frame, from DeePMD-kit v2 Eqs. 58-65."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpsim.config import validate
from dpsim.data.frame import Batch, Frame, Prediction
from dpsim.data.readers import open_dataset
from dpsim.data.validation import validate_frame
from dpsim.errors import ConfigError, DataError
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.train.config import LossConfig, TrainConfig
from dpsim.train.loss import Prefactors, SquaredErrors, limit_prefactors, loss, prefactors, wanted
from dpsim.train.progress import Silent
from dpsim.train.trainer import train

WEIGHTS = Prefactors(energy=2.0, forces=3.0, virial=5.0)


def frame(n: int, seed: int, **missing: None) -> Frame:
    rng = np.random.default_rng(seed)
    labels = {"energy": float(rng.normal()), "forces": rng.normal(size=(n, 3)), "virial": rng.normal(size=(3, 3))}
    return Frame(
        positions=rng.uniform(0, 5, (n, 3)),
        types=np.zeros(n, dtype=np.int64),
        type_map=("He",),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
        source=f"frame {seed}",
        **{**labels, **missing},
    )


def predict(batch: Batch, seed: int = 9) -> Prediction:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()

    return Prediction(
        normal(batch.n_frames), normal(batch.n_atoms), normal(batch.n_atoms, 3), normal(batch.n_frames, 3, 3)
    )


def naive(prediction: Prediction, frames: list[Frame], kind: str, delta: float) -> list[float]:
    """One number per frame, by loops."""

    def h(x: float) -> float:
        if kind == "mse":
            return x * x
        return 0.5 * x * x if abs(x) <= delta else delta * (abs(x) - 0.5 * delta)

    out, start = [], 0
    assert prediction.forces is not None and prediction.virial is not None
    for k, f in enumerate(frames):
        n, total = f.n_atoms, 0.0
        scale = n if kind == "mse" else 1.0
        if f.energy is not None:
            total += WEIGHTS.energy * scale * h((prediction.energy[k].item() - f.energy) / n)
        if f.forces is not None:
            d = prediction.forces[start : start + n].detach().numpy() - f.forces
            total += WEIGHTS.forces * sum(h(x) for x in d.ravel()) / (3 * n)
        if f.virial is not None:
            d = (prediction.virial[k].detach().numpy() - f.virial) / n
            total += WEIGHTS.virial * scale * sum(h(x) for x in d.ravel()) / 9
        out.append(total)
        start += n
    return out


@pytest.mark.parametrize("kind", ["mse", "huber"])
@pytest.mark.parametrize(
    "frames",
    [
        [frame(4, 1)],
        [frame(4, 1), frame(2, 2), frame(7, 3)],
        [frame(4, 1, virial=None), frame(2, 2, forces=None), frame(3, 3, energy=None)],
        [frame(1, 1, energy=None, virial=None)],
    ],
    ids=["one", "several", "some labels", "forces only"],
)
def test_equals_the_sums_of_the_paper(kind: str, frames: list[Frame]) -> None:
    batch = Batch.from_frames(frames, 1.0)
    prediction = predict(batch)
    result = loss(prediction, batch, WEIGHTS, kind, 0.4)
    expected = naive(prediction, frames, kind, 0.4)
    np.testing.assert_allclose(result.per_frame.numpy(), expected, rtol=1e-12)
    assert result.total.item() == pytest.approx(np.mean(expected), rel=1e-12)
    result.total.backward()
    assert prediction.forces is not None and prediction.forces.grad is not None


def test_rmse_is_per_atom_and_over_labelled_frames_only() -> None:
    frames = [frame(4, 1, virial=None), frame(2, 2, forces=None)]
    batch = Batch.from_frames(frames, 1.0)
    p = predict(batch)
    errors = SquaredErrors()
    errors += loss(p, batch, WEIGHTS).errors
    errors += loss(p, batch, WEIGHTS, "huber").errors  # twice the same: means do not change
    de = (p.energy.detach().numpy() - [f.energy for f in frames]) / [4, 2]
    assert p.forces is not None and p.virial is not None
    df = p.forces.detach().numpy()[:4] - frames[0].forces
    dw = (p.virial.detach().numpy()[1] - frames[1].virial) / 2
    assert errors.rmse() == pytest.approx([np.sqrt(np.mean(x**2)) for x in (de, df, dw)])
    assert np.isnan(SquaredErrors().rmse()).all()


def test_prefactors_move_from_start_to_limit() -> None:
    config = LossConfig.model_validate({"energy": {"start": 0.02, "limit": 1}, "forces": {"start": 1000, "limit": 1}})
    assert prefactors(config, 1.0)[:2] == (0.02, 1000.0)
    assert limit_prefactors(config)[:2] == (1.0, 1.0)
    assert prefactors(config, 0.25)[:2] == pytest.approx((0.25 * 0.02 + 0.75, 250.75))


def test_only_labelled_and_weighted_terms_are_wanted() -> None:
    batch = Batch.from_frames([frame(2, 1), frame(2, 2, virial=None)], 1.0)
    assert wanted(batch, WEIGHTS) == (True, True)
    assert wanted(batch, WEIGHTS._replace(virial=0.0)) == (True, False)
    assert wanted(Batch.from_frames([frame(2, 1, forces=None)], 1.0), WEIGHTS) == (False, True)


def prediction_with(batch: Batch, energy: list[float] | None = None, forces: np.ndarray | None = None) -> Prediction:
    p = predict(batch)
    if energy is not None:
        p.energy = torch.tensor(energy, dtype=torch.float64)
    if forces is not None:
        p.forces = torch.as_tensor(forces, dtype=torch.float64)
    return p


NOTHING = Prefactors(0.0, 0.0, 0.0)


def test_relative_energy_of_known_numbers() -> None:
    """Eq. 63 over the pairs of one composition; what all predictions have in common costs nothing."""
    frames = [replace(frame(2, k), energy=e) for k, e in enumerate([1.0, 2.0, 4.0])] + [frame(3, 7)]
    frames += [replace(frame(2, 8), energy=None)]
    batch = Batch.from_frames(frames, 1.0)
    p = prediction_with(batch, [1.5, 2.0, 3.5, 99.0, 99.0])  # errors 0.5, 0, -0.5 of the three that pair up
    weights = NOTHING._replace(relative_energy=3.0)
    result = loss(p, batch, weights)
    pairs = [0.5**2 + 1.0**2, 0.5**2 + 0.5**2, 1.0**2 + 0.5**2]
    np.testing.assert_allclose(result.per_frame.numpy(), [3 * x / 2 / 2 for x in pairs] + [0, 0])
    shifted = prediction_with(batch, [1.5 + 7, 2.0 + 7, 3.5 + 7, 0.0, 0.0])
    np.testing.assert_allclose(loss(shifted, batch, weights).per_frame.numpy(), result.per_frame.numpy())
    huber = loss(p, batch, weights, "huber", 0.3)  # errors per atom 0.25 and 0.5 against delta 0.3
    h = [0.25**2 / 2, 0.3 * (0.5 - 0.15)]
    np.testing.assert_allclose(
        huber.per_frame.numpy()[:3], [3 * (h[0] + h[1]) / 2, 3 * h[0], 3 * (h[0] + h[1]) / 2], rtol=1e-12
    )


def test_isomers_pair_up_and_other_compositions_do_not() -> None:
    def of(types: list[int], energy: float) -> Frame:
        return replace(frame(3, 1), types=np.array(types), type_map=("He", "Ne"), energy=energy)

    batch = Batch.from_frames([of([0, 1, 1], 0.0), of([1, 1, 0], 0.0), of([0, 0, 1], 0.0)], 1.0)
    p = prediction_with(batch, [1.0, 3.0, 9.0])
    per_frame = loss(p, batch, NOTHING._replace(relative_energy=1.0)).per_frame
    np.testing.assert_allclose(per_frame.numpy(), [4 / 3, 4 / 3, 0.0])


def test_forces_weighted_by_atom_of_known_numbers() -> None:
    """Eq. 64; a frame without weights counts zero."""
    q = np.array([0.0, 2.0])
    zero = np.zeros((2, 3))
    frames = [replace(frame(2, 1), forces=zero, atom_pref=q), replace(frame(2, 2), forces=zero)]
    batch = Batch.from_frames(frames, 1.0)
    p = prediction_with(batch, forces=np.array([[1, 1, 1], [3, 0, 0.5], [1, 1, 1], [1, 1, 1]]))
    weights = NOTHING._replace(prefactored_forces=5.0)
    np.testing.assert_allclose(loss(p, batch, weights).per_frame.numpy(), [5 * 2 * 9.25 / 6, 0])
    huber = loss(p, batch, weights, "huber", 1.0).per_frame.numpy()
    np.testing.assert_allclose(huber, [5 * 2 * (2.5 + 0.125) / 6, 0])
    assert wanted(batch, weights) == (True, False)
    assert wanted(Batch.from_frames(frames[1:], 1.0), weights) == (False, False)


def test_relative_forces_of_known_numbers() -> None:
    """Eq. 65 with the shift of DeePMD-kit's `relative_f`, in both terms of forces; errors are reported in eV/A."""
    f = replace(frame(2, 1), forces=np.array([[3.0, 0, 4.0], [0, 0, 0]]), atom_pref=np.array([1.0, 3.0]))
    batch = Batch.from_frames([f], 1.0)
    p = prediction_with(batch, forces=np.array([[3.0, 2.0, 4.0], [0.0, 0.5, 0]]))
    result = loss(p, batch, NOTHING._replace(forces=6.0, prefactored_forces=6.0), relative_forces=1.0)
    x, y = (2 / 6) ** 2, (0.5 / 1) ** 2
    assert result.total.item() == pytest.approx((x + y) + (x + 3 * y))
    assert result.errors.forces == pytest.approx(4.25)


@pytest.mark.parametrize("term", ["relative_energy", "prefactored_forces", "relative_forces"])
def test_gradients_of_a_model_are_those_of_finite_differences(term: str) -> None:
    """d(loss)/d(parameter) along a random direction, through forces that are derivatives themselves."""
    config = {"type_map": ["He", "Ne"], "precision": "float64", "fitting": {"neuron": [6]}}
    descriptor = {"type": "se_e2_a", "sel": [8, 8], "rcut": 4.0, "neuron": [4], "axis_neuron": 2}
    model = EnergyModel(ModelConfig.model_validate({**config, "descriptor": descriptor}), seed=1)
    rng = np.random.default_rng(0)
    batch = Batch.from_frames([_cluster(rng) for _ in range(3)], 4.0)
    weights = NOTHING._replace(**({"forces": 2.0} if term == "relative_forces" else {term: 2.0}))
    relative = 0.5 if term == "relative_forces" else None

    def value() -> torch.Tensor:
        p = model(batch, forces=True, virial=False, create_graph=True)
        return loss(p, batch, weights, relative_forces=relative).total

    parameters = list(model.parameters())
    torch.autograd.backward(value(), inputs=parameters)
    direction = [torch.as_tensor(rng.normal(size=p.shape)) for p in parameters]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True) if p.grad is not None)
    step, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(sign * step * d)
        values.append(value().item())
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(sign * step * d)
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)
    assert abs(slope) > 1e-6


def _cluster(rng: np.random.Generator) -> Frame:
    grid = np.array([[0, 0, 0], [1.8, 0, 0], [0, 1.9, 0], [0, 0, 2.1]])
    f = replace(frame(4, 3), types=np.array([0, 1, 1, 0]), type_map=("He", "Ne"), atom_pref=rng.uniform(0, 2, 4))
    return replace(f, positions=grid + rng.uniform(-0.2, 0.2, (4, 3)), energy=float(rng.normal()))


def test_settings_of_the_terms() -> None:
    config = validate({"relative_energy": {"start": 2, "limit": 4}, "relative_forces": "100 meV/A"}, LossConfig)
    assert config.relative_forces == pytest.approx(0.1)
    assert prefactors(config, 0.5).relative_energy == 3.0 and prefactors(config, 0.5).prefactored_forces == 0.0
    with pytest.raises(ConfigError, match=r"`relative_forces` is 1 eV/A with the huber loss"):
        validate({"kind": "huber", "relative_forces": "1 eV/A"}, LossConfig)


def test_weights_of_atoms_are_read(make_system: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_system(tmp_path / "a", 3, seed=1)
    q = np.arange(18.0).reshape(3, 6)
    np.save(folder / "set.000" / "atom_pref.npy", q)
    (tmp_path / "b.extxyz").write_text(
        "2\nProperties=species:S:1:pos:R:3:forces:R:3:atom_pref:R:1 energy=1.0\nHe 0 0 0 0 0 1 0.5\nHe 0 0 2 0 0 -1 2\n"
    )
    npy, xyz = open_dataset(tmp_path)
    if npy.path.suffix:
        npy, xyz = xyz, npy
    assert npy.has("atom_pref") and xyz.has("atom_pref")
    np.testing.assert_array_equal(npy.frame(1).atom_pref, q[1])
    np.testing.assert_array_equal(xyz.frame(0).atom_pref, [0.5, 2.0])
    with pytest.raises(DataError, match=r"`atom_pref` of atom 0 is -1; expected a number >= 0"):
        validate_frame(replace(npy.frame(0), atom_pref=np.array([-1.0] + [1.0] * 5)))


@pytest.mark.parametrize(
    ("term", "message"), [("relative_energy", "Raise `batch_size`"), ("prefactored_forces", "carry no `atom_pref`")]
)
def test_terms_that_would_be_nothing_are_refused(
    term: str, message: str, train_settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**train_settings, "loss": {term: {"start": 1, "limit": 1}}}
    settings["data"] = {**settings["data"], "batch_size": 1}
    with pytest.raises((ConfigError, DataError), match=message):
        train(validate(settings, TrainConfig), tmp_path / "run", reporter=Silent())


def test_a_run_with_every_term(
    train_settings: dict[str, Any], make_system: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_system(tmp_path / "a", 4, seed=1)
    np.save(folder / "set.000" / "atom_pref.npy", np.ones((4, 6)))
    one = {"start": 1.0, "limit": 1.0}
    loss = {"relative_energy": one, "prefactored_forces": one, "relative_forces": "1 eV/A"}
    settings = {**train_settings, "loss": loss, "steps": 3, "data": {"train": [str(folder)], "batch_size": 2}}
    assert train(validate(settings, TrainConfig), tmp_path / "run", reporter=Silent()).finished
