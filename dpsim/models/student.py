"""A student: a model whose embedding is tabulated in the distance, written by `dpsim compress`.

The reference of the kernels: plain PyTorch on any device, in the numbered steps of docs/students.md. For a centre i of
type ti, a neighbour j of type tj at distance r, and one of its parts:

    1. environment   R_0 = (s - davg[ti]) inv_dstd[ti,0],  R_c = q edge_vec_c inv_dstd[ti,1],  s = w/r', q = s/r'
    2. table         G_m(r): quintic in t = (r - r_k)/step on the grid r_k = r_min + k step; Taylor below r_min
    3. contraction   a[c, o_tj + m] = sum_j R_c G_m(r)        radial parts: a[0, o_tj + m] = sum_j G_m(r)
    4. features      sum_c a[c,p] a[c,m], p < axis, p <= m    radial parts: a[0,m]
    5. fitting       x_0 = features, x = act(x W + b) idt + copies of x;  E_i = x . out + bias[ti]
    6. core          the repulsion of dpsim/models/core_repulsion.py

All of it can be differentiated twice, so Hessian-vector products are right.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dpsim.data.frame import Batch
from dpsim.kernels.activation import activation
from dpsim.kernels.environment import environment_reference
from dpsim.models.deepmd_conventions import empty_slots, truncate_neighbors
from dpsim.models.graph import Graph
from dpsim.models.potential import DTYPES, Potential, in_batch_order, with_core
from dpsim.models.student_config import LayerConfig, PartConfig, StudentConfig


class Student(Potential):
    """See the module's docstring. Every tensor of the file is a buffer of its name, in float64.

    below_range: directed pairs nearer than r_min in the last call, where the table is continued by Taylor.
    """

    below_range = 0

    def __init__(self, config: StudentConfig):
        super().__init__()
        self.config = config
        self.type_map = tuple(config.type_map)
        self.rcut = config.rcut
        self.dtype = DTYPES[config.precision]
        self.metadata = {}
        n = len(self.type_map)
        self.parts = nn.ModuleList(Part(part, config.r_min, n, self.dtype) for part in config.parts)
        self.fitting = nn.ModuleList(fitting_net(config.fitting) for _ in range(n))
        self.register_buffer("energy_bias", torch.zeros(n, dtype=torch.float64))
        self.register_load_state_dict_post_hook(_form_coefficients)

    def atomic_energies(self, batch: Batch, edge_vec: Tensor) -> Tensor:
        graph, order = Graph.from_batch(batch, edge_vec, len(self.type_map))
        graph = graph.within(self.rcut).without_pairs(self.config.pair_exclude_types)
        r = torch.linalg.vector_norm(graph.edge_vec.detach(), dim=1)
        self.below_range = int((r < self.config.r_min).sum())
        energy = self.fit(graph, [part(graph) for part in self.parts]).to(torch.float64)
        energy = energy + self.energy_bias[graph.types]
        # 6. core
        if self.config.core_distances is not None:
            energy = with_core(energy, graph, self.config.core_distances)
        return in_batch_order(energy, graph, order, self.config.atom_exclude_types)

    def fit(self, graph: Graph, contractions: list[Tensor]) -> Tensor:
        """Steps 4 and 5: E_i (n_atoms,) without bias from the contractions of all parts."""
        # 4. features
        x = torch.cat([cast(Part, part).features(a) for part, a in zip(self.parts, contractions, strict=True)], 1)
        # 5. fitting
        return torch.cat([self.fitting[t](x[start:stop]) for t, start, stop in graph.blocks])


class Part(nn.Module):
    """One descriptor of a student: steps 1 to 3, from the edges of a graph to a (n_atoms, 4 or 1, channels)."""

    davg: Tensor
    inv_dstd: Tensor
    table: Tensor
    pad: Tensor
    coefficients: Tensor

    def __init__(self, config: PartConfig, r_min: float, n_types: int, dtype: torch.dtype):
        super().__init__()
        self.config, self.r_min, self.n_types = config, r_min, n_types
        n, nodes, width = n_types, config.n_intervals + 1, config.width
        for name, shape in (
            ("davg", (n,)),
            ("inv_dstd", (n, 2)),
            ("table", (n, n, nodes, 3, width)),
            ("pad", (n, n, width)),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("coefficients", torch.zeros(n * n, nodes, 6, width, dtype=dtype), persistent=False)

    def form_coefficients(self) -> None:
        """The polynomials of all intervals from the nodes, in float64, then in the part's precision."""
        self.coefficients.copy_(polynomials(self.table.flatten(0, 1), self.config.step))

    def forward(self, graph: Graph) -> Tensor:
        c = self.config
        graph, empty = self.neighbors(graph)
        ti, tj = graph.types[graph.center], graph.neighbor_types
        # 1. environment
        env, _ = environment_reference(graph.edge_vec, c.rcut, c.rcut_smth, c.protection)
        davg, inv_dstd = self.davg.to(env.dtype), self.inv_dstd.to(env.dtype)
        rows = torch.cat([env[:, :1] - davg[ti, None], env[:, 1:]], 1) * inv_dstd[:, [0, 1, 1, 1]][ti]
        # 2. table
        g = self.embedding(torch.linalg.vector_norm(graph.edge_vec, dim=1), ti * self.n_types + tj)
        # 3. contraction
        terms = g[:, None, :] if c.kind == "radial" else rows[:, :, None] * g[:, None, :]
        a = terms.new_zeros(graph.n_atoms, terms.shape[1], c.channels)
        for t, offset in enumerate(c.channel_offset):
            own = (tj == t).nonzero()[:, 0]
            of_type = terms.new_zeros(graph.n_atoms, *terms.shape[1:]).index_add(0, graph.center[own], terms[own])
            if empty is not None:
                of_empty = empty[:, t, None] * self.pad[graph.types, t].to(g.dtype)
                of_type = torch.cat([of_type[:, :1] + of_empty[:, None], of_type[:, 1:]], 1)
            a = a + nn.functional.pad(of_type, (offset, c.channels - c.width - offset))
        return a

    def features(self, a: Tensor) -> Tensor:
        """Step 4: (n_atoms, n_features) from a."""
        if self.config.kind == "radial":
            return a[:, 0]
        p, m = torch.triu_indices(self.config.axis, self.config.channels, device=a.device)
        return (a[:, :, : self.config.axis].transpose(1, 2) @ a)[:, p, m]

    def neighbors(self, graph: Graph) -> tuple[Graph, Tensor | None]:
        """The edges this part contracts and, where slots count, the empty ones of each type, (n_atoms, n_types)."""
        c = self.config
        graph = graph.within(c.rcut)
        if not c.excluded_counted:
            graph = graph.without_pairs(c.excluded)
        empty = None
        if c.slots != "none":
            graph = truncate_neighbors(graph, c.sel, c.n_listed or sum(c.sel))
            empty = empty_slots(graph, c.sel)
        if empty is not None and c.slots == "shared":  # empty slots take the type of the frame's first atom
            empty = empty * nn.functional.one_hot(graph.first_type, self.n_types)
        return graph.without_pairs(c.excluded), empty

    def embedding(self, r: Tensor, pair: Tensor) -> Tensor:
        """G(r) of edges, (n_edges, width). Interval 0 of the polynomials is the Taylor continuation below r_min."""
        x = (r - self.r_min) / self.config.step
        k = x.detach().floor().clamp(-1, self.config.n_intervals - 1)
        t = (x - k.clamp(min=0))[:, None]
        c = self.coefficients[pair, k.long() + 1].unbind(1)
        return c[0] + t * (c[1] + t * (c[2] + t * (c[3] + t * (c[4] + t * c[5]))))


