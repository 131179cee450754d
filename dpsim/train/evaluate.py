"""Errors of a model on labelled data: `dpsim test`, and the validation of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpsim.calculators.base import Calculator, calculator_of
from dpsim.data.frame import Batch, Frame, Prediction
from dpsim.data.sampler import EdgeCache
from dpsim.data.subset import evenly_spread
from dpsim.data.system import System
from dpsim.models.energy_model import EnergyModel
from dpsim.models.potential import Potential
from dpsim.train.config import LossConfig
from dpsim.train.loss import SquaredErrors, limit_prefactors, loss

_ATOMS_PER_BATCH = 192
Pick = tuple[int, int]  # (system, frame)


def all_frames(systems: Sequence[System]) -> list[Pick]:
    """Every frame of every system."""
    return [(s, k) for s, system in enumerate(systems) for k in range(len(system))]


def spread_frames(systems: Sequence[System], n: int) -> list[Pick]:
    """At most n frames, evenly spread over all systems: always the same ones."""
    return evenly_spread(all_frames(systems), n)


def batches(
    systems: Sequence[System], picks: Sequence[Pick], model: Potential | Calculator, cache: EdgeCache | None = None
) -> Iterator[Batch]:
    """The picked frames in order, small ones several at a time, as `model` counts types and sees neighbours."""
    cache = cache or EdgeCache(0)
    waiting: list[Frame] = []
    edges = []
    for n, (s, k) in enumerate(picks):
        frame = systems[s].frame(k).with_type_map(model.type_map)
        waiting.append(frame)
        edges.append(cache.get((s, k), frame, model.rcut))
        if sum(f.n_atoms for f in waiting) >= _ATOMS_PER_BATCH or n == len(picks) - 1:
            yield Batch.from_frames(waiting, model.rcut, edges)
            waiting, edges = [], []


def predict(model: Potential, batch: Batch) -> tuple[Batch, Prediction]:
    """What the model says of a batch, as far as there are labels to compare with; both on the model's device."""
    batch = batch.to(model.energy_bias.device)
    return batch, model(batch, **_labelled(batch))


def _labelled(batch: Batch) -> dict[str, bool]:
    """Whether there are labels of forces and of virials."""
    labels = {"forces": batch.has_forces, "virial": batch.has_virial}
    return {name: has is not None and bool(has.any()) for name, has in labels.items()}


class Validator:
    """Judges a model on a fixed set of frames while it trains."""

    def __init__(self, systems: Sequence[System], n_frames: int, config: LossConfig, cache_bytes: int = 1 << 27):
        self.systems, self.config = list(systems), config
        self.picks = spread_frames(systems, n_frames)
        self._cache = EdgeCache(cache_bytes)

    def with_loss(self, config: LossConfig) -> Validator:
        """The same frames, judged by another loss."""
        other = copy(self)
        other.config = config
        return other

    def __call__(self, model: EnergyModel) -> tuple[float, SquaredErrors]:
        """The loss per frame with the prefactors of the end of training (the score: lower is better), and errors."""
        total, errors = 0.0, SquaredErrors()
        for batch in batches(self.systems, self.picks, model, self._cache):
            batch, prediction = predict(model, batch)
            of = self.config
            result = loss(prediction, batch, limit_prefactors(of), of.kind, of.huber_delta, of.relative_forces)
            total += float(result.per_frame.sum())
            errors += result.errors
        return total / len(self.picks), errors


@dataclass
class Pairs:
    """Labels and predictions of one quantity, flat, in a unit for people."""

    label: list[np.ndarray] = field(default_factory=list)
    predicted: list[np.ndarray] = field(default_factory=list)

    def add(self, label: np.ndarray, predicted: np.ndarray) -> None:
        self.label.append(np.ravel(label))
        self.predicted.append(np.ravel(predicted))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        empty = [np.zeros(0)]
        return np.concatenate(self.label or empty), np.concatenate(self.predicted or empty)

    def metrics(self) -> dict[str, float | int]:
        """Number, MAE, RMSE, largest error, and the standard deviation of the labels (what zero knowledge scores)."""
        label, predicted = self.arrays()
        if not len(label):
            return {"n": 0}
        error = predicted - label
        return {
            "n": len(label),
            "mae": float(np.abs(error).mean()),
            "rmse": float(np.sqrt((error**2).mean())),
            "max": float(np.abs(error).max()),
            "label_std": float(label.std()),
        }


