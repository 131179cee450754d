"""What a run starts from: its data opened and checked, statistics taken, the model built, the tasks made.

Of several tasks the descriptor is one, so its `sel` and statistics are those of all their data together. Each task has
its own energy bias, by least squares; elements that its data lack get the mean of the other tasks' biases of them.
Nothing trains those: they are a start for data to come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpsim.config import validate
from dpsim.data.frame import Batch
from dpsim.data.readers import open_dataset
from dpsim.data.sampler import BatchSampler, batch_sizes
from dpsim.data.statistics import (
    Statistics,
    auto_sel,
    auto_sel_total,
    compute_statistics,
    core_distances,
    energy_bias,
    parameter_statistics,
    sample_frames,
)
from dpsim.data.subset import random_subset
from dpsim.data.system import System
from dpsim.data.validation import validate_systems
from dpsim.errors import ConfigError, DataError
from dpsim.models.checkpoint import load_trainable, read_header, split_head
from dpsim.models.config import ModelConfig
from dpsim.models.descriptor_config import Environment, Sel
from dpsim.models.descriptors.base import Descriptor
from dpsim.models.descriptors.local_frame import LocalFrame
from dpsim.models.energy_model import EnergyModel
from dpsim.models.graph import Graph
from dpsim.models.multi_task import MultiTaskConfig, MultiTaskModel, Trainable, heads_of
from dpsim.models.potential import DTYPES
from dpsim.train.config import DataConfig, LossConfig, TaskConfig, TrainConfig, WeightedPath
from dpsim.train.evaluate import Validator
from dpsim.train.finetune import as_deepmd, refuse_difference, start
from dpsim.train.loss import Prefactors
from dpsim.train.tasks import Task

_VALIDATED_FRAMES = 5000  # of each kind of data; larger sets are sampled
_CACHE_BYTES, _VALIDATION_CACHE_BYTES = 1 << 28, 1 << 27  # for edges of frames seen before, of all tasks together


@dataclass(frozen=True)
class Data:
    """The systems of a task. entries[k] is the index of the entry of `train` that training system k is from."""

    train: list[System]
    validation: list[System]
    entries: list[int]

    @property
    def n_train(self) -> int:
        return sum(len(s) for s in self.train)

    @property
    def n_validation(self) -> int:
        return sum(len(s) for s in self.validation)

    def elements(self, type_map: Sequence[str]) -> list[str]:
        """The elements of the training data, in the order of a type_map."""
        found = set[str]().union(*(s.elements() for s in self.train))
        return [symbol for symbol in type_map if symbol in found]

    def provenance(self) -> dict[str, list[dict[str, object]]]:
        """Name (the end of its path), frames and SHA-256 of every system, for the model file."""

        def describe(system: System) -> dict[str, object]:
            name = "/".join(system.path.parts[-3:])
            return {"name": name, "frames": len(system), "sha256": system.digest()}

        return {"train": [describe(s) for s in self.train], "validation": [describe(s) for s in self.validation]}


def open_data(config: TrainConfig) -> dict[str, Data]:
    """Open and check the data of each task ("": of the only one). Raises DataError, ElementError."""
    data = {name: _open(of_task, config.model.type_map, name) for name, of_task in config.sets.items()}
    train, validation = ([s for d in data.values() for s in getattr(d, part)] for part in ("train", "validation"))
    _refuse_overlap(train, validation)
    return data


def _open(config: DataConfig, type_map: Sequence[str], name: str) -> Data:
    """The data of one task."""
    train: list[System] = []
    entries: list[int] = []
    for k, entry in enumerate(config.train):
        found = open_dataset(entry.path if isinstance(entry, WeightedPath) else entry, type_map)
        train += found
        entries += [k] * len(found)
    if config.frames is not None:
        chosen = random_subset(train, config.frames, config.frames_seed)
        train, entries = list(chosen.values()), [entries[k] for k in chosen]
    validation = [system for path in config.validation for system in open_dataset(path, type_map)]
    for systems in (train, validation):
        if systems:
            validate_systems(systems, type_map, n_frames=_VALIDATED_FRAMES)
    if not any(s.has("energy") or s.has("forces") for s in train):
        where = f"tasks.{name}.train" if name else "data.train"
        raise DataError(f"`{where}` carries neither energies nor forces; expected labels to learn. Add them.")
    return Data(train, validation, entries)


def _refuse_overlap(train: Sequence[System], validation: Sequence[System]) -> None:
    shared = {Path(s.path).resolve() for s in train} & {Path(s.path).resolve() for s in validation}
    if shared:
        raise DataError(
            f"`{min(shared)}` is in both `train` and `validation` of the data; expected them apart. "
            "Remove it from one of the two: errors on frames that were trained on say nothing."
        )


def build_model(config: TrainConfig, data: Mapping[str, Data]) -> tuple[Trainable, list[Statistics]]:
    """The model with its initial weights (from the seed), its `sel` resolved and its statistics set.

    The statistics are those of each environment of the descriptor, over the data of all tasks.
    """
    systems = [system for of_task in data.values() for system in of_task.train]
    model_config, stats = _resolved(config, systems)
    model: Trainable
    if config.tasks:
        fitting = model_config.fitting
        if config.heads == "encoded" and not fitting.dim_case_embd:
            fitting = fitting.model_copy(update={"dim_case_embd": len(config.tasks)})
            model_config = model_config.model_copy(update={"fitting": fitting})
        settings = {"model": model_config, "heads": list(config.tasks), "sharing": config.heads}
        model = MultiTaskModel(validate(settings, MultiTaskConfig, source="tasks"), seed=config.seed)
    else:
        model = EnergyModel(model_config, seed=config.seed)
    model.descriptor.set_statistics(stats)
    heads = heads_of(model)
    biases = _energy_biases(config, data) if config.tasks else [stats[0].energy_bias]
    for head, bias in zip(heads.values(), biases, strict=True):
        head.energy_bias.copy_(torch.as_tensor(bias))
        _take_parameter_statistics(head, config, systems)
    _standardise_local_frame(model.descriptor, config, systems)
    if isinstance(config.init_from, str):
        named = split_head(config.init_from)[1] is not None
        several = not named and "heads" in read_header(config.init_from)  # each task from the head of its name
        for name, head in heads.items():
            other = load_trainable(config.init_from, precision=model_config.precision, head=name if several else None)
            _take_weights(head, other, config.init_from)
    return model, stats


def build_fine_tuned(
    config: TrainConfig, data: Mapping[str, Data], say: Callable[[str], None]
) -> tuple[Trainable, list[Statistics], dict[str, Any]]:
    """The model that a fine-tuning run starts from, statistics of its data, and the record for the model file."""
    model, record = start(config, {name: of_task.train for name, of_task in data.items()}, say)
    return model, _resolved(config, [system for of_task in data.values() for system in of_task.train])[1], record


def _resolved(config: TrainConfig, systems: Sequence[System]) -> tuple[ModelConfig, list[Statistics]]:
    """The model's configuration with what is `auto` in it taken from the data, and the statistics of environments."""
    model_config, sels, stats = config.model, list[Sel](), list[Statistics]()
    for environment in model_config.descriptor.environments:
        args = (systems, model_config.type_map, environment.rcut, environment.rcut_smth)
        sel = None if environment.sel == "auto" else environment.sel
        found = compute_statistics(*args, sel=sel, seed=config.seed)
        if sel is None:
            sel = _auto_sel(environment, found)
            found = found.with_sel(sel)
        sels.append(sel)
        stats.append(found)
    model_config = model_config.model_copy(update={"descriptor": model_config.descriptor.with_sel(sels)})
    if model_config.core_distances == "auto":
        distances = core_distances(systems, model_config.type_map)
        model_config = model_config.model_copy(update={"core_distances": distances})
    return model_config, stats


