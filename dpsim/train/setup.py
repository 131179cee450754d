"""What a run starts from: its data opened and checked, statistics taken, the model built, the sampler made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpsim.data.frame import Batch
from dpsim.data.readers import open_dataset
from dpsim.data.sampler import BatchSampler, batch_sizes
from dpsim.data.statistics import (
    Statistics,
    auto_sel,
    auto_sel_total,
    compute_statistics,
    parameter_statistics,
    sample_frames,
    shortest_distances,
)
from dpsim.data.system import System
from dpsim.data.validation import validate_systems
from dpsim.errors import ConfigError, DataError, UnsupportedModelError
from dpsim.models.checkpoint import load_trainable
from dpsim.models.config import ModelConfig
from dpsim.models.deepmd.model import with_conventions
from dpsim.models.descriptor_config import Environment, Sel
from dpsim.models.descriptors.local_frame import LocalFrame
from dpsim.models.energy_model import EnergyModel
from dpsim.models.graph import Graph
from dpsim.train.config import DataConfig, TrainConfig, WeightedPath

_VALIDATED_FRAMES = 5000  # of each kind of data; larger sets are sampled


@dataclass(frozen=True)
class Data:
    """The systems of a run. entries[k] is the index of the entry of `data.train` that training system k is from."""

    train: list[System]
    validation: list[System]
    entries: list[int]

    @property
    def n_train(self) -> int:
        return sum(len(s) for s in self.train)

    @property
    def n_validation(self) -> int:
        return sum(len(s) for s in self.validation)

    def provenance(self) -> dict[str, list[dict[str, object]]]:
        """Name (the end of its path), frames and SHA-256 of every system, for the model file."""

        def describe(system: System) -> dict[str, object]:
            name = "/".join(system.path.parts[-3:])
            return {"name": name, "frames": len(system), "sha256": system.digest()}

        return {"train": [describe(s) for s in self.train], "validation": [describe(s) for s in self.validation]}


def open_data(config: DataConfig, type_map: Sequence[str]) -> Data:
    """Open training and validation data and check their frames. Raises DataError, ElementError."""
    train: list[System] = []
    entries: list[int] = []
    for k, entry in enumerate(config.train):
        found = open_dataset(entry.path if isinstance(entry, WeightedPath) else entry, type_map)
        train += found
        entries += [k] * len(found)
    validation = [system for path in config.validation for system in open_dataset(path, type_map)]
    _refuse_overlap(train, validation)
    for systems in (train, validation):
        if systems:
            validate_systems(systems, type_map, n_frames=_VALIDATED_FRAMES)
    if not any(s.has("energy") or s.has("forces") for s in train):
        raise DataError("`data.train` carries neither energies nor forces; expected labels to learn. Add them.")
    return Data(train, validation, entries)


def _refuse_overlap(train: Sequence[System], validation: Sequence[System]) -> None:
    shared = {Path(s.path).resolve() for s in train} & {Path(s.path).resolve() for s in validation}
    if shared:
        raise DataError(
            f"`{min(shared)}` is in both `data.train` and `data.validation`; expected them apart. "
            "Remove it from one of the two: errors on frames that were trained on say nothing."
        )


def build_model(config: TrainConfig, data: Data) -> tuple[EnergyModel, list[Statistics]]:
    """The model with its initial weights (from the seed), its `sel` resolved and its statistics set.

    The statistics are those of each environment of the descriptor.
    """
    model_config, sels, stats = config.model, list[Sel](), list[Statistics]()
    for environment in model_config.descriptor.environments:
        args = (data.train, model_config.type_map, environment.rcut, environment.rcut_smth)
        sel = None if environment.sel == "auto" else environment.sel
        found = compute_statistics(*args, sel=sel, seed=config.seed)
        if sel is None:
            sel = _auto_sel(environment, found)
            found = compute_statistics(*args, sel=sel, seed=config.seed)
        sels.append(sel)
        stats.append(found)
    model_config = model_config.model_copy(update={"descriptor": model_config.descriptor.with_sel(sels)})
    if model_config.core_distances == "auto":
        distances = shortest_distances(data.train, model_config.type_map)
        model_config = model_config.model_copy(update={"core_distances": distances})
    model = EnergyModel(model_config, seed=config.seed)
    model.set_statistics(*stats)
    _take_more_statistics(model, config, data)
    if config.init_from is not None:
        _take_weights(model, load_trainable(config.init_from, precision=model_config.precision), str(config.init_from))
    return model, stats


def _take_more_statistics(model: EnergyModel, config: TrainConfig, data: Data) -> None:
    """Means and standard deviations of parameters, and of a descriptor that asks for its own."""
    fitting = config.model.fitting
    if fitting.numb_fparam:
        found = parameter_statistics(
            data.train, "fparam", fitting.numb_fparam, seed=config.seed, default=fitting.default_fparam
        )
        model.fitting.set_parameter_statistics("fparam", found)
    if fitting.numb_aparam:
        found = parameter_statistics(data.train, "aparam", fitting.numb_aparam, seed=config.seed)
        model.fitting.set_parameter_statistics("aparam", found)
    if isinstance(model.descriptor, LocalFrame):
        frames = (data.train[s].frame(k) for s, k in sample_frames(data.train, 1000, config.seed))
        model.descriptor.standardise(
            Graph.from_batch(batch, batch.edge_vectors().to(model.dtype), len(model.type_map))[0]
            for batch in (Batch.from_frames([f.with_type_map(model.type_map)], model.descriptor.rcut) for f in frames)
        )


def _take_weights(model: EnergyModel, other: EnergyModel, path: str) -> None:
    """Weights and statistics of a model of the same configuration. Raises ConfigError naming what differs.

    `deepmd_conventions` may differ where that leaves the numbers as they are.
    """
    ours, theirs = (_comparable(m.config) for m in (model, other))
    differ = [key for key in ours if ours[key] != theirs[key]]
    if differ:
        raise ConfigError(
            f"`init_from` is {path}, whose {', '.join(differ)} differ from `model`; expected the same. "
            f"Copy them from the file: {', '.join(f'{key} = {theirs[key]}' for key in differ)}."
        )
    try:
        other = with_conventions(other, model.config.deepmd_conventions)
    except UnsupportedModelError as error:
        raise ConfigError(f"`init_from` is {path}: {error} Write `deepmd_conventions: true` in `model`.") from None
    model.load_state_dict(other.state_dict())


def _comparable(config: ModelConfig) -> dict[str, Any]:
    """What must agree for weights to fit, every default resolved."""
    values = config.model_dump(mode="json", exclude={"deepmd_conventions"})
    if values["fitting"]["type_wise"] is None:
        values["fitting"]["type_wise"] = not config.descriptor.embeds_types
    return values


def _auto_sel(environment: Environment, stats: Statistics) -> Sel:
    """Room for the neighbours seen and a tenth more; at least 4 (elements that do not occur)."""
    if environment.sel_by_type:
        return [max(4, n) for n in auto_sel(stats)]
    return max(4, auto_sel_total(stats))


def build_sampler(config: TrainConfig, data: Data) -> BatchSampler:
    """The sampler of the training data; weights of entries are shared by size among their systems."""
    type_map, rcut = config.model.type_map, config.model.descriptor.rcut
    probabilities: str | list[float] = config.data.probabilities
    if config.data.weighted:
        sizes = batch_sizes(data.train, config.data.batch_size)
        n_batches = np.array([len(s) / b for s, b in zip(data.train, sizes, strict=True)])
        entry_of = np.array(data.entries)
        total = np.bincount(entry_of, n_batches)
        weight = np.array([e.weight if isinstance(e, WeightedPath) else 1.0 for e in config.data.train])
        probabilities = list(weight[entry_of] * n_batches / total[entry_of])
    return BatchSampler(data.train, type_map, config.data.batch_size, probabilities, config.seed, rcut)
