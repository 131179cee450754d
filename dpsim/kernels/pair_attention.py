"""Attention among the neighbours of each atom (DPA-2): the pairs of neighbours j, k of an atom i, and heads.

    1. l_jk = (g_j B)_head . g_k                                    B = Q K^T / sqrt(hidden), (d, heads d)
    2. x_jk = shift w_j w_k + l_jk m_jk                             m_jk = u_j.u_k with the gate, else w_j w_k; u = w h
    3. y_jk = exp(x_jk) / (sum_k exp(x_jk) + n_empty),  a_jk = y_jk u_j.u_k / sqrt(3)
    4. r_j  = sum_heads (sum_k a_jk v_k) C_head                     v = g, h, or [g, h]; C (heads n_values, n_out)

    g (n_edges, d), h (n_edges, 3)    features and vectors of the pairs ij      w    switch, or 1 where not smooth
    B, C    the nets of all heads, multiplied: queries meet g itself, and what is summed is g itself
    n_empty = n_slots - neighbours of i: slots of the softmax that hold x = 0; n_slots = 0: there are none

Nothing that is as large as all pairs of neighbours is kept: both backward passes evaluate it again, atom by atom. With
a bar for gradients and N = r_bar C^T, a_bar = N v^T:

    backward        x_bar = y (a_bar b - <y, a_bar b>), b = u_j.u_k / sqrt(3),  l_bar = x_bar m,
                    g_bar = (l_bar g) B^T + l_bar^T (g B) + a^T N,  B_bar = g^T (l_bar g),  C_bar = (a v)^T r_bar
                    and, through m, b and the shift, the gradients in u and w
    backward twice  of <t, gradients in g, h, w>, which is <r_bar, r.> with the dot for the derivative along t; the same
                    rules for r. = ((a. v) + (a v.)) C,  a. = y. b + y b.,  y. = y (x. - <y, x.>),  ...

Source: Zhang et al., npj Comput. Mater. 10, 293 (2024), Eqs. 30-36; 1/sqrt(3) as in DeePMD-kit 3.2.0.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dpsim.kernels import native
from dpsim.kernels.chunked import chunked

CHUNK = 2**17  # attention weights at a time, where the reference works in chunks
NEVER = -1e30  # x of an empty slot that does not count


@dataclass(frozen=True)
class Attention:
    """What is configured: the number of heads, the gate, what is gathered (values), the softmax."""

    heads: int
    gate: bool
    of_g: bool
    of_h: bool
    shift: float
    n_slots: int


def pair_attention_reference(
    g: Tensor, h: Tensor, w: Tensor, query_key: Tensor, out: Tensor, offsets: Tensor, kind: Attention
) -> Tensor:
    """See the module's docstring; differentiable any number of times, on any device."""
    slots = _Slots(offsets)
    return slots.edges(_of_slots(kind, slots.fill(g), slots.fill(h), slots.fill(w), query_key, out))


