"""Rows scaled to unit root mean square, times a factor per row, with a double backward in few passes over memory.

    y = f x_c / sqrt(mean(x_c^2) + eps),   x_c = x or x - mean(x), means over the last axis

Layer norm and the normalised queries and keys of attention are this. Left to autograd, the second derivatives that
force training needs take dozens of passes over arrays that do not fit a cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpsim.kernels import native


def scaled_rows_reference(x: Tensor, factor: Tensor | float, center: bool, eps: float) -> Tensor:
    """See the module's docstring. x (..., n), factor (..., 1) or a number; differentiable any number of times."""
    if center:
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * factor


def scaled_rows(x: Tensor, factor: Tensor | float, center: bool, eps: float) -> Tensor:
    """As `scaled_rows_reference`, differentiable twice, by csrc/cpu/rows_kernel.h where there is one."""
    if x.device.type != "cpu" or x.dtype not in native.SUFFIX or native.library() is None:
        return scaled_rows_reference(x, factor, center, eps)
    if not isinstance(factor, Tensor):
        factor = x.new_full((), factor).expand(*x.shape[:-1], 1)
    return _ScaledRows.apply(x, factor, center, eps)


def _layout(x: Tensor, f: Tensor, center: bool, eps: float) -> tuple[Any, ...]:
    """The arguments that all row kernels begin with. Rows of a slice, such as one of q, k, v, are taken as they lie."""
    width = x.shape[-1]
    ld = x.stride(-2) if x.dim() > 1 else width
    strides = [ld]
    for size in reversed(x.shape[1:-1]):
        strides.append(strides[-1] * size)
    if x.stride() != (*reversed(strides), 1)[-x.dim() :]:
        x, ld = x.contiguous(), width
    return x.numel() // width, width, ld, x, f.contiguous(), int(center), eps


class _ScaledRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Tensor, center: bool, eps: float) -> Tensor:
        y = x.new_empty(x.shape)
        native.call("rows_forward", x, *_layout(x, f, center, eps), y)
        ctx.center, ctx.eps = center, eps
        ctx.save_for_backward(x, f)
        return y

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, ...]:
        x, f = ctx.saved_tensors
        x_bar, f_bar = _ScaledRowsBackward.apply(x, f, b, ctx.center, ctx.eps, ctx.needs_input_grad[1])
        return x_bar, f_bar, None, None


class _ScaledRowsBackward(torch.autograd.Function):
    """With n = r x_c: x_bar = f S(b), S(b) = r P(b - n <n, b>), P the centring, f_bar = sum(n b); functions of x, f, b.

    Of u . x_bar + t f_bar, with d(n) = S(d) and d(r) = -r^2 <n, d> for a change d of x:
        grad_f = sum(u S(b)),  grad_b = f S(u) + t n,
        grad_x = -f r^2 {n (<u, b> - 3 <u, n> <n, b>) + <n, b> u + <u, n> b} + t S(b)
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, f: Tensor, b: Tensor, center: bool, eps: float, factor: bool
    ) -> tuple[Tensor, Tensor | None]:
        b = b.contiguous()
        x_bar, f_bar = x.new_empty(x.shape), x.new_empty(f.shape) if factor else None
        native.call("rows_backward", x, *_layout(x, f, center, eps), b, x_bar, f_bar)
        ctx.center, ctx.eps, ctx.factor = center, eps, factor
        ctx.save_for_backward(x, f, b)
        return x_bar, f_bar

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, u: Tensor, t: Tensor | None) -> tuple[Tensor | None, ...]:
        x, f, b = ctx.saved_tensors
        grad_x, grad_b = x.new_empty(x.shape), torch.empty_like(b)
        grad_f = x.new_empty(f.shape) if ctx.factor else None
        t = t.contiguous() if ctx.factor and t is not None else None
        layout = _layout(x, f, ctx.center, ctx.eps)
        native.call("rows_backward_twice", x, *layout, b, u.contiguous(), t, grad_x, grad_f, grad_b)
        return grad_x, grad_f, grad_b, None, None, None