QUANTITIES = {"energy": "meV/atom", "forces": "meV/A", "virial": "meV/atom"}
SPREAD = "label_std_in_composition"  # of energies, about the best constant per element: what is left to learn


@dataclass
class SetErrors:
    """Labels and predictions of one data set: energy and virial per atom (meV/atom), forces (meV/A).

    fractions: of each frame with an energy, the share of each of `n_types` elements in its atoms.
    model: which one was tested; weight: of the set in averages; shift: what was added to the energy bias first, eV.
    """

    name: str
    n_frames: int = 0
    pairs: dict[str, Pairs] = field(default_factory=lambda: {q: Pairs() for q in QUANTITIES})
    n_types: int = 0
    fractions: list[np.ndarray] = field(default_factory=list)
    model: str = ""
    weight: float = 1.0
    shift: dict[str, float] | None = None

    def add(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch in, 1000 times its values: meV."""
        n = batch.n_atoms_per_frame.cpu().numpy()
        self.n_frames += batch.n_frames
        if batch.energy is not None and batch.has_energy is not None:
            has = batch.has_energy.cpu().numpy() > 0
            self._add("energy", batch.energy, prediction.energy, has, n)
            self.fractions += [x for x, h in zip(_fractions(batch, self.n_types), has, strict=True) if h]
        if batch.forces is not None and batch.has_forces is not None and prediction.forces is not None:
            has = (batch.has_forces > 0)[batch.frame_index].cpu().numpy()
            self._add("forces", batch.forces, prediction.forces, has, np.ones(batch.n_atoms))
        if batch.virial is not None and batch.has_virial is not None and prediction.virial is not None:
            has = batch.has_virial.cpu().numpy() > 0
            self._add("virial", batch.virial, prediction.virial, has, n)

    def _add(self, name: str, label: Any, predicted: Any, has: np.ndarray, per: np.ndarray) -> None:
        shape = (-1,) + (1,) * (label.ndim - 1)
        scale = 1000.0 / per.reshape(shape)
        values = [(x.detach().double().cpu().numpy() * scale)[has] for x in (label, predicted)]
        self.pairs[name].add(values[0], values[1])

    def metrics(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found: dict[str, Any] = {q: {"unit": unit, **self.pairs[q].metrics()} for q, unit in QUANTITIES.items()}
        if found["energy"]["n"] and self.fractions:
            found["energy"][SPREAD] = self._std_in_composition()
        more = {"model": self.model, "weight": self.weight, "energy_bias_shift_eV": self.shift} if self.model else {}
        return {"name": self.name, "n_frames": self.n_frames, **more, **found}

    def _std_in_composition(self) -> float:
        """The standard deviation of energies about the best constant per element: what composition alone cannot say."""
        label, x = self.pairs["energy"].arrays()[0], np.array(self.fractions)
        label = label - label.mean()
        return float((label - x @ np.linalg.lstsq(x, label, rcond=None)[0]).std())


def _fractions(batch: Batch, n_types: int) -> np.ndarray:
    """(n_frames, n_types): the share of each type in the atoms of each frame."""
    n = batch.n_frames
    counts = torch.bincount(batch.frame_index * n_types + batch.types, minlength=n * n_types).view(n, n_types)
    fractions: np.ndarray = (counts.double() / batch.n_atoms_per_frame[:, None]).cpu().numpy()
    return fractions


def evaluate_systems(
    model: Potential | Calculator, systems: Sequence[System], name: str, max_frames: int | None = None
) -> SetErrors:
    """Compare a model with the labels of some systems, all frames or an even spread of them."""
    picks = all_frames(systems) if max_frames is None else spread_frames(systems, max_frames)
    calculator = model if isinstance(model, Calculator) else calculator_of(model)
    result = SetErrors(name, n_types=len(calculator.type_map))
    for batch in batches(systems, picks, calculator):
        result.add(batch, calculator.compute(batch, **_labelled(batch)))
    return result


def evaluate(model: Potential, data: Sequence[str | Path], max_frames: int | None = None) -> list[SetErrors]:
    """Errors of a model on each data set (a path: all systems at or below it).

    Raises: DataError for data that cannot be read, ElementError for elements the model does not know.
    """
    from dpsim.data.readers import open_dataset

    results = []
    for path in data:
        systems = open_dataset(path, model.type_map)
        results.append(evaluate_systems(model, systems, str(path), max_frames))
    return results
