"""Coordinates in a frame of the atom's own, the first Deep Potential (`loc_frame`). NOT SMOOTH.

    slots of atom i: of each type t the sel_a[t] nearest neighbours, then the sel_r[t] next ones; empty slots hold 0
    e1 = a / |a|,  e2 = b' / |b'| with b' = b - (b.e1) e1,  e3 = e1 x e2        a, b: vectors to the two axis atoms
    D_ij = (1, x.e1 / r, x.e2 / r, x.e3 / r) / r    of a slot of sel_a, x = edge_vec, r = |x|
    D_ij = 1 / r                                    of a slot of sel_r
    D_i  = ([D_ij of sel_a, ...] ++ [D_ij of sel_r, ...] - avg[t_i]) / std[t_i]

Energies JUMP when a neighbour crosses the cutoff, when two of one type exchange their order, and when another atom
becomes an axis: between such events F = -dE/dx holds, across them energy is not conserved. Use it to reproduce old
work, never for production dynamics. Where an axis atom is missing, or b is parallel to a, coordinates along the axes it
would give are 0. `axis_rule` says, for each type, the class (0: of sel_a, 1: of sel_r), type and rank of a and of b;
without it they are the two nearest atoms of the slots. e3 makes D_i change under reflection, as there.
Source: Zhang et al., Phys. Rev. Lett. 120, 143001 (2018); DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 3-8
(whose Eq. 3 lacks a factor 1/r).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpsim.models.descriptors.base import Descriptor, EnvironmentDescriptor
from dpsim.models.graph import Graph, starts
from dpsim.models.local_frame_config import LocalFrameConfig

if TYPE_CHECKING:
    from dpsim.data.statistics import Statistics

_STD_FLOOR = 1e-2


class LocalFrame(Descriptor):
    """See the module's docstring for the equations."""

    avg: Tensor
    std: Tensor

    def __init__(
        self,
        config: LocalFrameConfig,
        type_map: list[str],
        deepmd: bool,
        generator: torch.Generator,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.config, self.rcut = config, config.rcut
        self.n_types, self.n_full = len(type_map), sum(config.sel_a)
        self.n_slots = self.n_full + sum(config.sel_r)
        self.dim_out = 4 * self.n_full + sum(config.sel_r)
        self.register_buffer("avg", torch.zeros(self.n_types, self.dim_out, dtype=dtype))
        self.register_buffer("std", torch.ones(self.n_types, self.dim_out, dtype=dtype))

    @property
    def members(self) -> list[EnvironmentDescriptor]:
        return []

    def set_statistics(self, stats: Sequence[Statistics]) -> None:
        """Nothing: slots are standardised one by one, see `standardise`."""

    @torch.no_grad()
    def standardise(self, graphs: Iterable[Graph]) -> None:
        """Take avg and std (at least 1e-2) of each slot and centre type from graphs of the data."""
        n = self.avg.new_zeros(self.n_types, 1, dtype=torch.float64)
        total, squares = (n.new_zeros(self.avg.shape) for _ in range(2))
        for graph in graphs:
            d = self.coordinates(graph.within(self.rcut)).to(torch.float64)
            n.index_add_(0, graph.types, d.new_ones(len(d), 1))
            total.index_add_(0, graph.types, d)
            squares.index_add_(0, graph.types, d * d)
        mean = total / n.clamp(min=1)
        std = (squares / n.clamp(min=1) - mean**2).clamp(min=0).sqrt().clamp(min=_STD_FLOOR)
        self.avg.copy_(mean)
        self.std.copy_(torch.where(n > 0, std, 1.0))

    def forward(self, graph: Graph) -> Tensor:
        """D (n_atoms, dim_out) of the atoms of a graph."""
        d = self.coordinates(graph.within(self.rcut).without_pairs(self.config.exclude_types))
        return (d - self.avg[graph.types]) / self.std[graph.types]

    def coordinates(self, graph: Graph) -> Tensor:
        """D_i before it is standardised, (n_atoms, dim_out)."""
        x = self.slots(graph)
        full = (x.detach() != 0).any(2)
        r = torch.where(full, safe_norm(x), 1.0)
        inverse = full / r
        axes = torch.stack(frame_axes(*self.axis_atoms(x, graph)), 2)
        local = torch.einsum("nsk,nka->nsa", x[:, : self.n_full], axes)
        rows = torch.cat([inverse[:, : self.n_full, None], local * inverse[:, : self.n_full, None] ** 2], 2)
        return torch.cat([rows.flatten(1), inverse[:, self.n_full :]], 1)

    def slots(self, graph: Graph) -> Tensor:
        """x (n_atoms, n_slots, 3): edge vectors of the neighbours in their slots, 0 in empty ones."""
        c, n = self.config, graph.n_atoms
        by_distance = torch.argsort(torch.linalg.vector_norm(graph.edge_vec.detach(), dim=1), stable=True)
        key = graph.center * self.n_types + graph.neighbor_types
        order = by_distance[torch.argsort(key[by_distance], stable=True)]
        first = starts(torch.bincount(key, minlength=n * self.n_types))
        rank = torch.arange(len(order), device=key.device) - first[key[order]]
        tensor = lambda values: torch.tensor(values, device=key.device)  # noqa: E731
        full, radial, t = tensor(c.sel_a), tensor(c.sel_r), graph.neighbor_types[order]
        slot = torch.where(rank < full[t], starts(full)[t] + rank, self.n_full + starts(radial)[t] + rank - full[t])
        kept = rank < (full + radial)[t]
        place = (graph.center[order] * self.n_slots + slot)[kept]
        x = graph.edge_vec.new_zeros(n * self.n_slots, 3)
        return x.index_copy(0, place, graph.edge_vec[order[kept]]).view(n, self.n_slots, 3)

    def axis_atoms(self, x: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
        """a, b (n_atoms, 3): vectors to the two axis atoms, 0 where there is none."""
        if self.config.axis_rule is None:
            r = torch.linalg.vector_norm(x.detach(), dim=2)
            nearest = torch.where(r > 0, r, torch.inf).topk(2, dim=1, largest=False).indices
        else:
            rules = [self.config.axis_rule[6 * t : 6 * t + 6] for t in range(self.n_types)]
            slots = [[self._slot(*rule[:3]), self._slot(*rule[3:])] for rule in rules]
            nearest = torch.tensor(slots, device=x.device)[graph.types]
        axes = x.gather(1, nearest[:, :, None].expand(-1, -1, 3))
        return axes[:, 0], axes[:, 1]

    def _slot(self, radial: int, t: int, rank: int) -> int:
        """The slot of the neighbour of a class, type and rank."""
        before = self.n_full + sum(self.config.sel_r[:t]) if radial else sum(self.config.sel_a[:t])
        return before + rank


def frame_axes(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """e1, e2, e3 (n, 3) from the vectors to the axis atoms; 0 where they are not defined."""
    e1 = unit(a)
    e2 = unit(b - (b * e1).sum(1, keepdim=True) * e1)
    return e1, e2, torch.linalg.cross(e1, e2)


def unit(x: Tensor) -> Tensor:
    """x / |x|, and 0 with no gradient where |x| is below 1e-6."""
    long = (torch.linalg.vector_norm(x.detach(), dim=1, keepdim=True) > 1e-6).expand_as(x)
    return torch.where(long, x / safe_norm(torch.where(long, x, 1.0))[:, None], 0.0)


def safe_norm(x: Tensor) -> Tensor:
    """|x| over the last axis, with no gradient where x = 0."""
    squared = (x * x).sum(-1)
    return torch.where(squared > 0, torch.where(squared > 0, squared, 1.0).sqrt(), 0.0)