def polynomials(table: Tensor, step: float) -> Tensor:
    """Coefficients of powers of t: the quintics that take the values and derivatives of the nodes at both ends.

    Args: table (..., nodes, 3, width): G, dG/dr, d2G/dr2. Returns: (..., nodes, 6, width); the first entry is the
    Taylor polynomial about the first node, entry k + 1 belongs to the interval from node k.
    """
    y, p, q = (table[..., d, :] * step**d for d in range(3))
    y0, p0, q0, y1, p1, q1 = (x[..., s, :] for s in (slice(None, -1), slice(1, None)) for x in (y, p, q))
    h = y1 - y0
    quintic = [
        y0,
        p0,
        0.5 * q0,
        10 * h - 4 * p1 - 6 * p0 + 0.5 * (q1 - 3 * q0),
        -15 * h + 7 * p1 + 8 * p0 - q1 + 1.5 * q0,
        6 * h - 3 * (p0 + p1) + 0.5 * (q1 - q0),
    ]
    zero = torch.zeros_like(y[..., :1, :])
    taylor = [y[..., :1, :], p[..., :1, :], 0.5 * q[..., :1, :], zero, zero, zero]
    return torch.cat([torch.stack(taylor, -2), torch.stack(quintic, -2)], -3)


class StudentLayer(nn.Module):
    """y = act(x W + b) * idt + `residual` copies of x."""

    weight: Tensor
    bias: Tensor | None
    idt: Tensor | None

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.residual, self.function = config.residual, activation(config.activation)
        self.register_buffer("weight", torch.zeros(config.n_in, config.n_out, dtype=torch.float64))
        for name, present in (("bias", config.bias), ("idt", config.idt)):
            self.register_buffer(name, torch.zeros(config.n_out, dtype=torch.float64) if present else None)

    def forward(self, x: Tensor) -> Tensor:
        z = x @ self.weight.to(x.dtype)
        y = self.function(z if self.bias is None else z + self.bias.to(x.dtype))
        if self.idt is not None:
            y = y * self.idt.to(x.dtype)
        return y + x.repeat(1, self.residual) if self.residual else y


class StudentOutput(nn.Module):
    """x . weight + bias."""

    weight: Tensor
    bias: Tensor

    def __init__(self, n_in: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(n_in, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.to(x.dtype) + self.bias.to(x.dtype)


def fitting_net(layers: list[LayerConfig]) -> nn.Sequential:
    """The net of one centre type: layers "0", "1", ..., "out"."""
    net = nn.Sequential()
    for k, layer in enumerate(layers):
        net.add_module(str(k), StudentLayer(layer))
    net.add_module("out", StudentOutput(layers[-1].n_out))
    return net


def _form_coefficients(student: nn.Module, _: object) -> None:
    for part in cast(Student, student).parts:
        cast(Part, part).form_coefficients()
