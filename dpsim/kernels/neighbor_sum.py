"""Sums over neighbours of outer products: what makes the features of neighbours a feature of the atom.

    z_i[k, c] = sum_{m of i} h_m[k] x_j[c],    j = index_m, or m itself where x is a row per edge

h_m is a vector per edge: r_hat w / r in the symmetrisation of DPA-2 and DPA-3, so that products of z with itself are
invariant (DPA-3, Eqs. 16-19); or the pair features in DPA-2's convolution. Edges m are sorted by their centre i.

The value and its derivatives are one trilinear form, differentiated in one of its arguments:

    T(h, x, z) = sum_m sum_k sum_c h_m[k] x_j[c] z_i[k, c]
    dT/dz      neighbor_sum     sum over the edges of a centre
    dT/dh      neighbor_dot     h_m[k] = sum_c x_j[c] z_i[k, c]
    dT/dx      neighbor_spread  x_j[c] = sum_{m to j} sum_k h_m[k] z_i[k, c]

so that derivatives of any order are made of these three (csrc/cpu/neighbor_sum_kernel.h), and no array of one row of
x per edge is ever made.

Sources: Zhang et al., DPA3 (arXiv:2506.01686), Eqs. 16-19; Zhang et al., DPA-2 (npj Comput. Mater. 10, 293 (2024)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpsim.kernels import native


def neighbor_sum_reference(h: Tensor, x: Tensor, offsets: Tensor, index: Tensor | None = None) -> Tensor:
    """See the module's docstring; differentiable any number of times, on any device. Rows of equal length, padded."""
    x = x if index is None else x[index]
    count = offsets.diff()
    width = int(count.max()) if len(count) else 0
    k = torch.arange(width, device=x.device)
    slots = torch.where(k < count[:, None], offsets[:-1, None] + k, len(h))
    h, x = (torch.cat([a, a.new_zeros(1, a.shape[1])])[slots] for a in (h, x))
    return h.transpose(1, 2) @ x


def neighbor_sum(h: Tensor, x: Tensor, offsets: Tensor, index: Tensor | None = None) -> Tensor:
    """z_i = sum_{m of i} h_m (x) x[index_m], differentiable any number of times.

    Args: h (n_edges, K); x (n_rows, C), or (n_edges, C) without index; offsets (n + 1,) int64: the edges of centre i
        are offsets[i] .. offsets[i + 1]; index (n_edges,) int64. Returns: z (n, K, C).
    """
    alike = h.dtype == x.dtype and h.device == x.device and h.device.type == "cpu" and h.dtype in native.SUFFIX
    if not alike or native.library() is None:
        return neighbor_sum_reference(h, x, offsets, index)
    edges = _Edges(offsets.contiguous(), None if index is None else index.contiguous(), len(x))
    return _Form.apply("sum", h, x, edges)


@dataclass
class _Edges:
    """What is not differentiated."""

    offsets: Tensor
    index: Tensor | None
    n_rows: int


class _Form(torch.autograd.Function):
    """The trilinear form, differentiated in the argument that `name` means, as a function of the other two."""

    @staticmethod
    def forward(ctx: Any, name: str, a: Tensor, b: Tensor, edges: _Edges) -> Tensor:
        a, b = a.contiguous(), b.contiguous()
        n, channels = len(edges.offsets) - 1, b.shape[-1]
        components = a.shape[1]  # of h (n_edges, K), or of z (n, K, C)
        shape = {"sum": (n, components, channels), "dot": (len(b), components), "spread": (edges.n_rows, channels)}
        if name == "dot" and edges.index is not None:
            shape["dot"] = (len(edges.index), components)
        out = a.new_empty(shape[name])
        where = (n, edges.offsets, edges.n_rows, edges.index, components, channels)
        native.call(f"neighbor_{name}", a, *where, a, b, out)
        ctx.name, ctx.edges = name, edges
        ctx.save_for_backward(a, b)
        return out

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        of_a, of_b = {  # in the order of the arguments: sum(h, x), dot(z, x), spread(h, z)
            "sum": (("dot", bar, b), ("spread", a, bar)),
            "dot": (("sum", bar, b), ("spread", bar, a)),
            "spread": (("dot", b, bar), ("sum", a, bar)),
        }[ctx.name]
        grads = (_Form.apply(*of, ctx.edges) if ctx.needs_input_grad[k] else None for k, of in ((1, of_a), (2, of_b)))
        return None, *grads, None