def _energy_biases(config: TrainConfig, data: Mapping[str, Data]) -> list[np.ndarray]:
    """The energy bias (n_types,) eV of each task; an element that a task lacks has the mean of the others' biases."""
    type_map = config.model.type_map
    bias = np.array([energy_bias(d.train, type_map, seed=config.seed) for d in data.values()])
    seen = np.array([[symbol in d.elements(type_map) for symbol in type_map] for d in data.values()])
    mean = (bias * seen).sum(0) / np.maximum(seen.sum(0), 1)
    return list(np.where(seen, bias, mean))


def _take_parameter_statistics(model: EnergyModel, config: TrainConfig, systems: Sequence[System]) -> None:
    """Means and standard deviations of the parameters of frames and atoms, over the data of all tasks."""
    fitting, seed = config.model.fitting, config.seed
    if n := fitting.numb_fparam:
        found = parameter_statistics(systems, "fparam", n, seed=seed, default=fitting.default_fparam)
        model.fitting.set_parameter_statistics("fparam", found)
    if n := fitting.numb_aparam:
        model.fitting.set_parameter_statistics("aparam", parameter_statistics(systems, "aparam", n, seed=seed))


def _standardise_local_frame(descriptor: Descriptor, config: TrainConfig, systems: Sequence[System]) -> None:
    """The statistics of a descriptor that asks for its own."""
    if not isinstance(descriptor, LocalFrame):
        return
    type_map, dtype = config.model.type_map, DTYPES[config.model.precision]
    frames = (systems[s].frame(k) for s, k in sample_frames(systems, 1000, config.seed))
    descriptor.standardise(
        Graph.from_batch(batch, batch.edge_vectors().to(dtype), len(type_map))[0]
        for batch in (Batch.from_frames([f.with_type_map(type_map)], descriptor.rcut) for f in frames)
    )


