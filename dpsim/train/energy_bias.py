"""The energy bias of a trained model for data of another method: labels that differ by a constant per element.

    shift = argmin_s sum_frames (E - E_model - sum_t n_t s_t)^2,  of minimum norm;   bias <- bias + shift

A model learned from PBE energies is of use for SCAN data after this alone: zero-shot errors are measured so.
Source: Zhang et al., DPA-2, npj Comput. Mater. 10, 293 (2024), Eq. 6 and "Pre-training and fine-tuning"; DeePMD-kit's
`dp change-bias` ("change-by-statistic").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dpsim.calculators.base import calculator_of
from dpsim.data.statistics import sample_frames
from dpsim.data.system import System
from dpsim.errors import DataError, UnsupportedModelError
from dpsim.models.potential import Potential
from dpsim.train.evaluate import batches

BIAS_FRAMES = 200  # frames that a shift is fitted to, at least one of each system


@dataclass(frozen=True)
class BiasFit:
    """What the energies of some frames say of a model's bias.

    counts (n_frames, n_types): atoms of each type; difference (n_frames,) eV: label - model; sources: the frames'
    names; shift (n_types,) eV, 0 for elements without data.
    """

    type_map: tuple[str, ...]
    counts: np.ndarray
    difference: np.ndarray
    sources: tuple[str, ...]
    shift: np.ndarray

    def by_element(self) -> dict[str, float]:
        """The shift of each element that the frames have, eV."""
        return {s: float(self.shift[t]) for t, s in enumerate(self.type_map) if self.counts[:, t].any()}

    def residual(self, shift: np.ndarray | None = None) -> np.ndarray:
        """(n_frames,) eV/atom: what is left of `difference` after a shift, by default the fitted one."""
        left = self.difference - self.counts @ (self.shift if shift is None else shift)
        return np.asarray(left / self.counts.sum(1))


def fit_energy_bias(
    model: Potential, systems: Sequence[System], n_frames: int | None = BIAS_FRAMES, seed: int = 0
) -> BiasFit:
    """The shift of the energy bias that brings a model nearest to the energies of some systems; changes nothing.

    Args: n_frames: size of the seeded sample, at least one frame of each system (None: all).
    Raises: DataError if no frame has an energy, ElementError for elements the model does not know.
    """
    n_types = len(model.type_map)
    calculator = calculator_of(model)
    counts, difference, sources = list[np.ndarray](), list[float](), list[str]()
    for batch in batches(systems, sample_frames(systems, n_frames, seed), calculator):
        if batch.energy is None or batch.has_energy is None:
            continue
        error = batch.energy.numpy() - calculator.compute(batch, forces=False, virial=False).energy.cpu().numpy()
        atoms = torch.bincount(batch.frame_index * n_types + batch.types, minlength=batch.n_frames * n_types)
        for k in np.flatnonzero(batch.has_energy.numpy() > 0):
            counts.append(atoms.view(batch.n_frames, n_types)[k].numpy())
            difference.append(float(error[k]))
            sources.append(batch.sources[k])
    if not difference:
        raise DataError("the data carry no energies; expected some, to fit the energy bias to. Keep the model's own.")
    n = np.array(counts, dtype=np.float64)
    errors = np.array(difference)
    return BiasFit(tuple(model.type_map), n, errors, tuple(sources), least_squares_shift(n, errors))


def least_squares_shift(counts: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """argmin_s |difference - counts s|^2 of minimum norm, (n_types,) eV."""
    return np.asarray(np.linalg.lstsq(counts, difference, rcond=None)[0])


def shift_energy_bias(model: Potential, shift: np.ndarray) -> None:
    """bias <- bias + shift (n_types,) eV. Raises UnsupportedModelError for a model without a bias: a pair potential."""
    if "energy_bias" not in dict(model.named_buffers()):
        raise UnsupportedModelError(
            f"the model is a {type(model).__name__}, which has no energy bias; expected an ordinary model, to shift "
            "its energies. Leave the data to fit them to out."
        )
    model.energy_bias += torch.as_tensor(shift).to(model.energy_bias)
