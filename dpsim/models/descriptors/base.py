"""What every descriptor shares: cutoffs, standardisation, and the symmetric square D = A^T A[:, :M']."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dpsim.errors import ConfigError
from dpsim.kernels.environment import environment
from dpsim.kernels.radial import DenseLayer, radial_contract, radial_contract_reference
from dpsim.models.config import Dpa1Config, SeE2aConfig
from dpsim.models.graph import Graph


class Descriptor(nn.Module):
    """Maps a graph to one vector per atom, invariant under translation, rotation and permutation.

    A subclass sets `dim_out` and implements `forward(graph) -> (n_atoms, dim_out)`. `rcut` is the largest distance it
    reads; a descriptor with several cutoffs takes `graph.within(smaller)`. Per-edge and per-angle state of
    message-passing descriptors lives inside forward: the graph carries positions and types only.
    """

    dim_out: int
    davg: Tensor
    dstd: Tensor

    def __init__(self, config: SeE2aConfig | Dpa1Config, n_types: int, deepmd: bool, dtype: torch.dtype):
        super().__init__()
        self.rcut, self.rcut_smth, self.protection = config.rcut, config.rcut_smth, config.env_protection
        self.n_types, self.neuron, self.axis_neuron = n_types, config.neuron[-1], config.axis_neuron
        sel = config.sel
        if sel == "auto":
            raise ConfigError(
                "`sel` is 'auto'; expected numbers. Training counts the neighbours in its data; give numbers here."
            )
        self.sel: list[int] = list(sel) if isinstance(sel, list) else [sel]
        self.exclude_types = config.exclude_types
        self.deepmd = deepmd
        self.second_order = False  # True: plain autograd everywhere, so that Hessians are right
        self.register_buffer("davg", torch.zeros(n_types, 4, dtype=dtype))
        self.register_buffer("dstd", torch.ones(n_types, 4, dtype=dtype))

    def forward(self, graph: Graph) -> Tensor:
        raise NotImplementedError

    def environment(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Standardised environment rows R~ = (R - davg[t_i]) / dstd[t_i], (n_edges, 4), and the switch w."""
        env, switch = environment(
            graph.edge_vec, self.rcut, self.rcut_smth, self.protection, second_order=self.second_order
        )
        center_type = graph.types[graph.center]
        return (env - self.davg[center_type]) / self.dstd[center_type], switch

    def radial_contract(self, env: Tensor, s: Tensor, offsets: Tensor, layers: Sequence[DenseLayer]) -> Tensor:
        """A_i = sum_j env_ij (x) G(s_ij), (n_centers, c, M): see `dpsim.kernels.radial`."""
        if self.second_order:
            return radial_contract_reference(env, s, offsets, layers)
        return radial_contract(env, s, offsets, layers)

    def square(self, a: Tensor) -> Tensor:
        """D = A^T A[:, :M'], flattened. Args: a (n, 4, M). Returns (n, M * M')."""
        return (a.transpose(1, 2) @ a[:, :, : self.axis_neuron]).flatten(1)