def _take_weights(model: EnergyModel, other: EnergyModel, path: str) -> None:
    """Weights and statistics of a model of the same configuration. Raises ConfigError naming what differs.

    `deepmd_conventions` may differ where that leaves the numbers as they are.
    """
    refuse_difference(other.config, model.config, path)
    model.load_state_dict(as_deepmd(other, model.config.deepmd_conventions, path).state_dict())


def _auto_sel(environment: Environment, stats: Statistics) -> Sel:
    """Room for the neighbours seen and a tenth more; at least 4 (elements that do not occur)."""
    if environment.sel_by_type:
        return [max(4, n) for n in auto_sel(stats)]
    return max(4, auto_sel_total(stats))


def build_tasks(config: TrainConfig, data: Mapping[str, Data], model: Trainable) -> list[Task]:
    """What is drawn from to train the heads of a model, and to judge them."""
    sets, tasks = config.sets, list[Task]()
    for name, head in heads_of(model).items():
        of_task, loss, weight = sets[name], config.loss, 1.0
        if isinstance(of_task, TaskConfig):
            loss, weight = of_task.loss or loss, of_task.weight
        validation, n_frames = data[name].validation, config.validation.frames
        validator = Validator(validation, n_frames, loss, _VALIDATION_CACHE_BYTES // len(sets)) if validation else None
        sampler = _sampler(config, of_task, data[name], len(sets))
        _refuse_empty_terms(loss, sampler)
        tasks.append(Task(name, head, sampler, validator, loss, weight))
    return tasks


def _refuse_empty_terms(loss: LossConfig, sampler: BatchSampler) -> None:
    """Raise ConfigError or DataError for a term of the loss that would be 0 on all the data."""
    weights = {name: max(getattr(loss, name).start, getattr(loss, name).limit) for name in Prefactors._fields}
    if weights["relative_energy"] and max(sampler.batch_sizes) < 2:
        raise ConfigError(
            "`loss.relative_energy` has a weight, but batches have one frame; expected several, to take differences "
            "between. Raise `batch_size`."
        )
    if weights["prefactored_forces"] and not any(s.has("atom_pref") for s in sampler.systems):
        raise DataError(
            "`loss.prefactored_forces` has a weight, but the data carry no `atom_pref`; expected a number for each "
            "atom (atom_pref.npy, or a column of extxyz). Add them, or drop the term."
        )


def _sampler(config: TrainConfig, of_task: DataConfig, data: Data, n_tasks: int) -> BatchSampler:
    """The sampler of the training data; weights of entries are shared by size among their systems."""
    type_map, rcut = config.model.type_map, config.model.descriptor.rcut
    probabilities: str | list[float] = of_task.probabilities
    if of_task.weighted:
        sizes = batch_sizes(data.train, of_task.batch_size)
        n_batches = np.array([len(s) / b for s, b in zip(data.train, sizes, strict=True)])
        entry_of = np.array(data.entries)
        total = np.bincount(entry_of, n_batches)
        weight = np.array([e.weight if isinstance(e, WeightedPath) else 1.0 for e in of_task.train])
        probabilities = list(weight[entry_of] * n_batches / total[entry_of])
    cache_bytes = _CACHE_BYTES // n_tasks
    return BatchSampler(data.train, type_map, of_task.batch_size, probabilities, config.seed, rcut, cache_bytes)
