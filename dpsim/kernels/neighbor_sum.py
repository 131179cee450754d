"""Sums over neighbours of outer products: what makes the features of neighbours a feature of the atom.

    z_i[k, c] = sum_{m of i} h_m[k] x_j[c]                  j = index_m, or m itself where x is a row per edge
    z_i[c]    = sum_k w[k, c] sum_{m of i} h_m[k] x_j[c]    with a weight: x_j times h_m W, channel by channel, summed

h_m is a vector per edge: r_hat w / r in the symmetrisation of DPA-2 and DPA-3, so that products of z with itself are
invariant (DPA-3, Eqs. 16-19); or the pair features in DPA-2's convolution. Edges m are sorted by their centre i.

The value and its derivatives are one multilinear form, differentiated in one of its arguments:

    T(h, x, z, w) = sum_m sum_k sum_c h_m[k] x_j[c] z_i[k, c]       z_i[k, c] = w[k, c] z_i[c] with a weight
    dT/dz      neighbor_sum     sum over the edges of a centre
    dT/dh      neighbor_dot     h_m[k] = sum_c x_j[c] z_i[k, c]
    dT/dx      neighbor_spread  x_j[c] = sum_{m to j} sum_k h_m[k] z_i[k, c]
    dT/dw      neighbor_weight  w[k, c] = sum_i z_i[c] sum_{m of i} h_m[k] x_j[c]

so that derivatives of any order are made of these (csrc/cpu/neighbor_sum_kernel.h), and no array of one row of x per
edge is ever made.

Sources: Zhang et al., DPA3 (arXiv:2506.01686), Eqs. 16-19; Zhang et al., DPA-2 (npj Comput. Mater. 10, 293 (2024)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpsim.kernels import native


def neighbor_sum_reference(
    h: Tensor, x: Tensor, offsets: Tensor, index: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """See the module's docstring; differentiable any number of times, on any device. Rows of equal length, padded."""
    x = x if index is None else x[index]
    if weight is not None:
        h, x = x.new_ones(len(h), 1), (h @ weight) * x
    count = offsets.diff()
    width = int(count.max()) if len(count) else 0
    k = torch.arange(width, device=x.device)
    slots = torch.where(k < count[:, None], offsets[:-1, None] + k, len(h))
    h, x = (torch.cat([a, a.new_zeros(1, a.shape[1])])[slots] for a in (h, x))
    z = h.transpose(1, 2) @ x
    return z if weight is None else z[:, 0]


def neighbor_sum(
    h: Tensor, x: Tensor, offsets: Tensor, index: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """z_i = sum_{m of i} h_m (x) x[index_m], or sum_{m of i} (h_m W) * x[index_m]; differentiable any number of times.

    Args: h (n_edges, K); x (n_rows, C), or (n_edges, C) without index; offsets (n + 1,) int64: the edges of centre i
        are offsets[i] .. offsets[i + 1]; index (n_edges,) int64; weight (K, C): W.
    Returns: z (n, K, C), or (n, C) with a weight.
    """
    if not _native_serves(h, x, weight):
        return neighbor_sum_reference(h, x, offsets, index, weight)
    edges = _Edges(offsets.contiguous(), None if index is None else index.contiguous(), len(h), len(x))
    return _Form.apply("z", edges, h, x, None, weight)


def neighbor_dot_reference(
    z: Tensor, x: Tensor, offsets: Tensor, index: Tensor, weight: Tensor | None = None
) -> Tensor:
    """h_m[k] = sum_c x[index_m, c] z_i[k, c] as plain PyTorch; see `neighbor_dot`."""
    center = torch.repeat_interleave(offsets.diff())
    if weight is not None:
        return (z[center] * x[index]) @ weight.t()
    return (z[center] @ x[index][:, :, None])[:, :, 0]


def neighbor_dot(z: Tensor, x: Tensor, offsets: Tensor, index: Tensor, weight: Tensor | None = None) -> Tensor:
    """h_m[k] = sum_c x[index_m, c] z_i[k, c], or with a weight sum_c w[k, c] x[index_m, c] z_i[c]; any derivatives.

    Args: as of `neighbor_sum`; z (n, K, C), or (n, C) with a weight (K, C). Returns: h (n_edges, K).
    """
    if not _native_serves(z, x, weight):
        return neighbor_dot_reference(z, x, offsets, index, weight)
    edges = _Edges(offsets.contiguous(), index.contiguous(), len(index), len(x))
    return _Form.apply("h", edges, None, x, z, weight)


def _native_serves(*tensors: Tensor | None) -> bool:
    kinds = {(a.dtype, a.device.type) for a in tensors if a is not None}
    return len(kinds) == 1 and kinds <= {(dtype, "cpu") for dtype in native.SUFFIX} and native.library() is not None


@dataclass
class _Edges:
    """What is not differentiated."""

    offsets: Tensor
    index: Tensor | None
    n_edges: int
    n_rows: int


NAMES = {"h": "dot", "x": "spread", "z": "sum", "w": "weight"}  # of the kernels, by the argument they make


class _Form(torch.autograd.Function):
    """The form, differentiated in the argument `of`, as a function of the other ones of h, x, z and w."""

    @staticmethod
    def forward(ctx: Any, of: str, edges: _Edges, *arguments: Tensor | None) -> Tensor:
        given = {name: None if a is None else a.contiguous() for name, a in zip(NAMES, arguments, strict=True)}
        h, x, z, w = given.values()
        n, weighted = len(edges.offsets) - 1, w is not None or of == "w"
        components = next(a.shape[k] for a, k in ((h, 1), (w, 0), (z, 1)) if a is not None)
        channels = next(a.shape[-1] for a in (x, z) if a is not None)
        shape = {
            "h": (edges.n_edges, components),
            "x": (edges.n_rows, channels),
            "z": (n, channels) if weighted else (n, components, channels),
            "w": (components, channels),
        }
        like = next(a for a in given.values() if a is not None)
        out = like.new_empty(shape[of]) if edges.n_edges else like.new_zeros(shape[of])
        if edges.n_edges:
            others = (a for name, a in given.items() if name != of)
            where = (n, edges.offsets, edges.n_rows, edges.index, components, channels)
            native.call(f"neighbor_{NAMES[of]}", like, *where, *others, out)
        ctx.of, ctx.edges = of, edges
        ctx.save_for_backward(*arguments)  # not their contiguous copies, which have no history
        return out

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        given = {**dict(zip(NAMES, ctx.saved_tensors, strict=True)), ctx.of: bar}
        grads = (
            _Form.apply(name, ctx.edges, *({**given, name: None}).values()) if needed else None
            for name, needed in zip(NAMES, ctx.needs_input_grad[2:], strict=True)
        )
        return None, None, *grads
