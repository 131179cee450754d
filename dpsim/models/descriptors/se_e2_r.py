"""DeepPot-SE with two-body embeddings, radial information (`se_e2_r`).

    s~_ij = (s(r_ij) - davg[t_i]) / dstd[t_i]              as in se_e2_a, s = w(r)/r
    s~_i  = -davg[t_i] / dstd[t_i]                         of an empty slot: s = 0
    D_i   = 1/(5 N_c) sum_j [N_{t_i t_j}(s~_ij) - N_{t_i t_j}(s~_i)],   (M,), N_c = sum(sel)

A neighbour at the cutoff is an empty slot, s = 0, so it must count as one or energies would jump there. DeePMD-kit
lets all N_c slots count, whatever the number n_t of neighbours of type t: its D_i is

    1/(5 N_c) sum_t [sum_{j of t} N(s~_ij) + (sel_t - n_t) N(s~_i)]  =  D_i + 1/(5 N_c) sum_t sel_t N_{t_i t}(s~_i)

the same function but for a constant of the centre's type, which the first bias of the fitting net can hold. Native
models leave the constant out: an isolated atom has D = 0 and the sum has no limit; imported ones keep it.

Symbols: M = neuron[-1], t types. With `type_one_side` the net depends on t_j only. Pairs in `exclude_types` have
s~ = 0, which in native models (davg = 0) contributes nothing.
Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 9-12, radial-only; the factor 1/5 as in
DeePMD-kit 3.2.0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpsim.models.deepmd_conventions import empty_slots, truncate_neighbors
from dpsim.models.descriptor_config import SeE2rConfig
from dpsim.models.descriptors.base import PairDescriptor
from dpsim.models.graph import Graph


class SeE2r(PairDescriptor):
    """See the module's docstring for the equations. Of davg and dstd only the first column, that of s, is read."""

    def __init__(
        self, config: SeE2rConfig, type_map: list[str], deepmd: bool, generator: torch.Generator, dtype: torch.dtype
    ):
        super().__init__(config, type_map, deepmd, generator, dtype)
        self.dim_out = config.neuron[-1]

    def forward(self, graph: Graph) -> Tensor:
        """D (n_atoms, dim_out) of the atoms of a graph."""
        if self.deepmd:
            graph = truncate_neighbors(graph, self.sel, self.n_listed)
        graph, segments = graph.sorted_by_pair()
        s = self.environment(graph)[0][:, 0]
        if self.exclude_types:
            s = s.masked_fill(graph.pair_mask(self.exclude_types), 0.0)
        one = torch.ones_like(s)[:, None]
        # How often N(s~_i) counts: in the empty slots, and natively minus once for each neighbour.
        n_empty = empty_slots(graph, self.sel if self.deepmd else [0] * self.n_types)
        descriptors = []
        for ti, start, stop in graph.blocks:
            a = s.new_zeros(stop - start, self.neuron)
            s_empty = -self.davg[ti, :1] / self.dstd[ti, :1]
            for _, tj, edges, offsets in [segment for segment in segments if segment.center_type == ti]:
                net = self.net(ti, tj)
                a = a + self.radial_contract(one[edges], s[edges], offsets, net.tensors())[:, 0]
                a = a + n_empty[start:stop, tj, None] * net(s_empty)
            descriptors.append(a / (5 * sum(self.sel)))
        return torch.cat(descriptors)
