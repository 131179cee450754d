"""The training loss: pure functions of a prediction and the labels of its batch.

For the n frames k of a batch, N atoms each, prefactors p and a mask h (1 where the label exists, else 0):

    L = 1/n sum_k [ p_E h L_E + p_F h L_F + p_W h L_W + p_R L_R + p_A h L_A ]
    mse:    L_E = dE^2 / N      L_F = sum dF^2 / 3N      L_W = sum dW^2 / 9N
    huber:  L_E = H(dE / N)     L_F = sum H(dF) / 3N     L_W = sum H(dW / N) / 9
            H(x) = x^2 / 2 for |x| <= delta, else delta (|x| - delta / 2)
    relative energy, over the m - 1 other labelled frames l of the batch with the atoms of k (0 without any):
            L_R = 1/(m - 1) sum_l (dE_k - dE_l)^2 / N,  in the Huber loss H((dE_k - dE_l) / N)
    atoms weighted by q_i (`atom_pref`):   L_A = sum q_i dF_i^2 / 3N,  in the Huber loss sum q_i H(dF_i) / 3N
    relative forces, in L_F and L_A:       dF_i / (|F_i| + nu) for dF_i, with F_i the label
    p(t) = p_limit (1 - d(t)) + p_start d(t),  d(t) = lr(t) / lr(0)

(dE_k - dE_l is the error of the difference of two conformations: what both have in common drops out.)
Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 58-65; nu, which Eq. 65 lacks, as DeePMD-kit's
`relative_f`; Huber as in DeePMD-kit's energy loss and DPA-2, npj Comput. Mater. 10, 293 (2024).
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
    """Weights of the terms at one step."""

    energy: float
    forces: float
    virial: float
    relative_energy: float = 0.0
    prefactored_forces: float = 0.0


def prefactors(config: LossConfig, decay: float) -> Prefactors:
    """p(t) = p_limit (1 - d) + p_start d for each term; `decay` is d(t), 1 at the first step."""
    terms = (getattr(config, name) for name in Prefactors._fields)
    return Prefactors(*(p.limit * (1 - decay) + p.start * decay for p in terms))


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


def loss(
    prediction: Prediction,
    batch: Batch,
    weights: Prefactors,
    kind: str = "mse",
    delta: float = 0.01,
    relative_forces: float | None = None,
) -> Loss:
    """The loss of a batch. Terms that the prediction lacks, or with no label, count zero.

    Args: weights: prefactors of this step; kind: "mse" or "huber"; delta: eV/atom and eV/A, of Huber;
    relative_forces: nu, eV/A (None: errors of forces count as they are).
    """
    huber = delta if kind == "huber" else None
    n_atoms = batch.n_atoms_per_frame.to(torch.float64)
    errors = SquaredErrors()
    per_frame = torch.zeros_like(n_atoms)
    if batch.energy is not None and batch.has_energy is not None:
        d = (prediction.energy - batch.energy) * batch.has_energy / n_atoms
        per_frame = per_frame + weights.energy * _per_atom_term(d, n_atoms, huber)
        if weights.relative_energy:
            per_frame = per_frame + weights.relative_energy * _relative_energy(d, n_atoms, batch, huber)
        errors.energy, errors.n_energy = float((d * d).detach().sum()), float(batch.has_energy.sum())
    if prediction.forces is not None and batch.forces is not None and batch.has_forces is not None:
        d = (prediction.forces.to(torch.float64) - batch.forces) * batch.has_forces[batch.frame_index, None]
        errors.forces, errors.n_forces = float((d * d).detach().sum()), float((3 * n_atoms * batch.has_forces).sum())
        if relative_forces is not None:
            d = d / (torch.linalg.vector_norm(batch.forces, dim=1, keepdim=True) + relative_forces)
        term = d * d if huber is None else _huber(d, huber)
        per_frame = per_frame + weights.forces * _sum_over_atoms(term, batch) / (3 * n_atoms)
        if weights.prefactored_forces and batch.atom_pref is not None:
            weighted = _sum_over_atoms(batch.atom_pref[:, None] * term, batch) / (3 * n_atoms)
            per_frame = per_frame + weights.prefactored_forces * weighted
    if prediction.virial is not None and batch.virial is not None and batch.has_virial is not None:
        d = (prediction.virial.to(torch.float64) - batch.virial) / n_atoms[:, None, None]
        d = d * batch.has_virial[:, None, None]
        term = _per_atom_term(d, n_atoms[:, None, None], huber).sum((1, 2))
        per_frame = per_frame + weights.virial * term / 9
        errors.virial, errors.n_virial = float((d * d).detach().sum()), float(9 * batch.has_virial.sum())
    return Loss(per_frame.mean(), per_frame.detach(), errors)


def wanted(batch: Batch, weights: Prefactors) -> tuple[bool, bool]:
    """Whether forces and virial need to be computed: there are labels, and they have a weight."""
    has_forces = batch.has_forces is not None and bool(batch.has_forces.any())
    has_virial = batch.has_virial is not None and bool(batch.has_virial.any())
    weighted = weights.forces > 0 or (weights.prefactored_forces > 0 and batch.atom_pref is not None)
    return has_forces and weighted, has_virial and weights.virial > 0


def _relative_energy(d: Tensor, n_atoms: Tensor, batch: Batch, huber: float | None) -> Tensor:
    """L_R (n_frames,) of d = dE / N: the mean over the other labelled frames of the batch with the same atoms."""
    n, n_types = batch.n_frames, int(batch.types.max()) + 1
    atoms = torch.bincount(batch.frame_index * n_types + batch.types, minlength=n * n_types).view(n, n_types)
    labelled = torch.ones_like(d) if batch.has_energy is None else batch.has_energy
    pairs = (atoms[:, None] == atoms).all(2) * labelled[:, None] * labelled
    pairs.fill_diagonal_(0)
    term = _per_atom_term(d[:, None] - d, n_atoms[:, None], huber)
    return (pairs * term).sum(1) / pairs.sum(1).clamp(min=1)


def _per_atom_term(x: Tensor, n_atoms: Tensor, huber: float | None) -> Tensor:
    """The term of an error x = dE / N or dW / N per atom: dE^2 / N = N x^2, or H(x)."""
    return x * x * n_atoms if huber is None else _huber(x, huber)


def _huber(x: Tensor, delta: float) -> Tensor:
    return torch.nn.functional.huber_loss(x, torch.zeros_like(x), reduction="none", delta=delta)


def _sum_over_atoms(x: Tensor, batch: Batch) -> Tensor:
    """(n_atoms, 3) -> (n_frames,)."""
    if batch.n_frames == 1:
        return x.sum()[None]
    return x.new_zeros(batch.n_frames).index_add(0, batch.frame_index, x.sum(1))