def pair_attention(
    g: Tensor, h: Tensor, w: Tensor, query_key: Tensor, out: Tensor, offsets: Tensor, kind: Attention
) -> Tensor:
    """r (n_edges, n_out) of the module's docstring, differentiable as force training needs it, and twice in g, h, w.

    Args: g (n_edges, d), h (n_edges, 3), w (n_edges, 1), sorted by atom: the edges of atom i are offsets[i] ..
        offsets[i + 1], offsets (n + 1,) int64; query_key (d, heads d); out (heads n_values, n_out).
    """
    inputs = (g, h, w, query_key, out)
    alike = all(x.dtype == g.dtype and x.device.type == "cpu" for x in inputs)
    if alike and g.dtype in native.SUFFIX and native.library() is not None:
        return _Attention.apply(*(x.contiguous() for x in inputs), _Problem(offsets.contiguous(), kind))
    slots = _Slots(offsets)
    rows = [slots.fill(x) for x in (g, h, w)]
    return slots.edges(chunked(partial(_of_slots, kind), rows, inputs[3:], CHUNK // (kind.heads * slots.width**2)))


class _Slots:
    """The edges of each atom in a row of `width` slots, zero where a row has fewer."""

    def __init__(self, offsets: Tensor):
        count = offsets.diff()
        self.n, self.width = len(count), max(1, int(count.max())) if len(count) else 1
        shift = self.width * torch.arange(self.n, device=count.device) - offsets[:-1]
        self.place = torch.arange(int(offsets[-1]), device=count.device) + shift.repeat_interleave(count)

    def fill(self, x: Tensor) -> Tensor:
        y = x.new_zeros(self.n * self.width, x.shape[1])
        return y.index_copy(0, self.place, x).view(self.n, self.width, x.shape[1])

    def edges(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, self.place)


def _of_slots(kind: Attention, g: Tensor, h: Tensor, w: Tensor, query_key: Tensor, out: Tensor) -> Tensor:
    """r (n, p, n_out) of atoms with p slots. Args: g (n, p, d), h (n, p, 3), w (n, p, 1)."""
    (n, p, d), heads = g.shape, kind.heads
    queries = (g @ query_key).view(n, p, heads, d).transpose(1, 2).reshape(n, heads * p, d)
    logits = (queries @ g.transpose(1, 2)).view(n, heads, p, p)  # 1.
    u = w * h
    uu, ww = ((x @ x.transpose(1, 2))[:, None] for x in (u, w))
    x = torch.addcmul(kind.shift * ww, logits, uu if kind.gate else ww)  # 2.
    weights = softmax_of_slots(x, w[:, None].transpose(2, 3), kind.n_slots) * (uu * 3**-0.5)  # 3.
    values = torch.cat([g] * kind.of_g + [h] * kind.of_h, -1)
    seen = (weights.view(n, heads * p, p) @ values).view(n, heads, p, -1)
    return seen.transpose(1, 2).flatten(2) @ out  # 4.


def softmax_of_slots(x: Tensor, w: Tensor, n_slots: int) -> Tensor:
    """Softmax over the last axis, the slots of an atom, and others that hold x = 0, up to n_slots.

    n_slots = 0: over the slots that are full, where w, as long as x, is not 0.
    """
    if n_slots:
        return smooth_softmax(x, n_slots - x.shape[-1])
    return torch.softmax(x.masked_fill(w == 0, NEVER), -1)


def smooth_softmax(logits: Tensor, n_more: int) -> Tensor:
    """Softmax over the last axis and `n_more` entries of logit 0 beside it, which are not returned."""
    return _SmoothSoftmax.apply(logits, n_more)


class _SmoothSoftmax(torch.autograd.Function):
    """The other entries have no gradient, so it is that of a softmax, x_bar = y (y_bar - y.y_bar), of a smaller y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, n_more: int) -> Tensor:
        y = torch.softmax(x, -1)
        one_over_z = y[..., :1] * torch.exp(-x[..., :1])  # y = exp(x)/Z; n_more exp(0) join the sum Z
        y /= 1 + n_more * one_over_z
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, y_bar: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch._softmax_backward_data(y_bar, y, -1, y.dtype), None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *arrays, problem = inputs
        r = arrays[0].new_empty(len(arrays[0]), arrays[4].shape[1])
        native.call("pair_attention_forward", r, problem.with_arrays(arrays), r)
        ctx.problem = problem
        ctx.save_for_backward(*arrays)
        return r

    @staticmethod
    def backward(ctx: Any, r_bar: Tensor) -> tuple[Tensor | None, ...]:
        arrays, problem, wanted = ctx.saved_tensors, ctx.problem, ctx.needs_input_grad[:5]
        r_bar = r_bar.contiguous()
        if torch.is_grad_enabled():  # energy to edges, to be differentiated again in _Backward
            return *_Backward.apply(*arrays, r_bar, problem, wanted[:3]), None, None, None
        grads = _where(wanted, arrays)
        native.call("pair_attention_backward", r_bar, problem.with_arrays(arrays), r_bar, _pointers(grads))
        return *grads, None


class _Backward(torch.autograd.Function):
    """The gradients in g, h and w, as functions of all arrays and of r_bar: "backward twice" of the docstring."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor | None, ...]:
        *arrays, r_bar, problem, wanted = inputs
        grads = _where((*wanted, False, False), arrays)
        native.call("pair_attention_backward", r_bar, problem.with_arrays(arrays), r_bar, _pointers(grads))
        ctx.problem = problem
        ctx.save_for_backward(*arrays, r_bar)
        ctx.set_materialize_grads(False)
        return tuple(grads[:3])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *t: Tensor | None) -> tuple[Tensor | None, ...]:
        *arrays, r_bar = ctx.saved_tensors
        tangents = [None if x is None else x.contiguous() for x in t]
        grads, r_dot = _where(ctx.needs_input_grad[:5], arrays), torch.empty_like(r_bar)
        bars = (r_bar, _pointers([*tangents, None, None]), _pointers(grads), r_dot)
        native.call("pair_attention_backward_twice", r_bar, ctx.problem.with_arrays(arrays), *bars)
        return *grads, r_dot, None, None


class _Arrays(ctypes.Structure):
    """dpsim_pair_attention_arrays of csrc/include/dpsim.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("g", "h", "w", "query_key", "out")]


class _PairAttention(ctypes.Structure):
    """dpsim_pair_attention."""

    _fields_ = [
        ("n_centers", ctypes.c_int64),
        ("offsets", ctypes.c_void_p),
        ("n_slots", ctypes.c_int64),
        *[(name, ctypes.c_int32) for name in ("heads", "width", "n_out", "of_g", "of_h", "gate")],
        ("shift", ctypes.c_double),
        ("arrays", _Arrays),
    ]


@dataclass
class _Problem:
    """What is not differentiated."""

    offsets: Tensor
    kind: Attention

    def with_arrays(self, arrays: Any) -> Any:
        """A pointer to the dpsim_pair_attention of this problem and g, h, w, query_key, out."""
        kind, where = self.kind, (len(self.offsets) - 1, self.offsets.data_ptr(), self.kind.n_slots)
        widths = (kind.heads, arrays[0].shape[1], arrays[4].shape[1])
        flags = (kind.of_g, kind.of_h, kind.gate)
        return ctypes.byref(_PairAttention(*where, *widths, *flags, kind.shift, _arrays(arrays)))


def _arrays(tensors: Any) -> _Arrays:
    return _Arrays(*(None if x is None else x.data_ptr() for x in tensors))


def _pointers(tensors: Any) -> Any:
    return ctypes.byref(_arrays(tensors))


def _where(wanted: Any, arrays: Any) -> list[Tensor | None]:
    """Tensors to write gradients to, None where none is wanted."""
    return [torch.empty_like(x) if want else None for want, x in zip(wanted, arrays, strict=True)]
