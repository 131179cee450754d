"""`Graph`: the edges of a batch as a descriptor wants them, and the neighbour slots built from them.

Atoms are sorted by type, so that the atoms of one type are one block of rows: nets that belong to a type act on
contiguous rows. Edges are never cut: where rows of equal length are needed, they are as wide as the largest
neighbour count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from dpsim.data.frame import Batch


@dataclass
class Graph:
    """Directed edges i -> j between atoms sorted by type.

    edge_vec (n_edges, 3) A, in the model's precision; center, neighbor (n_edges,); types (n_atoms,) sorted;
    counts: atoms of each type; first_type (n_atoms,): the type of the first atom of each atom's frame, before
    sorting (DeePMD-kit's padding needs it).
    """

    edge_vec: Tensor
    center: Tensor
    neighbor: Tensor
    types: Tensor
    counts: list[int]
    first_type: Tensor

    @classmethod
    def from_batch(cls, batch: Batch, edge_vec: Tensor, n_types: int) -> tuple[Graph, Tensor]:
        """The graph of a batch and `order`, with sorted atom k being atom order[k] of the batch."""
        order = torch.argsort(batch.types, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        first = torch.zeros_like(batch.n_atoms_per_frame)
        first[1:] = torch.cumsum(batch.n_atoms_per_frame, 0)[:-1]
        graph = cls(
            edge_vec=edge_vec,
            center=rank[batch.center],
            neighbor=rank[batch.neighbor],
            types=batch.types[order],
            counts=torch.bincount(batch.types, minlength=n_types).tolist(),
            first_type=batch.types[first[batch.frame_index[order]]],
        )
        return graph, order

    @property
    def n_atoms(self) -> int:
        return len(self.types)

    @cached_property
    def neighbor_types(self) -> Tensor:
        return self.types[self.neighbor]

    @cached_property
    def blocks(self) -> list[tuple[int, int, int]]:
        """(type, start, stop) of each type that has atoms."""
        blocks, start = [], 0
        for t, n in enumerate(self.counts):
            if n:
                blocks.append((t, start, start + n))
            start += n
        return blocks

    def select(self, keep: Tensor) -> Graph:
        """The graph with the edges where `keep` (bool) holds."""
        return Graph(
            self.edge_vec[keep], self.center[keep], self.neighbor[keep], self.types, self.counts, self.first_type
        )

    def without_pairs(self, pairs: list[tuple[int, int]]) -> Graph:
        """The graph without the edges between the given pairs of types, in either order."""
        return self.select(~self.pair_mask(pairs)) if pairs else self

    def pair_mask(self, pairs: list[tuple[int, int]]) -> Tensor:
        """(n_edges,) True on edges between the given pairs of types."""
        n = len(self.counts)
        table = torch.zeros(n, n, dtype=torch.bool, device=self.center.device)
        for a, b in pairs:
            table[a, b] = table[b, a] = True
        return table[self.types[self.center], self.neighbor_types]

    def within(self, cutoff: float) -> Graph:
        """The graph with the edges not longer than `cutoff`."""
        keep = torch.linalg.vector_norm(self.edge_vec.detach(), dim=1) <= cutoff
        return self if bool(keep.all()) else self.select(keep)

    def neighbor_counts(self) -> Tensor:
        """(n_atoms, n_types): the number of neighbours of each type."""
        n = len(self.counts)
        key = self.center * n + self.neighbor_types
        return torch.bincount(key, minlength=self.n_atoms * n).view(self.n_atoms, n)

    def in_slots(self) -> tuple[Graph, Slots]:
        """The graph with its edges sorted by centre, then neighbour type, and the rows of slots they fill."""
        order = torch.argsort(self.center * len(self.counts) + self.neighbor_types, stable=True)
        graph, count = self.select(order), torch.bincount(self.center, minlength=self.n_atoms)
        slot = torch.arange(len(order), device=order.device) - starts(count)[graph.center]
        return graph, Slots(slot, graph.center, count)

    def sorted_by_pair(self) -> tuple[Graph, list[Segment]]:
        """The graph with its edges sorted by centre type, neighbour type and centre, and the segments they form.

        Segment (ti, tj) holds the edges between the two types; each has an entry, if only an empty one.
        """
        n, n_types = self.n_atoms, len(self.counts)
        center_type = self.types[self.center]
        key = (center_type * n_types + self.neighbor_types) * n + self.center
        order = torch.argsort(key, stable=True)
        counts = torch.bincount(self.neighbor_types * n + self.center, minlength=n_types * n).view(n_types, n)
        segments, first = [], 0
        for ti, start, stop in self.blocks:
            for tj in range(n_types):
                offsets = torch.cumsum(counts[tj, start:stop], 0)
                offsets = torch.cat([offsets.new_zeros(1), offsets])
                last = first + int(offsets[-1])
                segments.append(Segment(ti, tj, slice(first, last), offsets))
                first = last
        return self.select(order), segments


class Segment(NamedTuple):
    """The edges from atoms of one type to atoms of one type: those of the k-th centre are offsets[k] .. [k + 1]."""

    center_type: int
    neighbor_type: int
    edges: slice
    offsets: Tensor

    def slots(self) -> Tensor:
        """(n_centers, p): the edges of each centre in a row, -1 where a row has fewer than the longest."""
        table = slots(self.offsets)
        return torch.where(table >= 0, self.edges.start + table, -1)


class Slots:
    """The edges of each atom in a row of `width` slots, as many as the fullest row needs, but at least one.

    slot (n_edges,): that of each edge; place = atom * width + slot; count (n_atoms,): how many slots are full.
    """

    def __init__(self, slot: Tensor, center: Tensor, count: Tensor):
        self.slot, self.count = slot, count
        self.width = max(1, int(count.max()))
        self.place = center * self.width + slot

    def fill(self, x: Tensor) -> Tensor:
        """x (n_edges, ...) of the edges as (n_atoms, width, ...), zero in empty slots."""
        n, rest = len(self.count), x.shape[1:]
        return x.new_zeros(n * self.width, *rest).index_copy(0, self.place, x).view(n, self.width, *rest)

    def edges(self, x: Tensor) -> Tensor:
        """x (n_atoms, width, ...) of the slots as (n_edges, ...) of the edges in them."""
        return x.flatten(0, 1).index_select(0, self.place)


class Pairs(NamedTuple):
    """Ordered pairs (first, second) of things, sorted by the first: those of thing m are offsets[m] .. [m + 1].

    first, second (n_pairs,): indices; offsets (n_things + 1,).
    """

    first: Tensor
    second: Tensor
    offsets: Tensor


def pairs_within(group: Tensor, n_groups: int) -> Pairs:
    """All ordered pairs of things of one group, things that are alone or with themselves included.

    Args: group (n_things,): the group 0 .. n_groups - 1 of each thing, n_groups of things that pair with nothing.
    """
    order = torch.argsort(group, stable=True)  # members of a group in a row
    count = torch.bincount(group, minlength=n_groups + 1)
    count[n_groups] = 0
    partners = count[group]
    offsets = starts(partners)
    first = torch.repeat_interleave(partners)
    rank = torch.arange(len(first), device=group.device) - offsets[first]
    return Pairs(first, order[starts(count)[group[first]] + rank], offsets)


def starts(count: Tensor) -> Tensor:
    """(n + 1,): where each of n rows of `count` things begins when they lie in a row, and where the last ends."""
    return torch.cat([count.new_zeros(1), torch.cumsum(count, 0)])


def slots(offsets: Tensor) -> Tensor:
    """(n, p): the things offsets[i] .. [i + 1] in row i, -1 where a row has fewer than the longest."""
    count = offsets.diff()
    width = int(count.max()) if len(count) else 0
    k = torch.arange(width, device=count.device)
    return torch.where(k < count[:, None], offsets[:-1, None] + k, -1)


def compact(table: Tensor) -> Tensor:
    """The same slots with the empty ones of each row last, and no more columns than the fullest row needs."""
    full = table >= 0
    order = torch.argsort(full.to(torch.int8), dim=1, descending=True, stable=True)
    width = int(full.sum(1).max()) if len(table) else 0
    return table.gather(1, order[:, :width])


def pad_rows(x: Tensor) -> Tensor:
    """x with one more row of zeros: what an empty slot, index -1, looks up."""
    return torch.cat([x, x.new_zeros(1, *x.shape[1:])])
