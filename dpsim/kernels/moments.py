"""Moments of the neighbours of an atom: their features x, each times a vector h (3,), summed.

    y_i = sum_{m of i} h_m (x) x[index_m]                           (n, 3, d)

This and its derivatives of any order are parts of one form, linear in each of three,
    T(h, x, y) = sum_m h_m . (y_i x[index_m])
    moments_y = dT/dy = sum_{m of i} h_m (x) x[index_m]
    moments_h = dT/dh = y_i x[index_m]                              (n_edges, 3)
    moments_x = dT/dx = sum_{m: index_m = j} h_m y_i                (n_x, d)
so differentiating one of them gives the other two: the kernel (csrc/cpu/moments_kernel.h) serves forces, training and
Hessians alike, and never holds features for each edge.
"""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dpsim.kernels import native


class Edges:
    """Edges sorted by centre, those of centre i being offsets[i] .. [i + 1], and the rows index (n_edges,) they read.

    offsets (n + 1,), index: int64; n_rows: how many rows there are to read.
    """

    def __init__(self, offsets: Tensor, index: Tensor, n_rows: int):
        self.offsets, self.index, self.n_rows = offsets.contiguous(), index.contiguous(), n_rows
        self.n = len(offsets) - 1

    @cached_property
    def center(self) -> Tensor:
        """(n_edges,): where each edge starts."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=len(self.index))

    @cached_property
    def struct(self) -> Any:
        """A pointer to the dpsim_moments of these edges."""
        arrived = torch.cumsum(torch.bincount(self.index, minlength=self.n_rows), 0)
        self._arrivals = torch.argsort(self.index, stable=True)
        self._arrived = torch.cat([arrived.new_zeros(1), arrived])
        arrays = (self.offsets, self.index, self.center, self._arrived, self._arrivals)
        return ctypes.byref(_Moments(self.n, self.n_rows, len(self.index), *(x.data_ptr() for x in arrays)))


def moments_reference(h: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """See the module's docstring. h (n_edges, 3), x (n_x, d) -> y (n, 3, d); differentiable any number of times."""
    of_edges = h[:, :, None] * x.index_select(0, edges.index)[:, None]
    return h.new_zeros(edges.n, 3, x.shape[1]).index_add(0, edges.center, of_edges)


def moments(h: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """As `moments_reference`, by the kernel where there is one, differentiable as often."""
    served = h.device.type == "cpu" and h.dtype == x.dtype and h.dtype in native.SUFFIX
    if not served or native.library() is None:
        return moments_reference(h, x, edges)
    return _Form.apply(edges, "y", h, x)


class _Form(torch.autograd.Function):
    """dT in one of h, x, y, by name; the other two are given, in this order."""

    @staticmethod
    def forward(ctx: Any, edges: Edges, wanted: str, a: Tensor, b: Tensor) -> Tensor:
        a, b = a.contiguous(), b.contiguous()
        d = b.shape[-1]  # of x or y: h comes first
        out = a.new_empty({"h": (len(edges.index), 3), "x": (edges.n_rows, d), "y": (edges.n, 3, d)}[wanted])
        native.call(f"moments_{wanted}", a, edges.struct, d, a, b, out)
        ctx.edges, ctx.wanted = edges, wanted
        ctx.save_for_backward(a, b)
        return out

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        names = [name for name in "hxy" if name != ctx.wanted]
        given = dict(zip(names, ctx.saved_tensors, strict=True)) | {ctx.wanted: bar}
        grads = [
            _Form.apply(ctx.edges, name, *(given[other] for other in "hxy" if other != name)) if needed else None
            for name, needed in zip(names, ctx.needs_input_grad[2:], strict=True)
        ]
        return None, None, *grads


class _Moments(ctypes.Structure):
    """dpsim_moments of csrc/include/dpsim.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("n", "n_x", "n_edges")] + [
        (name, ctypes.c_void_p) for name in ("offsets", "index", "center", "arrived", "arrivals")
    ]
