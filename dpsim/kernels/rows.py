"""Rows scaled to unit root mean square, times a factor per row, with a double backward in few passes over memory.

    y = f x_c / sqrt(mean(x_c^2) + eps),   x_c = x or x - mean(x), means over the last axis

Layer norm and the normalised queries and keys of attention are this. Left to autograd, the second derivatives that
force training needs take dozens of passes over arrays that do not fit a cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scaled_rows_reference(x: Tensor, factor: Tensor | float, center: bool, eps: float) -> Tensor:
    """See the module's docstring. x (..., n), factor (..., 1) or a number; differentiable any number of times."""
    if center:
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * factor


def scaled_rows(x: Tensor, factor: Tensor | float, center: bool, eps: float) -> Tensor:
    """As `scaled_rows_reference`, differentiable twice."""
    f = factor if isinstance(factor, Tensor) else x.new_full((1,), factor)
    return _ScaledRows.apply(x, f, center, eps)


def _mean(a: Tensor, b: Tensor) -> Tensor:
    """<a, b>, the mean of a b over each row, as (..., 1)."""
    return torch.linalg.vecdot(a, b)[..., None] / a.shape[-1]


def _centered(x: Tensor, center: bool) -> Tensor:
    return x - x.mean(-1, keepdim=True) if center else x


class _ScaledRows(torch.autograd.Function):
    """With n = x_c r, r = 1/sqrt(...): y = f n."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Tensor, center: bool, eps: float) -> Tensor:
        c = _centered(x, center)
        r = torch.rsqrt(_mean(c, c) + eps)
        ctx.center, ctx.eps = center, eps
        ctx.save_for_backward(x, f, c, r)
        return c * (r * f)

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, ...]:
        x, f, c, r = ctx.saved_tensors
        x_bar, f_bar = _ScaledRowsBackward.apply(x, f, c, r, b, ctx.center, ctx.needs_input_grad[1])
        return x_bar, f_bar, None, None


class _ScaledRowsBackward(torch.autograd.Function):
    """x_bar = f S(b), S(b) = r P(b - n <n, b>), P the centring, and f_bar = sum(n b), as functions of x, f and b."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, f: Tensor, c: Tensor, r: Tensor, b: Tensor, center: bool, factor: bool
    ) -> tuple[Tensor, Tensor | None]:
        nb = _mean(c, b) * r
        ctx.center, ctx.factor = center, factor
        ctx.save_for_backward(f, c, r, b, nb)
        x_bar = torch.addcmul(_centered(b, center), c, r * nb, value=-1).mul_(r * f)
        return x_bar, nb * x.shape[-1] if factor else None

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, u: Tensor, t: Tensor | None) -> tuple[Tensor | None, ...]:
        # Of u . x_bar + t f_bar, with d(n) = S(d) and d(r) = -r^2 <n, d> for a change d of x:
        #   grad_f = sum(u S(b)),  grad_b = f S(u) + t n,
        #   grad_x = -f r^2 {n (<u, b> - 3 <u, n> <n, b>) + <n, b> u + <u, n> b} + t S(b)
        f, c, r, b, nb = ctx.saved_tensors
        u, b = _centered(u, ctx.center), _centered(b, ctx.center)
        un, ub = _mean(u, c) * r, _mean(u, b)
        of_n, of_u, of_b = -f * r * r * (ub - 3 * un * nb), -f * r * r * nb, -f * r * r * un
        t_n = -f * r * un
        if ctx.factor and t is not None:
            of_n, of_b, t_n = of_n - t * r * nb, of_b + t * r, t_n + t
        grad_b = torch.addcmul(u * (f * r), c, t_n * r)
        grad_x = (c * (of_n * r)).addcmul_(u, of_u).addcmul_(b, of_b)
        grad_f = c.shape[-1] * r * (ub - un * nb) if ctx.factor else None
        return grad_x, grad_f, None, None, grad_b, None, None
