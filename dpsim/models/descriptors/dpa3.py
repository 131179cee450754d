"""DPA-3: messages on a series of line graphs: of atoms, pairs, angles and dihedrals.

Graph k has as vertices the edges of graph k - 1, and an edge wherever two of these share a vertex:
    k   vertices   edges              from alpha to beta      switch w^k                normaliser N_k
    1   atoms i    pairs ij           i       -> j            s^1_ij                    e_sel
    2   pairs      angles ijm         ij      -> im           s^2_ij s^2_im             sqrt(a_sel)
    3   angles     dihedrals ijmn     ijm     -> ijn          s^3_ij s^3_im s^3_in      sqrt(d_sel)
so the features v^k of what graph k has as edges are those of the vertices of graph k + 1; v^0 = n belongs to atoms.
Each layer, with trained steps delta, does on each graph (Eqs. 7-11)
    m_c = phi_c(v_alpha, v_beta, e)   m_s = phi_s(v_alpha, v_beta, e)      e = v^k, v = v^(k-1); at k = 2 also n_i
    u_alpha = phi_u(1/N_k sum_beta w^k m_c)                                phi_u: the identity at k = 1
    v^k     <- v^k + delta_s m_s + delta_c u^(k+1)
and on atoms (Eqs. 15-19)
    n_i     <- n_i + delta_0 phi_0(n_i) + delta_1 phi_1([symm(e_ij), symm(n_j)]) + delta_c u_i
    symm(x) = z_<^T z / 3,  z = 1/sqrt(e_sel) sum_j w_ij h_ij (x) x_j (3, dim),  h_ij = s_ij r_ij / (r_ij^2 dstd)
with z_< the first `axis_neuron` columns of z, from
    n = act(T_i)    e = W r_ij + b    a = W cos(theta)    d = W sin(theta) sin(theta') cos(eta)
Every phi is act(x W + b). D_i = n_i of the last layer; what no atom will hear of any more is not evaluated: the
features v^k of layer l only while l <= L - k.

Source: Zhang et al., arXiv 2506.01686, 4.2 and Table S-6. Where DeePMD-kit's code differs its meaning is kept: angles
read n_i and only a part of n and e (`a_compress`); the factor 1/3 and the sqrt of the normalisers; angles j = m are
among the others. DeePMD-kit has no dihedrals. They start from cos(eta) sin sin, which is smooth where three atoms come
into line, unlike cos(eta), and of two angles that differ in j = m they know no more than zero.
The polynomial switch makes energies C2. The paper's exponential one, in DeePMD-kit's form, leaves 8e-7 of the message
of an edge at the cutoff. Normalisers are numbers, never counts; native models sum over all neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from dpsim.errors import ConfigError
from dpsim.kernels.activation import activation
from dpsim.kernels.environment import environment, exponential_environment
from dpsim.kernels.line_graph import line_graph_update
from dpsim.kernels.neighbor_sum import neighbor_sum
from dpsim.models.deepmd_conventions import among_nearest, truncate_neighbors
from dpsim.models.descriptor_config import Dpa3Config
from dpsim.models.descriptors.base import EnvironmentDescriptor
from dpsim.models.graph import Graph, pairs_within, starts
from dpsim.models.nets import Layer, normal_parameter
from dpsim.models.type_embedding import TypeEmbedding

if TYPE_CHECKING:
    from dpsim.data.statistics import Statistics


class LineGraph(NamedTuple):
    """One graph of the series: the edges of vertex alpha are offsets[alpha] .. [alpha + 1].

    beta (n_edges,): the vertex an edge runs to; weight (n_edges,): w^k / N_k; vertices (n_vertices,): which edges of
    the graph before are its vertices, and center (n_vertices,), the atom each belongs to (not where they are atoms).
    """

    offsets: Tensor
    beta: Tensor
    weight: Tensor
    vertices: Tensor
    center: Tensor


class Steps(nn.Module):
    """The steps delta (n_updates, dim) of the updates of some features, and the factor on their sum."""

    values: Tensor

    def __init__(self, n: int, dim: int, config: Dpa3Config, generator: torch.Generator, dtype: torch.dtype):
        super().__init__()
        self.factor = 1 / math.sqrt(n + 1) if config.update_style == "res_avg" else 1.0
        if config.update_style == "res_residual":
            size = config.update_residual
            std, mean = (size, 0.0) if config.update_residual_init == "norm" else (0.0, size)
            self.values = normal_parameter((n, dim), std, mean, generator, dtype)
        else:
            step = 1.0 if config.update_style == "res_avg" else 1 / math.sqrt(n)
            self.register_buffer("values", torch.full((n, dim), step, dtype=dtype), persistent=False)


class Messages(nn.Module):
    """phi_c and phi_s of one graph in one layer. `blocks`: on what their rows act, and how many on each."""

    def __init__(
        self,
        blocks: dict[str, int],
        n_message: int,
        config: Dpa3Config,
        generator: torch.Generator,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.blocks, self.act = blocks, config.activation
        n_in = sum(blocks.values())
        self.passed = Layer(n_in, n_message, "none", resnet=False, generator=generator, dtype=dtype)
        self.own = Layer(n_in, blocks["edge"], "none", resnet=False, generator=generator, dtype=dtype)

    def forward(
        self, v: Tensor, n: Tensor, e: Tensor, graph: LineGraph, step: Tensor | None, second_order: bool
    ) -> tuple[Tensor, Tensor | None]:
        """u (n_vertices, n_message) before phi_u, and e + step m_s, None without a step.

        v, e: features of vertices and edges, n of atoms.
        """
        layers = [self.passed] if step is None else [self.passed, self.own]
        weight = torch.cat([layer.weight for layer in layers], 1)
        bias = torch.cat([cast(Tensor, layer.bias) for layer in layers])
        rows = dict(zip(self.blocks, weight.split([*self.blocks.values()]), strict=True))
        p, q = torch.addmm(bias, v, rows["alpha"]), v @ rows["beta"]
        if "center" in rows:
            p = p + (n @ rows["center"]).index_select(0, graph.center)
        if step is None:
            step = e.new_empty(0)
        return line_graph_update(
            *(e, rows["edge"], p, q, graph.weight, step, graph.offsets, graph.beta, self.act, self.passed.n_out),
            second_order=second_order,
        )


class UpdateLayer(nn.Module):
    """One layer: v^0, v^1, ..., features of atoms, pairs, angles, dihedrals, one layer on."""

    def __init__(self, config: Dpa3Config, generator: torch.Generator, dtype: torch.dtype):
        super().__init__()
        self.order, self.heads, self.axis_neuron = config.order, config.n_multi_edge_message, config.axis_neuron
        self.smooth, self.function = config.smooth_edge_update, activation(config.activation)
        make = (config, generator, dtype)
        n, e, a, d = config.n_dim, config.e_dim, config.a_dim, config.d_dim
        nc, ec = self.compressed = config.compressed

        def linear(n_in: int, n_out: int, bias: bool = True) -> Layer:
            return Layer(n_in, n_out, "none", bias=bias, resnet=False, generator=generator, dtype=dtype)

        self.node_self = linear(n, n)
        self.node_sym = linear((n + e) * config.axis_neuron, n)
        self.messages = nn.ModuleList([Messages({"alpha": n, "beta": n, "edge": e}, self.heads * n, *make)])
        self.received = nn.ModuleList()  # phi_u of graphs 2 and 3
        self.compress_n = self.compress_e = None
        if self.order > 1:
            self.messages.append(Messages({"edge": a, "center": nc, "beta": ec, "alpha": ec}, e, *make))
            self.received.append(linear(e, e))
            if config.a_compress_rate and not config.a_compress_use_split:
                self.compress_n, self.compress_e = linear(n, nc, bias=False), linear(e, ec, bias=False)
        if self.order > 2:
            self.messages.append(Messages({"edge": d, "beta": a, "alpha": a}, a, *make))
            self.received.append(linear(a, a))
        n_updates = [2 + self.heads] + [2] * (self.order - 1) + [1]  # the last features hear of no graph above
        self.steps = nn.ModuleList(Steps(k, dim, *make) for k, dim in zip(n_updates, (n, e, a, d), strict=False))

    def forward(
        self, v: Sequence[Tensor], series: Sequence[LineGraph], h: Tensor, left: int, second_order: bool
    ) -> list[Tensor]:
        """v^0, v^1, ... one layer on: of them those of which atoms still hear, `left` layers from the end.

        h (n_pairs, 3): w h / sqrt(e_sel) of `symm`.
        """
        received, new = [], [v[0]]
        for k, graph in enumerate(series[:left], 1):
            vertices, atoms = self.vertices(k, v, graph)
            step = self.step(k).values[0] if k < left else None
            u, own = cast(Messages, self.messages[k - 1])(vertices, atoms, v[k], graph, step, second_order)
            received.append(u)
            if own is not None:
                new.append(own)
        new[0] = self.update_atoms(v[0], v[1], received[0], series[0], h)
        for k in range(1, len(new)):
            if k < len(received):
                new[k] = self.receive(k, new[k], v[k], received[k], series[k].vertices)
            if self.step(k).factor != 1:
                new[k] = new[k] * self.step(k).factor
        return new

    def step(self, k: int) -> Steps:
        """Those of v^k."""
        return cast(Steps, self.steps[k])

    def vertices(self, k: int, v: Sequence[Tensor], graph: LineGraph) -> tuple[Tensor, Tensor]:
        """What messages of graph k read of its vertices, and of the atoms they belong to."""
        if k == 1:
            return v[0], v[0]
        own = v[k - 1].index_select(0, graph.vertices)
        if k > 2:
            return own, v[0]
        if self.compress_n is not None and self.compress_e is not None:
            return self.compress_e(own), self.compress_n(v[0])
        nc, ec = self.compressed
        return own[:, :ec], v[0][:, :nc]

    def update_atoms(self, n: Tensor, e: Tensor, u: Tensor, graph: LineGraph, h: Tensor) -> Tensor:
        """n (n_atoms, n_dim) with what atoms say to themselves, symmetrised features, and messages u of pairs."""
        of_pairs, of_atoms = neighbor_sum(h, e, graph.offsets), neighbor_sum(h, n, graph.offsets, graph.beta)
        symmetrised = torch.cat([self.symm(of_pairs), self.symm(of_atoms)], 1)
        step = self.step(0)
        update = step.values[0] * self.function(self.node_self(n))
        update = update + step.values[1] * self.function(self.node_sym(symmetrised))
        update = update + (step.values[2:] * u.view(len(n), self.heads, -1)).sum(1)
        return (n + update) * step.factor

    def symm(self, z: Tensor) -> Tensor:
        """z_<^T z / 3 (n_atoms, axis_neuron * dim) of z (n_atoms, 3, dim)."""
        return (z[:, :, : self.axis_neuron].transpose(1, 2) @ z).flatten(1) / 3

    def receive(self, k: int, new: Tensor, old: Tensor, u: Tensor, vertices: Tensor) -> Tensor:
        """new + delta_c phi_u(u): features of edges that are vertices of the next graph, and of those that are not."""
        step, phi = self.step(k).values[1], cast(Layer, self.received[k - 1])
        if k == 1 and not self.smooth:
            return new + step * self.function(phi(old.index_copy(0, vertices, u)))
        silence = step * self.function(cast(Tensor, phi.bias))
        return new.add_(silence).index_add_(0, vertices, step * self.function(phi(u)) - silence)  # `new` is ours alone


class Dpa3(EnvironmentDescriptor):
    """See the module's docstring for the equations."""

    def __init__(
        self, config: Dpa3Config, type_map: list[str], deepmd: bool, generator: torch.Generator, dtype: torch.dtype
    ):
        reaches = config.environments
        if any(reach.sel == "auto" for reach in reaches):
            raise ConfigError(
                "`e_sel`, `a_sel` or `d_sel` is 'auto'; expected numbers. Training counts the neighbours in its data; "
                "give numbers here."
            )
        super().__init__(
            *(reaches[0], len(type_map), deepmd, dtype),
            exclude_types=config.exclude_types,
            protection=config.env_protection,
        )
        self.reaches = reaches
        self.sels = [int(reach.sel) for reach in self.reaches]
        reduce = config.sel_reduce_factor if config.use_dynamic_sel else 1.0
        self.normalizers = [(sel / reduce) ** (1.0 if k == 0 else 0.5) for k, sel in enumerate(self.sels)]
        self.axis_neuron, self.concat_tebd = config.axis_neuron, config.concat_output_tebd
        self.exponential, self.from_distance = config.switch == "exponential", config.edge_init_use_dist
        self.fixed_std, self.function = config.fix_stat_std, activation(config.activation)
        if self.fixed_std:
            self.dstd.fill_(self.fixed_std)
        self.type_embedding = TypeEmbedding(
            *(type_map, config.n_dim),
            econf=config.use_econf_tebd,
            bias=config.use_tebd_bias,
            generator=generator,
            dtype=dtype,
        )
        dims = (config.e_dim, config.a_dim, config.d_dim)[: max(config.order, 2)]  # files have that of angles always
        self.first = nn.ModuleList(
            Layer(1, dim, "none", bias=k == 0, resnet=False, generator=generator, dtype=dtype)
            for k, dim in enumerate(dims)
        )
        self.layers = nn.ModuleList(UpdateLayer(config, generator, dtype) for _ in range(config.nlayers))
        self.dim_out = config.n_dim * (2 if self.concat_tebd else 1)

    def set_statistics(self, stats: Sequence[Statistics]) -> None:
        """As the others, of its pairs, unless the standard deviation is fixed."""
        if not self.fixed_std:
            super().set_statistics(stats[:1])

    def forward(self, graph: Graph) -> Tensor:
        """D (n_atoms, dim_out) of the atoms of a graph."""
        graph, bonds, offsets = self.visible_bonds(graph)
        env, switch = self.environment(graph)
        weight = switch / self.normalizers[0]
        series = [LineGraph(offsets, graph.neighbor, weight, graph.center, graph.center)]
        types = self.type_embedding()
        r = torch.linalg.vector_norm(graph.edge_vec, dim=1)
        pairs = self.first[0](r[:, None]) if self.from_distance else self.function(self.first[0](env[:, :1]))
        v = [self.function(types)[graph.types], pairs]
        for new, features in self.higher_graphs(graph, bonds, r[bonds]):
            series.append(new)
            v.append(features)
        h = (switch / math.sqrt(self.normalizers[0]))[:, None] * env[:, 1:]
        for k, layer in enumerate(self.layers):
            v = cast(UpdateLayer, layer)(v, series, h, len(self.layers) - k, self.second_order)
        return torch.cat([v[0], types[graph.types]], 1) if self.concat_tebd else v[0]

    def visible_bonds(self, graph: Graph) -> tuple[Graph, Tensor, Tensor]:
        """The pairs it reads, sorted by centre, which of them (n_bonds,) form angles, and where each atom's begin.

        DeePMD-kit: of the nearest `e_sel`, and of these the nearest `a_sel`, excluded pairs counted.
        """
        graph = graph.within(self.rcut)
        if self.deepmd:
            graph = truncate_neighbors(graph, self.sel, self.n_listed)
        form_angles = torch.zeros_like(graph.center, dtype=torch.bool)
        if len(self.reaches) > 1:
            form_angles = torch.linalg.vector_norm(graph.edge_vec.detach(), dim=1) <= self.reaches[1].rcut
            if self.deepmd:
                form_angles &= among_nearest(graph, self.sels[1])
        keep = ~graph.pair_mask(self.exclude_types)
        order = torch.argsort(torch.where(keep, graph.center, graph.n_atoms), stable=True)[: int(keep.sum())]
        graph = graph.select(order)
        offsets = starts(torch.bincount(graph.center, minlength=graph.n_atoms))
        return graph, torch.nonzero(form_angles[order])[:, 0], offsets

    def rows_and_switch(self, edge_vec: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Environment rows and the switch s^k."""
        reach = self.reaches[k - 1]
        if self.exponential:
            return exponential_environment(edge_vec, reach.rcut_smth, self.protection)
        return environment(edge_vec, reach.rcut, reach.rcut_smth, self.protection, second_order=self.second_order)

    def environment(self, graph: Graph) -> tuple[Tensor, Tensor]:
        env, switch = self.rows_and_switch(graph.edge_vec, 1)
        center_type = graph.types[graph.center]
        return (env - self.davg[center_type]) / self.dstd[center_type], switch

    def higher_graphs(self, graph: Graph, bonds: Tensor, r: Tensor) -> Iterator[tuple[LineGraph, Tensor]]:
        """Graphs 2 and 3 and the first features of their edges. bonds, r (n_bonds,): pairs of angles, and their length.

        What the last layers would not hear of is left out.
        """
        order = min(len(self.reaches), len(self.layers))
        if order < 2:
            return
        center, edge_vec = graph.center[bonds], graph.edge_vec.index_select(0, bonds)
        unit = edge_vec / (r[:, None] + 1e-6)
        ij, im, offsets = pairs_within(center, graph.n_atoms)
        switch = self.rows_and_switch(edge_vec, 2)[1]
        weight = switch.index_select(0, ij) * switch.index_select(0, im) / self.normalizers[1]
        cosine = (unit.index_select(0, ij) * unit.index_select(0, im)).sum(1)
        yield LineGraph(offsets, im, weight, bonds, center), self.angular(2, cosine)
        if order < 3:
            return
        near = r <= self.reaches[2].rcut
        angles = torch.nonzero(near[ij] & near[im])[:, 0]
        first, second, offsets = pairs_within(ij[angles], len(bonds))  # of `angles`, about one bond ij
        j, m, n = ij[angles][first], im[angles][first], im[angles][second]
        switch = self.rows_and_switch(edge_vec, 3)[1]
        weight = switch[j] * switch[m] * switch[n] / self.normalizers[2]
        projected = (unit[m] * unit[n]).sum(1) - cosine[angles][first] * cosine[angles][second]
        yield LineGraph(offsets, second, weight, angles, graph.center[bonds][ij[angles]]), self.angular(3, projected)

    def angular(self, k: int, x: Tensor) -> Tensor:
        """The first features of the edges of graph k, from one number x of each in [-1, 1]."""
        return self.first[k - 1](x[:, None] * ((1 - 1e-6) / math.sqrt(math.pi)))
