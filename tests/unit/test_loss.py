"""dpsim/train/loss.py against sums written out, frame by frame, from DeePMD-kit v2 Eqs. 58-62."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpsim.data.frame import Batch, Frame, Prediction
from dpsim.train.config import LossConfig
from dpsim.train.loss import Prefactors, SquaredErrors, limit_prefactors, loss, prefactors, wanted

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
