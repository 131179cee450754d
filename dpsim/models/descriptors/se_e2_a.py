"""DeepPot-SE with two-body embeddings, full information (`se_e2_a`).

    R_ij = (s, s x/r, s y/r, s z/r),  s = w(r)/r          environment matrix; w is the switch
    R~_ij = (R_ij - davg[t_i]) / dstd[t_i]                 standardised
    G_ij = N_{t_i t_j}(R~_ij,0)                            embedding net of one number
    A_i  = 1/N_c sum_j R~_ij (x) G_ij                      (4, M), N_c = sum(sel)
    D_i  = A_i^T A_i[:, :M']                               (M, M'), flattened

Symbols: M = neuron[-1], M' = axis_neuron, t types. With `type_one_side` the net depends on t_j only.
Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 9-12; Zhang et al., NeurIPS 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpsim.models.deepmd_conventions import empty_slots, truncate_neighbors
from dpsim.models.descriptor_config import SeE2aConfig
from dpsim.models.descriptors.base import PairDescriptor, square
from dpsim.models.graph import Graph


class SeE2a(PairDescriptor):
    """See the module's docstring for the equations."""

    def __init__(
        self, config: SeE2aConfig, type_map: list[str], deepmd: bool, generator: torch.Generator, dtype: torch.dtype
    ):
        super().__init__(config, type_map, deepmd, generator, dtype)
        self.axis_neuron = config.axis_neuron
        self.dim_out = config.neuron[-1] * config.axis_neuron

    def forward(self, graph: Graph) -> Tensor:
        """D (n_atoms, dim_out) of the atoms of a graph."""
        if self.deepmd:
            graph = truncate_neighbors(graph, self.sel, self.n_listed)
        graph, segments = graph.sorted_by_pair()
        env, _ = self.environment(graph)
        if self.exclude_types:
            env = env.masked_fill(graph.pair_mask(self.exclude_types)[:, None], 0.0)
        n_empty = empty_slots(graph, self.sel) if self.deepmd else None
        descriptors = []
        for ti, start, stop in graph.blocks:
            a = env.new_zeros(stop - start, 4, self.neuron)
            for segment in segments:
                if segment.center_type == ti:
                    rows, tj = env[segment.edges], segment.neighbor_type
                    a = a + self.radial_contract(rows, rows[:, 0], segment.offsets, self.net(ti, tj).tensors())
                    if n_empty is not None:
                        a = a + self.padding_term(ti, tj, n_empty[start:stop, tj])
            descriptors.append(square(a / sum(self.sel), self.axis_neuron))
        return torch.cat(descriptors)

    def padding_term(self, ti: int, tj: int, n_empty: Tensor) -> Tensor:
        """DeePMD-kit only: an empty slot holds R = 0 before standardisation, so it adds R~_0 (x) G(R~_0,0)."""
        row = -self.davg[ti] / self.dstd[ti]
        g = self.net(ti, tj)(row[:1, None])[0]
        return n_empty[:, None, None] * torch.outer(row, g)
