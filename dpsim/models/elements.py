"""A model with other elements: fewer, in another order, or more.

Of the elements that stay every number stays the same. New ones get random weights, and the mean of the others' scales
and biases: a start for training, no more. Only descriptors that embed the elements take new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from dpsim.errors import UnsupportedModelError
from dpsim.models.config import ModelConfig
from dpsim.models.descriptor_config import Environment, SeE3Config
from dpsim.models.descriptors.base import EnvironmentDescriptor, PairDescriptor
from dpsim.models.descriptors.three_body import SeE3
from dpsim.models.energy_model import EnergyModel
from dpsim.models.fitting import EnergyFitting
from dpsim.models.local_frame_config import LocalFrameConfig
from dpsim.models.nets import Layer
from dpsim.models.type_embedding import TypeEmbedding

Old = dict[int, int]  # new index of an element -> its index before


@torch.no_grad()
def with_elements(model: EnergyModel, type_map: Sequence[str], seed: int = 0) -> EnergyModel:
    """The model for the elements of `type_map`, in that order. `metadata` stays.

    Args: seed: of the weights of new elements.
    Raises: UnsupportedModelError for models whose parts cannot be told apart by element, naming what stands in the way.
    """
    if tuple(type_map) == model.type_map:
        return model
    old = {t: model.type_map.index(s) for t, s in enumerate(type_map) if s in model.type_map}
    new = EnergyModel(_config(model.config, list(type_map), old), seed=seed)
    by_element = {"energy_bias": _rows(model.energy_bias, new.energy_bias, old)}
    own_nets = []
    twins = dict(model.named_modules())
    for path, module in new.named_modules():
        twin = twins.get(path)
        if isinstance(module, EnvironmentDescriptor) and isinstance(twin, EnvironmentDescriptor):
            by_element[f"{path}.davg"] = _rows(twin.davg, module.davg, old)
            by_element[f"{path}.dstd"] = _rows(twin.dstd, module.dstd, old)
        if isinstance(module, TypeEmbedding) and isinstance(twin, TypeEmbedding) and not module.econf:
            by_element[f"{path}.0.weight"] = _one_hot_weight(twin, module, old)
        if isinstance(twin, PairDescriptor | SeE3 | EnergyFitting) and (twin_nets := _nets(twin, old)) is not None:
            own_nets.append(f"{path}.nets.")
            for net, was in twin_nets.items():
                found = twin.nets[was].state_dict(prefix=f"{path}.nets.{net}.")
                by_element.update(found)
    before = model.state_dict()
    new.load_state_dict(
        {
            name: by_element.get(name, fresh if name.startswith(tuple(own_nets)) else before.get(name, fresh))
            for name, fresh in new.state_dict().items()
        }
    )
    new.metadata = model.metadata
    return new.to(model.energy_bias.device)


def _config(config: ModelConfig, type_map: list[str], old: Old) -> ModelConfig:
    """The config for the new elements. Raises UnsupportedModelError."""
    more = len(type_map) > len(old)
    obstacle = ""
    if isinstance(config.descriptor, LocalFrameConfig):
        obstacle = "a loc_frame descriptor"
    elif config.deepmd_conventions:
        obstacle = "`deepmd_conventions`, which cut neighbours by type"
    elif config.pair_table is not None:
        obstacle = "a pair table"
    elif config.atom_exclude_types or config.pair_exclude_types or config.descriptor.exclude_types:
        obstacle = "excluded types"
    elif more and not all(_embeds(e) for e in _members(config)):
        obstacle = "nets of its own for each pair of elements"
    if obstacle:
        raise UnsupportedModelError(
            f"the model knows {', '.join(config.type_map)} and has {obstacle}; expected the same elements. "
            "Keep its type_map" + (", or pre-train with these elements." if more else ".")
        )
    core = config.core_distances
    if isinstance(core, list):
        kept = range(len(type_map))
        core = [[core[old[a]][old[b]] if a in old and b in old else 0.0 for b in kept] for a in kept]
    sels = [_sel(e, old) for e in config.descriptor.environments]
    update = {"type_map": type_map, "core_distances": core, "descriptor": config.descriptor.with_sel(sels)}
    return config.model_copy(update=update)


def _members(config: ModelConfig) -> list[object]:
    return list(getattr(config.descriptor, "list", [config.descriptor]))


def _embeds(descriptor: object) -> bool:
    return bool(getattr(descriptor, "embeds_types", False))


def _sel(where: Environment, old: Old) -> Any:
    """`sel` of the elements that stay. A sum that normalises stays: the first one takes the room of those that go."""
    if not where.sel_by_type:
        return where.sel
    kept = [where.sel[old[t]] for t in sorted(old)]
    room = 0 if isinstance(where, SeE3Config) else sum(where.sel) - sum(kept)
    return [kept[0] + room, *kept[1:]]


def _rows(before: Tensor, new: Tensor, old: Old) -> Tensor:
    """Rows of the elements that stay; the mean of all old ones for the others."""
    rows = before.mean(0).expand_as(new).clone()
    for t, was in old.items():
        rows[t] = before[was]
    return rows


def _one_hot_weight(before: TypeEmbedding, new: TypeEmbedding, old: Old) -> Tensor:
    """W with which the elements that stay keep their vectors: whether the layer is residual depends on their number."""
    layers = [cast(Layer, embedding[0]) for embedding in (before, new)]
    vectors, ours = (x() - (0 if y.bias is None else y.bias) for x, y in zip((before, new), layers, strict=True))
    weight: Tensor = layers[1].weight.clone()
    for t, was in old.items():
        weight[t] += vectors[was] - ours[t]
    return weight


def _nets(module: PairDescriptor | SeE3 | EnergyFitting, old: Old) -> dict[int, int] | None:
    """New index -> index before of the nets that stay; None of a module whose nets serve all elements."""
    pairs = [(a, b) for a in old for b in old]
    match module:
        case PairDescriptor() if not module.one_side:
            n = len(old)  # such a descriptor takes no new elements
            return {a * n + b: old[a] * module.n_types + old[b] for a, b in pairs}
        case SeE3():
            return {_of_pair(a, b): _of_pair(old[a], old[b]) for a, b in pairs}
        case EnergyFitting() if not module.type_wise:
            return None
    return dict(old)


def _of_pair(a: int, b: int) -> int:
    """The index of the net of an unordered pair in `SeE3`."""
    a, b = min(a, b), max(a, b)
    return b * (b + 1) // 2 + a
