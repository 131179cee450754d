"""One update of the edges of a line graph, of any order, with the messages that its vertices receive (DPA-3).

Edges m run from vertex alpha to vertex beta. Order 1: vertices are atoms, edges pairs ij; order 2: pairs ij and ik,
and angles; order 3: angles and dihedrals. One matrix W holds two one-layer nets, phi_c in its first C columns and
phi_s in the other S; their parts that act on the vertices, and biases, are in p and q, computed once per vertex.

    1. z_m  = e_m W + p[alpha_m] + q[beta_m]                the arguments of phi_c and phi_s, Eqs. 10, 11
    2. u_a  = sum_{m of a} switch_m act(z_m[:C])            the messages to vertex a, summed, Eq. 9
    3. e'_m = e_m + step * act(z_m[C:])                     the residual update of the edge, Eqs. 8, 11

    e       e^(k)           features of edges      switch  w_{alpha beta}, Eqs. 12-14
    W, p, q phi_c, phi_s    z before act           step    delta_s, Eq. 8
    u       u_alpha N_m^alpha_k, to be scaled and added to the vertex by the caller, Eqs. 7, 9

Force training needs, with a bar for a gradient and g = z_bar:

    backward        g_c = switch act'(z_c) u_bar,  g_s = step act'(z_s) e'_bar
                    e_bar = e'_bar + g W^T,  p_bar, q_bar = sums of g over the edges of a vertex,
                    switch_bar = <act(z_c), u_bar>,  W_bar = e^T g,  step_bar = sum_m act(z_s) e'_bar
    backward twice  of <t_e, e_bar> + <t_p, p_bar> + <t_q, q_bar> + <t_w, switch_bar>, which is <u_bar, u.> +
                    <e'_bar, e'.> with the dot for a derivative along the tangents t; see `_Backward`

Source: Zhang et al., DPA3 (arXiv:2506.01686), Eqs. 7-11, 13-14. Names of order 1 and 2 in the code of DeePMD-kit:
node_edge_message, edge_self, edge_angle_message, angle_self.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dpsim.kernels import native
from dpsim.kernels.activation import activation, silut_constants

CHUNK_BYTES = 64 * 2**20  # of z, where the reference works in chunks


def line_graph_update_reference(
    e: Tensor,
    weight: Tensor,
    p: Tensor,
    q: Tensor,
    switch: Tensor,
    step: Tensor,
    offsets: Tensor,
    beta: Tensor,
    act: str,
    n_conv: int,
) -> tuple[Tensor, Tensor | None]:
    """See the module's docstring; differentiable any number of times, on any device, for any activation."""
    alpha = torch.repeat_interleave(offsets.diff(), output_size=len(e))
    z = e @ weight + p[alpha] + q[beta]  # 1.
    y = activation(act)(z)
    u = e.new_zeros(len(p), n_conv).index_add(0, alpha, switch[:, None] * y[:, :n_conv])  # 2.
    return u, e + step * y[:, n_conv:] if weight.shape[1] > n_conv else None  # 3.


