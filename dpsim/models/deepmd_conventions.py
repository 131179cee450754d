"""DeePMD-kit's treatment of a finite neighbour list, needed for parity with imported models and for nothing else.

Native models sum over all true neighbours and standardise with davg = 0; then none of this acts. Source:
DeePMD-kit 3.2.0, `deepmd/pt/model/descriptor/{se_a,se_atten}.py` and `nlist.py`, as described in docs/model-file.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpsim.models.graph import Graph


def truncate_neighbors(graph: Graph, sel: list[int], n_listed: int) -> Graph:
    """Keep, for each atom, the n_listed nearest neighbours, then the sel[t] nearest of each type t.

    With one number in `sel`, types are not told apart. n_listed is sum(sel), but for the descriptors of a hybrid.
    """
    for distinct, limit in ((False, [n_listed]), (len(sel) > 1, sel)):
        keep = _nearest(graph, graph.neighbor_types if distinct else torch.zeros_like(graph.center), limit)
        graph = graph if bool(keep.all()) else graph.select(keep)
    return graph


def among_nearest(graph: Graph, n: int) -> Tensor:
    """(n_edges,) True on the edges that are among the n nearest of their centre."""
    return _nearest(graph, torch.zeros_like(graph.center), [n])


def listed_in_a_hybrid(sels: list[list[int]]) -> int:
    """Length of the one neighbour list from which the descriptors of a hybrid take their `sel`.

    It has room for the largest sel[t] of each type; where some descriptors tell types apart and others do not, for the
    largest sum(sel).
    """
    if len({len(sel) for sel in sels}) > 1:
        return max(map(sum, sels))
    return sum(map(max, zip(*sels, strict=True)))


def _nearest(graph: Graph, group: Tensor, limit: list[int]) -> Tensor:
    """True on the edges that are among the limit[group] nearest of their centre and group."""
    key = graph.center * len(limit) + group
    count = torch.bincount(key, minlength=graph.n_atoms * len(limit))
    if bool((count.view(-1, len(limit)) <= torch.tensor(limit, device=count.device)).all()):
        return torch.ones_like(key, dtype=torch.bool)  # nothing to sort
    distance = torch.linalg.vector_norm(graph.edge_vec.detach(), dim=1)
    by_distance = torch.argsort(distance, stable=True)
    order = by_distance[torch.argsort(key[by_distance], stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - (torch.cumsum(count, 0) - count)[key[order]]
    return rank < torch.tensor(limit, device=group.device)[group]


def empty_slots(graph: Graph, sel: list[int]) -> Tensor:
    """(n_atoms, len(sel)): how many of the sel slots of each kind are empty in a truncated graph."""
    counts = graph.neighbor_counts()
    if len(sel) == 1:
        counts = counts.sum(1, keepdim=True)
    return torch.tensor(sel, device=counts.device) - counts


def fading_directions(edge_vec: Tensor, rcut: float, rcut_smth: float, dstd: Tensor) -> Tensor:
    """x / max(|x|, 1e-12) of x = w(r) edge_vec / (r^2 dstd): unit vectors, but not where the switch is below ~1e-11.

    There the digits of w count, so it is evaluated in DeePMD-kit's expanded form, cancellation included.
    """
    r = torch.linalg.vector_norm(edge_vec, dim=1)
    u = (torch.clamp(r, rcut_smth, rcut) - rcut_smth) / (rcut - rcut_smth)
    u2 = u * u
    w = u2 * u * (-6 * u2 + 15 * u - 10) + 1
    return torch.nn.functional.normalize(edge_vec / r[:, None] ** 2 * w[:, None] / dstd[:, None], dim=1, eps=1e-12)
