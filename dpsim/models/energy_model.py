"""The energy model: an atomic energy from a descriptor by a fitting net.

    E_i = fit_{t_i}(D_i) + bias[t_i]

With a pair table, (1 - w_i) fit + w_i E_i^pair + bias instead (`dpsim/models/pair_table.py`).
Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 1-4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from dpsim.data.frame import Batch
from dpsim.models.config import ModelConfig
from dpsim.models.descriptor_config import (
    Dpa1Config,
    Dpa2Config,
    Dpa3Config,
    HybridConfig,
    SeE2aConfig,
    SeE2rConfig,
    SeE3Config,
    SeE3TebdConfig,
    SingleConfig,
)
from dpsim.models.descriptors.base import Descriptor
from dpsim.models.descriptors.dpa1 import Dpa1
from dpsim.models.descriptors.dpa2 import Dpa2
from dpsim.models.descriptors.dpa3 import Dpa3
from dpsim.models.descriptors.hybrid import Hybrid
from dpsim.models.descriptors.local_frame import LocalFrame
from dpsim.models.descriptors.se_e2_a import SeE2a
from dpsim.models.descriptors.se_e2_r import SeE2r
from dpsim.models.descriptors.three_body import SeE3, SeE3Tebd
from dpsim.models.fitting import EnergyFitting
from dpsim.models.graph import Graph
from dpsim.models.local_frame_config import LocalFrameConfig
from dpsim.models.pair_table import Interpolation
from dpsim.models.potential import DTYPES, Potential, in_batch_order, with_core

if TYPE_CHECKING:
    from dpsim.data.statistics import Statistics


def build_descriptor(config: ModelConfig, generator: torch.Generator, dtype: torch.dtype) -> Descriptor:
    """The descriptor that a model's config names."""
    args = (config.type_map, config.deepmd_conventions, generator, dtype)

    def build(descriptor: SingleConfig) -> Descriptor:
        match descriptor:
            case SeE2aConfig():
                return SeE2a(descriptor, *args)
            case SeE2rConfig():
                return SeE2r(descriptor, *args)
            case SeE3Config():
                return SeE3(descriptor, *args)
            case SeE3TebdConfig():
                return SeE3Tebd(descriptor, *args)
            case Dpa1Config():
                return Dpa1(descriptor, *args)
            case Dpa2Config():
                return Dpa2(descriptor, *args)

    if isinstance(config.descriptor, HybridConfig):
        return Hybrid([build(member) for member in config.descriptor.list])
    if isinstance(config.descriptor, LocalFrameConfig):
        return LocalFrame(config.descriptor, *args)
    if isinstance(config.descriptor, Dpa3Config):
        return Dpa3(config.descriptor, *args)
    return build(config.descriptor)


class EnergyModel(Potential):
    """A Deep Potential. `metadata` is what its file says of it ({} for a model built in memory)."""

    def __init__(self, config: ModelConfig, seed: int | None = None):
        super().__init__()
        self.config = config
        self.type_map = tuple(config.type_map)
        self.dtype = DTYPES[config.precision]
        self.metadata = {}
        generator = torch.Generator().manual_seed(0 if seed is None else seed)
        self.descriptor = build_descriptor(config, generator, self.dtype)
        self.rcut = self.descriptor.rcut
        self.numb_fparam, self.numb_aparam = config.fitting.numb_fparam, config.fitting.numb_aparam
        type_wise = config.fitting.type_wise
        if type_wise is None:
            type_wise = not config.descriptor.embeds_types
        self.fitting = EnergyFitting(
            self.descriptor.dim_out, len(self.type_map), config.fitting, type_wise, generator, self.dtype
        )
        self.register_buffer("energy_bias", torch.zeros(len(self.type_map), dtype=torch.float64))
        self.pair_table: Interpolation | None = None
        if config.pair_table is not None:
            self.pair_table = Interpolation(config.pair_table, config.type_map, self.rcut)
            self.config = config.model_copy(update={"pair_table": self.pair_table.config})  # with the table's grid
            self.rcut = max(self.rcut, self.pair_table.rcut)

    def set_statistics(self, *stats: Statistics) -> None:
        """Take the energy bias (eV) and the standard deviations of the environment matrix from the data.

        Args: stats: of each of the descriptor's environments.
        """
        self.energy_bias.copy_(torch.as_tensor(np.asarray(stats[0].energy_bias)))
        self.descriptor.set_statistics(stats)

    def set_second_order(self, on: bool = True) -> Self:
        self.descriptor.set_second_order(on)
        return super().set_second_order(on)

    def atomic_energies(self, batch: Batch, edge_vec: Tensor) -> Tensor:
        graph, order = Graph.from_batch(batch, edge_vec, len(self.type_map))
        graph = graph.within(self.rcut).without_pairs(self.config.pair_exclude_types)
        near = graph if self.rcut == self.descriptor.rcut else graph.within(self.descriptor.rcut)
        parameters = self.fitting.parameters_of(batch, order)
        energy = self.fitting(self.descriptor(near), graph.blocks, parameters).to(torch.float64)
        if self.pair_table is not None:
            energy = self.pair_table.interpolate(energy, graph, self.config.deepmd_conventions)
        energy = energy + self.energy_bias[graph.types]
        if isinstance(self.config.core_distances, list):
            energy = with_core(energy, graph, self.config.core_distances)
        return in_batch_order(energy, graph, order, self.config.atom_exclude_types)