def line_graph_update(
    e: Tensor,
    weight: Tensor,
    p: Tensor,
    q: Tensor,
    switch: Tensor,
    step: Tensor,
    offsets: Tensor,
    beta: Tensor,
    act: str,
    n_conv: int,
    second_order: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The messages to the vertices of a line graph, and its updated edges (module's docstring), never keeping z.

    Args: e (n_edges, d), sorted by alpha: the edges of vertex a are offsets[a] .. offsets[a + 1], offsets
        (n_alpha + 1,) int64; beta (n_edges,) int64; weight (d, C + S), S = d or 0; p (n_alpha, C + S), q (n_beta,
        C + S), switch (n_edges,), step (S,); act names the activation; n_conv is C, 0 if no messages are wanted.
        second_order: differentiable any number of times, not only as force training needs it.
    Returns: u (n_alpha, C), e_new (n_edges, S) or None if S = 0.
    """
    inputs = (e, weight, p, q, switch, step)
    if not second_order and _native_serves(inputs, act):
        kind, threshold = _activation(act)
        edges = _Edges(offsets.contiguous(), beta.contiguous(), n_conv, kind, threshold)
        u, e_new = _Update.apply(*(x.contiguous() for x in inputs), edges)
        return u, e_new
    if second_order or weight.requires_grad or len(e) * weight.shape[1] * e.element_size() <= CHUNK_BYTES:
        return line_graph_update_reference(*inputs, offsets, beta, act, n_conv)
    return _in_chunks(e, weight, p, q, switch, step, offsets, beta, act, n_conv)


def _in_chunks(
    e: Tensor,
    weight: Tensor,
    p: Tensor,
    q: Tensor,
    switch: Tensor,
    step: Tensor,
    offsets: Tensor,
    beta: Tensor,
    act: str,
    n_conv: int,
) -> tuple[Tensor, Tensor | None]:
    """The reference for some vertices at a time, whose edges are evaluated again when they are differentiated."""
    rows = max(1, CHUNK_BYTES // (weight.shape[1] * e.element_size()))
    wanted = torch.arange(0, len(e), rows, device=e.device)
    cuts = torch.unique(torch.cat([torch.searchsorted(offsets, wanted), offsets.new_tensor([len(p)])]))
    parts = []
    for (a, b), (first, last) in zip(pairwise(cuts.tolist()), pairwise(offsets[cuts].tolist()), strict=True):
        own = (e[first:last], weight, p[a:b], q, switch[first:last], step)
        where = (offsets[a : b + 1] - first, beta[first:last])
        parts.append(checkpoint(line_graph_update_reference, *own, *where, act, n_conv, use_reentrant=False))
    u = torch.cat([u for u, _ in parts])
    return u, torch.cat([e_new for _, e_new in parts]) if weight.shape[1] > n_conv else None


class _Update(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor | None]:
        *arrays, edges = inputs
        e, weight, p, *_ = arrays
        u = e.new_empty(len(p), edges.n_conv)
        e_new = torch.empty_like(e) if weight.shape[1] > edges.n_conv else None
        native.call("line_graph_forward", e, edges.with_arrays(arrays), u, e_new)
        ctx.edges = edges
        ctx.save_for_backward(*arrays)
        ctx.set_materialize_grads(False)
        return u, e_new

    @staticmethod
    def backward(ctx: Any, u_bar: Tensor | None, e_new_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        arrays, edges, wanted = ctx.saved_tensors, ctx.edges, ctx.needs_input_grad[:6]
        u_bar, e_new_bar = edges.complete(arrays, u_bar, e_new_bar)
        if torch.is_grad_enabled():  # energy to edges, to be differentiated again in _Backward
            e_bar, p_bar, q_bar, switch_bar = _Backward.apply(*arrays, u_bar, e_new_bar, edges, wanted)
            return e_bar, None, p_bar, q_bar, switch_bar, None, None
        grads = _where(wanted, arrays)
        native.call("line_graph_backward", arrays[0], edges.with_arrays(arrays), u_bar, e_new_bar, _pointers(grads))
        return *grads, None


class _Backward(torch.autograd.Function):
    """e_bar, p_bar, q_bar, switch_bar as functions of what _Update takes and of u_bar and e'_bar.

    With t their tangents, zdot = t_e W + t_p[alpha] + t_q[beta] and a dot for the derivative along t, what is to be
    differentiated is <u_bar, udot> + <e'_bar, e'dot>:
        udot = sum_m t_w act + switch act' zdot_c,              e'dot = t_e + step act' zdot_s,
        g_c = u_bar (t_w act' + switch act'' zdot_c),           g_s = e'_bar step act'' zdot_s,
        h_c = u_bar switch act',                                h_s = e'_bar step act'   (gradients in z and zdot),
        grad_e = g W^T,   grad_p, grad_q = sums of g,           grad_W = e^T g + t_e^T h,
        grad_switch = <u_bar, act' zdot_c>,                     grad_step = sum_m e'_bar act' zdot_s
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor | None, ...]:
        *arrays, u_bar, e_new_bar, edges, wanted = inputs
        e_, _, p_, q_, switch_, _ = wanted
        grads = _where((e_, False, p_, q_, switch_, False), arrays)
        native.call("line_graph_backward", arrays[0], edges.with_arrays(arrays), u_bar, e_new_bar, _pointers(grads))
        ctx.edges = edges
        ctx.save_for_backward(*arrays, u_bar, e_new_bar)
        ctx.set_materialize_grads(False)
        return grads[0], grads[2], grads[3], grads[4]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *t: Tensor | None) -> tuple[Tensor | None, ...]:
        *arrays, u_bar, e_new_bar = ctx.saved_tensors
        t_e, t_p, t_q, t_switch = (None if x is None else x.contiguous() for x in t)
        tangents = _pointers([t_e, None, t_p, t_q, t_switch, None])
        grads = _where(ctx.needs_input_grad[:6], arrays)
        u_dot, e_new_dot = (None if x is None else torch.empty_like(x) for x in (u_bar, e_new_bar))
        graph = ctx.edges.with_arrays(arrays)
        bars = (u_bar, e_new_bar, tangents, _pointers(grads), u_dot, e_new_dot)
        native.call("line_graph_backward_twice", arrays[0], graph, *bars)
        return *grads, u_dot, e_new_dot, None, None


class _Arrays(ctypes.Structure):
    """dpsim_line_graph_arrays of csrc/include/dpsim.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("e", "weight", "p", "q", "sw", "step")]


class _LineGraph(ctypes.Structure):
    """dpsim_line_graph."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("n_alpha", "n_beta")],
        *[(name, ctypes.c_void_p) for name in ("offsets", "beta")],
        *[(name, ctypes.c_int32) for name in ("n_in", "n_conv", "n_self", "activation")],
        ("threshold", ctypes.c_double),
        ("arrays", _Arrays),
    ]


