"""`Potential`: what an `EnergyModel` and a `Student` share: forces and virial from the energy of the edges.

    E = sum_i E_i          F_k = -dE/dr_k          W = -dE/d(strain)

With g_ij = dE/d(edge_vec_ij), edge_vec = r_j - r_i + S.cell:
    F_i = sum_j g_ij - sum_j g_ji,            W_ab = -sum_ij (g_ij)_a (edge_vec_ij)_b.
Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 1-4 and II.A.3.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from dpsim.data.frame import Batch, Prediction
from dpsim.models.core_repulsion import core_repulsion
from dpsim.models.graph import Graph

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Potential(nn.Module):
    """A subclass sets the attributes below and implements `atomic_energies`.

    type_map: element of each type; rcut: A, the largest distance it reads; dtype: of its arithmetic;
    metadata: what its file says of it ({} for one built in memory);
    numb_fparam, numb_aparam: how many parameters of frames and atoms it takes.
    """

    type_map: tuple[str, ...]
    rcut: float
    dtype: torch.dtype
    metadata: dict[str, Any]
    energy_bias: Tensor
    second_order = False
    numb_fparam = 0
    numb_aparam = 0

    def atomic_energies(self, batch: Batch, edge_vec: Tensor) -> Tensor:
        """E_i (n_atoms,) eV, float64, of the atoms of a batch with the given edge vectors (`dtype`)."""
        raise NotImplementedError

    def set_second_order(self, on: bool = True) -> Self:
        """Plain autograd everywhere (slower), so that forces can be differentiated again in the positions."""
        self.second_order = on
        return self

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
                batch, edge_vec.requires_grad_(derivatives), forces, virial, atom_virial, self.second_order
            )
        if not self.second_order:
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


def with_core(energy: Tensor, graph: Graph, distances: list[list[float]]) -> Tensor:
    """E_i with the repulsion inside the core distances of each pair of types, (n_types, n_types) A."""
    r0 = graph.edge_vec.new_tensor(distances)[graph.types[graph.center], graph.neighbor_types]
    return energy + core_repulsion(graph.edge_vec, graph.center, r0, graph.n_atoms)


def in_batch_order(energy: Tensor, graph: Graph, order: Tensor, without_energy: list[int]) -> Tensor:
    """E_i as the batch counts its atoms, zero for the types `without_energy`."""
    for t in without_energy:
        energy = energy.masked_fill(graph.types == t, 0.0)
    return torch.empty_like(energy).index_copy(0, order, energy)


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
