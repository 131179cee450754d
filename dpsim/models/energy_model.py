"""The energy model: E = sum_i E_i(descriptor of atom i), its forces and its virial.

    E_i = fit_{t_i}(D_i) + bias[t_i]          F_k = -dE/dr_k          W = -dE/d(strain)

With g_ij = dE/d(edge_vec_ij), edge_vec = r_j - r_i + S.cell:
    F_i = sum_j g_ij - sum_j g_ji,            W_ab = -sum_ij (g_ij)_a (edge_vec_ij)_b.
Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 1-4 and II.A.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dpsim.data.frame import Batch, Prediction
from dpsim.models.config import Dpa1Config, ModelConfig, SeE2aConfig
from dpsim.models.core_repulsion import core_repulsion
from dpsim.models.descriptors.base import Descriptor
from dpsim.models.descriptors.dpa1 import Dpa1
from dpsim.models.descriptors.se_e2_a import SeE2a
from dpsim.models.fitting import EnergyFitting
from dpsim.models.graph import Graph

if TYPE_CHECKING:
    from dpsim.data.statistics import Statistics

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def build_descriptor(config: ModelConfig, generator: torch.Generator, dtype: torch.dtype) -> Descriptor:
    """The descriptor that a model's config names."""
    args = (config.type_map, config.deepmd_conventions, generator, dtype)
    match config.descriptor:
        case SeE2aConfig() as descriptor:
            return SeE2a(descriptor, *args)
        case Dpa1Config() as descriptor:
            return Dpa1(descriptor, *args)


class EnergyModel(nn.Module):
    """A Deep Potential. `metadata` is what its file says of it ({} for a model built in memory)."""

    energy_bias: Tensor

    def __init__(self, config: ModelConfig, seed: int | None = None):
        super().__init__()
        self.config = config
        self.type_map = tuple(config.type_map)
        self.dtype = DTYPES[config.precision]
        self.metadata: dict[str, Any] = {}
        generator = torch.Generator().manual_seed(0 if seed is None else seed)
        self.descriptor = build_descriptor(config, generator, self.dtype)
        self.rcut = self.descriptor.rcut
        type_wise = config.fitting.type_wise
        if type_wise is None:
            type_wise = isinstance(config.descriptor, SeE2aConfig)
        self.fitting = EnergyFitting(
            self.descriptor.dim_out, len(self.type_map), config.fitting, type_wise, generator, self.dtype
        )
        self.register_buffer("energy_bias", torch.zeros(len(self.type_map), dtype=torch.float64))

    def set_statistics(self, stats: Statistics) -> None:
        """Take the energy bias (eV) and the standard deviations of the environment matrix from the data.

        Native models keep davg = 0, so that an absent neighbour and one at the cutoff are the same.
        """
        self.energy_bias.copy_(torch.as_tensor(np.asarray(stats.energy_bias)))
        self.descriptor.dstd.copy_(torch.as_tensor(np.asarray(stats.dstd)))

    def set_second_order(self, on: bool = True) -> EnergyModel:
        """Plain autograd everywhere (slower), so that forces can be differentiated again in the positions."""
        self.descriptor.second_order = on
        return self

    def atomic_energies(self, batch: Batch, edge_vec: Tensor) -> Tensor:
        """E_i (n_atoms,) eV, float64, of the atoms of a batch with the given edge vectors (model's precision)."""
        graph, order = Graph.from_batch(batch, edge_vec, len(self.type_map))
        graph = graph.within(self.rcut).without_pairs(self.config.pair_exclude_types)
        energy = self.fitting(self.descriptor(graph), graph.blocks).to(torch.float64)
        energy = energy + self.energy_bias[graph.types]
        if isinstance(self.config.core_distances, list):
            table = graph.edge_vec.new_tensor(self.config.core_distances)
            r0 = table[graph.types[graph.center], graph.neighbor_types]
            energy = energy + core_repulsion(graph.edge_vec, graph.center, r0, graph.n_atoms)
        for t in self.config.atom_exclude_types:
            energy = energy.masked_fill(graph.types == t, 0.0)
        return torch.empty_like(energy).index_copy(0, order, energy)

    def forward(
        self,
        batch: Batch,
        *,
        forces: bool = True,
        virial: bool = True,
        atom_virial: bool = False,
        create_graph: bool = False,
    ) -> Prediction:
        """Energy, and by one differentiation in the edges, forces and virials of a batch.

        `create_graph` is for training: `torch.autograd.backward(loss, inputs=parameters)` then gives exact parameter
        gradients of a loss on energies, forces and virials. Otherwise the parameters take no part in any graph.
        """
        derivatives = forces or virial or atom_virial
        edge_vec = batch.edge_vectors().to(self.dtype)
        if create_graph:
            return self._predict(batch, edge_vec.requires_grad_(derivatives), forces, virial, atom_virial, True)
        with frozen(self), torch.set_grad_enabled(derivatives):
            prediction = self._predict(
                batch, edge_vec.requires_grad_(derivatives), forces, virial, atom_virial, self.descriptor.second_order
            )
        if not self.descriptor.second_order:
            prediction.energy, prediction.atom_energy = prediction.energy.detach(), prediction.atom_energy.detach()
        return prediction

    def _predict(
        self, batch: Batch, edge_vec: Tensor, forces: bool, virial: bool, atom_virial: bool, create_graph: bool
    ) -> Prediction:
        atom_energy = self.atomic_energies(batch, edge_vec)
        zeros = atom_energy.new_zeros
        energy = zeros(batch.n_frames).index_add(0, batch.frame_index, atom_energy)
        prediction = Prediction(energy=energy, atom_energy=atom_energy)
        if not (forces or virial or atom_virial):
            return prediction
        (g,) = torch.autograd.grad(
            atom_energy.sum(), edge_vec, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
        g64 = g.to(torch.float64)
        if forces:
            f = zeros(batch.n_atoms, 3).index_add(0, batch.center, g64).index_add(0, batch.neighbor, -g64)
            prediction.forces = f
        if virial or atom_virial:
            w = -g64[:, :, None] * edge_vec.detach().to(torch.float64)[:, None, :]
            if atom_virial:
                prediction.atom_virial = zeros(batch.n_atoms, 3, 3).index_add(0, batch.center, w)
            if virial:
                frame = batch.frame_index[batch.center]
                prediction.virial = zeros(batch.n_frames, 3, 3).index_add(0, frame, w)
        return prediction


class frozen:
    """Within this context no parameter of a module requires a gradient."""

    def __init__(self, module: nn.Module):
        self.trainable = [p for p in module.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for p in self.trainable:
            p.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for p in self.trainable:
            p.requires_grad_(True)