@dataclass
class _Edges:
    """What is not differentiated."""

    offsets: Tensor
    beta: Tensor
    n_conv: int
    activation: int
    threshold: float

    def with_arrays(self, arrays: Any) -> Any:
        """A pointer to the dpsim_line_graph of these edges and e, weight, p, q, switch, step."""
        e, weight, p, q, *_ = arrays
        n_in, width = weight.shape
        where = (len(p), len(q), self.offsets.data_ptr(), self.beta.data_ptr(), n_in, self.n_conv, width - self.n_conv)
        return ctypes.byref(_LineGraph(*where, self.activation, self.threshold, _arrays(arrays)))

    def complete(self, arrays: Any, u_bar: Tensor | None, e_new_bar: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Gradients of u and e', zero where nothing depends on them."""
        e, weight, p, *_ = arrays
        u_bar = e.new_zeros(len(p), self.n_conv) if u_bar is None else u_bar.contiguous()
        if weight.shape[1] == self.n_conv:
            return u_bar, None
        return u_bar, torch.zeros_like(e) if e_new_bar is None else e_new_bar.contiguous()


def _arrays(tensors: Any) -> _Arrays:
    return _Arrays(*(None if x is None else x.data_ptr() for x in tensors))


def _pointers(tensors: Any) -> Any:
    return ctypes.byref(_arrays(tensors))


def _where(wanted: Any, arrays: Any) -> list[Tensor | None]:
    """Tensors to write gradients to, None where none is wanted."""
    return [torch.empty_like(x) if want else None for want, x in zip(wanted, arrays, strict=True)]


def _activation(name: str) -> tuple[int, float]:
    """dpsim_activation, and the threshold of silut; -1 for others."""
    if name.startswith("silut"):
        return 2, silut_constants(name)[0]
    return {"tanh": 0, "silu": 1}.get(name, -1), math.inf


def _native_serves(arrays: Any, act: str) -> bool:
    e = arrays[0]
    alike = all(x.dtype == e.dtype and x.device == e.device for x in arrays)
    known = alike and e.device.type == "cpu" and e.dtype in native.SUFFIX and _activation(act)[0] >= 0
    return known and native.library() is not None
