"""Three-body embeddings: functions of the angles between the neighbours of an atom (`se_e3`, `se_e3_tebd`).

    h_ij = w(r) (x, y, z)/r^2 / dstd[t_i]                  the last three columns of R~ of se_e2_a
    E_jk = h_ij . h_ik                                     cosine of the angle j-i-k, weighted by both distances
    se_e3:       D_i = sum_{a <= b} 1/(sel_a sel_b) sum_{j of a, k of b} E_jk N_ab(E_jk),   (M,)
    se_e3_tebd:  G_jk = N([E_jk, T_tj, T_tk])                        concat
                 G_jk = N(E_jk) (1 + w_j w_k N_strip([T_tj, T_tk]))  strip (without w_j w_k where not smooth)
                 D_i = [1/sel^2 sum_{j,k} E_jk G_jk, T_ti]           also the three-body part of DPA-2's repinit

Sums run over ordered pairs, j = k included. For j, k of one type a pair is evaluated once and counted twice.
Symbols: a, b, t types, T type embedding, N nets of one number, w the switch, M = neuron[-1].
Source: Wang et al., Nucl. Fusion 62, 126013 (2022), in the form of DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023),
Eqs. 13-16, where E is called a cosine: products of standardised rows, and types in order only, as DeePMD-kit 3.2.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from dpsim.models.descriptor_config import SeE3Config, SeE3TebdConfig
from dpsim.models.descriptors.base import EnvironmentDescriptor, embedding_net
from dpsim.models.graph import Graph, starts
from dpsim.models.nets import MLP
from dpsim.models.type_embedding import TypeEmbedding


class Angles(NamedTuple):
    """Pairs of neighbours j of type a and k of type b, a <= b: those of atom i are offsets[i] .. offsets[i + 1].

    e (n_pairs,): E_jk; ww (n_pairs,): w_j w_k; times (n_pairs,): how often the pair counts among the ordered ones of
    its types, 2 for j != k of one type, else 1.
    """

    a: int
    b: int
    offsets: Tensor
    e: Tensor
    ww: Tensor
    times: Tensor


class ThreeBody(EnvironmentDescriptor):
    """What three-body descriptors share: the angles of a graph, by the types of the two neighbours."""

    def angles(self, graph: Graph) -> Iterator[Angles]:
        """The angles of each pair of types a <= b."""
        graph, slots = self.visible(graph).in_slots()
        env, switch = self.environment(graph)
        h, w = slots.fill(env[:, 1:]), slots.fill(switch[:, None])
        e, ww = ((x @ x.transpose(1, 2)).flatten() for x in (h, w))  # of all slots, a matrix for each atom
        counts = graph.neighbor_counts()
        end = torch.cumsum(counts, 1)  # of the slots of a type
        for a in range(self.n_types):
            edges = (graph.neighbor_types == a).nonzero()[:, 0]
            center = graph.center[edges]
            for b in range(a, self.n_types):
                first = slots.slot[edges] if a == b else (end - counts)[center, b]  # slots k that j pairs with
                partners = end[center, b] - first
                begin = starts(partners)
                at = (slots.place[edges] * slots.width + first - begin[:-1]).repeat_interleave(partners)
                at = at + torch.arange(len(at), device=at.device)
                times = e.new_full((len(at),), 2.0 if a == b else 1.0)
                if a == b:
                    times[begin[:-1]] = 1.0  # j = k
                offsets = starts(torch.zeros_like(slots.count).index_add(0, center, partners))
                yield Angles(a, b, offsets, e[at], ww[at], times)


class SeE3(ThreeBody):
    """`se_e3`: a net for each pair of types; see the module's docstring."""

    def __init__(
        self, config: SeE3Config, type_map: list[str], deepmd: bool, generator: torch.Generator, dtype: torch.dtype
    ):
        super().__init__(
            *(config, len(type_map), deepmd, dtype),
            exclude_types=config.exclude_types,
            protection=config.env_protection,
        )
        self.dim_out = config.neuron[-1]
        self.nets = nn.ModuleList(
            embedding_net(config, 1, generator, dtype) for _ in range(self.n_types * (self.n_types + 1) // 2)
        )

    def net(self, a: int, b: int) -> MLP:
        """The embedding net N_ab of a pair of types a <= b."""
        return cast(MLP, self.nets[b * (b + 1) // 2 + a])

    def forward(self, graph: Graph) -> Tensor:
        """D (n_atoms, dim_out) of the atoms of a graph."""
        d = graph.edge_vec.new_zeros(graph.n_atoms, self.dim_out)
        for a, b, offsets, e, _, times in self.angles(graph):
            layers = self.net(a, b).tensors()
            contracted = self.radial_contract((times * e)[:, None], e, offsets, layers)[:, 0]
            d = d + contracted / (self.sel[a] * self.sel[b])
        return d


class SeE3Tebd(ThreeBody):
    """`se_e3_tebd`: one net for all types; see the module's docstring.

    `types`: the type embedding T to use, from elsewhere (DPA-2) or its own.
    """

    def __init__(
        self,
        config: SeE3TebdConfig,
        type_map: list[str],
        deepmd: bool,
        generator: torch.Generator,
        dtype: torch.dtype,
        *,
        own_types: bool = True,
    ):
        super().__init__(
            *(config, len(type_map), deepmd, dtype),
            exclude_types=config.exclude_types,
            protection=config.env_protection,
        )
        self.smooth, self.concat_tebd, dim = config.smooth, config.concat_output_tebd, config.tebd_dim
        self.type_embedding = None
        if own_types:
            self.type_embedding = TypeEmbedding(
                *(type_map, dim),
                econf=config.use_econf_tebd,
                bias=config.use_tebd_bias,
                generator=generator,
                dtype=dtype,
            )

        def net(n_in: int) -> MLP:
            return embedding_net(config, n_in, generator, dtype)

        strip = config.tebd_input_mode == "strip"
        self.net = net(1 if strip else 1 + 2 * dim)
        self.strip_net = net(2 * dim) if strip else None
        self.dim_out = config.neuron[-1] + (dim if self.concat_tebd else 0)

    def forward(self, graph: Graph, types: Tensor | None = None) -> Tensor:
        """D (n_atoms, dim_out) of the atoms of a graph. Args: types (n_types, tebd_dim): T, where it has none."""
        if self.type_embedding is not None:
            types = self.type_embedding()
        assert types is not None  # one or the other
        d = graph.edge_vec.new_zeros(())
        for angles in self.angles(graph):
            d = d + self.contract(angles, types)
        d = d / self.sel[0] ** 2
        return torch.cat([d, types[graph.types]], 1) if self.concat_tebd else d

    def contract(self, angles: Angles, types: Tensor) -> Tensor:
        """sum_jk E_jk G_jk (n_atoms, M) over the ordered pairs of neighbours of two types."""
        a, b, offsets, e, ww, times = angles
        pairs = [torch.cat([types[a], types[b]])] + ([torch.cat([types[b], types[a]])] if a != b else [])
        env = (times * e)[:, None]
        if self.strip_net is None:
            nets = (self.net.of_one_number(pair) for pair in pairs)
            return torch.stack([self.radial_contract(env, e, offsets, net)[:, 0] for net in nets]).sum(0)
        gate, layers = self.strip_net(torch.stack(pairs)).sum(0), self.net.tensors()
        if not self.smooth:
            return self.radial_contract(env, e, offsets, layers)[:, 0] * (len(pairs) + gate)
        both = torch.cat([env, env * ww[:, None]], 1)
        plain, gated = self.radial_contract(both, e, offsets, layers).unbind(1)
        return plain * len(pairs) + gated * gate
