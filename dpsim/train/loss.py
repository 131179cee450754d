"""The training loss: pure functions of a prediction and the labels of its batch.

For the n frames k of a batch, N_k atoms each, prefactors p and a mask h (1 where the label exists, else 0):

    L = 1/n sum_k [ p_E h_k L_E + p_F h_k L_F + p_W h_k L_W ]
    mse:    L_E = dE^2 / N      L_F = sum dF^2 / 3N      L_W = sum dW^2 / 9N
    huber:  L_E = H(dE / N)     L_F = sum H(dF) / 3N     L_W = sum H(dW / N) / 9
            H(x) = x^2 / 2 for |x| <= delta, else delta (|x| - delta / 2)
    p(t) = p_limit (1 - d(t)) + p_start d(t),  d(t) = lr(t) / lr(0)

Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 58-62; Huber as in DeePMD-kit's energy loss and
DPA-2, npj Comput. Mater. 10, 293 (2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from dpsim.data.frame import Batch, Prediction
from dpsim.train.config import LossConfig


class Prefactors(NamedTuple):
    """Weights of the energy, force and virial terms at one step."""

    energy: float
    forces: float
    virial: float


def prefactors(config: LossConfig, decay: float) -> Prefactors:
    """p(t) = p_limit (1 - d) + p_start d for the three terms; `decay` is d(t), 1 at the first step."""
    return Prefactors(*(p.limit * (1 - decay) + p.start * decay for p in (config.energy, config.forces, config.virial)))


def limit_prefactors(config: LossConfig) -> Prefactors:
    """The prefactors at the end of training: what models are compared with."""
    return prefactors(config, 0.0)


@dataclass
class SquaredErrors:
    """Sums of squared errors and what they were summed over; adding two of them merges their frames.

    energy: sum over frames of (dE/N)^2, (eV/atom)^2; forces: sum over components, (eV/A)^2;
    virial: sum over components of (dW/N)^2, (eV/atom)^2. n_*: numbers of terms.
    """

    energy: float = 0.0
    forces: float = 0.0
    virial: float = 0.0
    n_energy: float = 0.0
    n_forces: float = 0.0
    n_virial: float = 0.0

    def __iadd__(self, other: SquaredErrors) -> SquaredErrors:
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))
        return self

    def rmse(self) -> tuple[float, float, float]:
        """RMSE of energy (eV/atom), forces (eV/A), virial (eV/atom); NaN where there was no label."""
        pairs = ((self.energy, self.n_energy), (self.forces, self.n_forces), (self.virial, self.n_virial))
        energy, forces, virial = (math.sqrt(s / n) if n else math.nan for s, n in pairs)
        return energy, forces, virial


class Loss(NamedTuple):
    """total: scalar, differentiable; per_frame (n_frames,), detached, averaging to total; errors: for RMSE."""

    total: Tensor
    per_frame: Tensor
    errors: SquaredErrors


def loss(prediction: Prediction, batch: Batch, weights: Prefactors, kind: str = "mse", delta: float = 0.01) -> Loss:
    """The loss of a batch. Terms that the prediction lacks, or with no label, count zero.

    Args: weights: prefactors of this step; kind: "mse" or "huber"; delta: eV/atom and eV/A, of Huber.
    """
    n_atoms = batch.n_atoms_per_frame.to(torch.float64)
    errors = SquaredErrors()
    per_frame = torch.zeros_like(n_atoms)
    if batch.energy is not None and batch.has_energy is not None:
        d = (prediction.energy - batch.energy) * batch.has_energy / n_atoms
        squares = d * d
        per_frame = per_frame + weights.energy * (_huber(d, delta) if kind == "huber" else squares * n_atoms)
        errors.energy, errors.n_energy = float(squares.detach().sum()), float(batch.has_energy.sum())
    if prediction.forces is not None and batch.forces is not None and batch.has_forces is not None:
        d = prediction.forces.to(torch.float64) - batch.forces
        squares = _sum_over_atoms(d * d, batch) * batch.has_forces
        term = _sum_over_atoms(_huber(d, delta), batch) * batch.has_forces if kind == "huber" else squares
        per_frame = per_frame + weights.forces * term / (3 * n_atoms)
        errors.forces, errors.n_forces = float(squares.detach().sum()), float((3 * n_atoms * batch.has_forces).sum())
    if prediction.virial is not None and batch.virial is not None and batch.has_virial is not None:
        d = (prediction.virial.to(torch.float64) - batch.virial) / n_atoms[:, None, None]
        squares = (d * d).sum((1, 2)) * batch.has_virial
        term = _huber(d, delta).sum((1, 2)) * batch.has_virial if kind == "huber" else squares * n_atoms
        per_frame = per_frame + weights.virial * term / 9
        errors.virial, errors.n_virial = float(squares.detach().sum()), float(9 * batch.has_virial.sum())
    return Loss(per_frame.mean(), per_frame.detach(), errors)


def wanted(batch: Batch, weights: Prefactors) -> tuple[bool, bool]:
    """Whether forces and virial need to be computed: there are labels, and they have a weight."""
    has_forces = batch.has_forces is not None and bool(batch.has_forces.any())
    has_virial = batch.has_virial is not None and bool(batch.has_virial.any())
    return has_forces and weights.forces > 0, has_virial and weights.virial > 0


def _huber(x: Tensor, delta: float) -> Tensor:
    return torch.nn.functional.huber_loss(x, torch.zeros_like(x), reduction="none", delta=delta)


def _sum_over_atoms(x: Tensor, batch: Batch) -> Tensor:
    """(n_atoms, 3) -> (n_frames,)."""
    if batch.n_frames == 1:
        return x.sum()[None]
    return x.new_zeros(batch.n_frames).index_add(0, batch.frame_index, x.sum(1))
