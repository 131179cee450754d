"""The environment matrix of edges: what a two-body descriptor sees of a neighbour.

    r = |edge_vec|, v = clamp((rcut - r) / (rcut - rcut_smth), 0, 1)
    w(r) = v^3 (10 - 15 v + 6 v^2)                            switch: 1 below rcut_smth, 0 beyond rcut, C2
    R = (s, s x/r', s y/r', s z/r'),  s = w / r',  r' = r + protection

v = 1 - u of the papers' u: in this form w keeps its relative accuracy up to rcut, in single precision too.
`environment_reference` is those lines; `environment` calls csrc/cpu/environment_kernel.h for the same numbers.
Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 10-11.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from dpsim.errors import ConfigError
from dpsim.kernels import native


def environment_reference(
    edge_vec: Tensor, rcut: float, rcut_smth: float, protection: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Environment rows and switch of edges, in plain PyTorch: any device and dtype, any number of derivatives.

    Args: edge_vec (n, 3) A; rcut_smth < rcut A; protection A, added to r in the denominators.
    Returns: R (n, 4) 1/A and w (n,).
    """
    # 1. distance
    r = torch.linalg.vector_norm(edge_vec, dim=1)
    # 2. switch
    v = torch.clamp((rcut - r) / (rcut - rcut_smth), 0, 1)
    w = v**3 * (10 - 15 * v + 6 * v * v)
    # 3. s = w / r', q = w / r'^2
    rp = r + protection
    s = w / rp
    return torch.cat([s[:, None], (s / rp)[:, None] * edge_vec], 1), w


def exponential_environment(edge_vec: Tensor, rcut_smth: float, protection: float = 0.0) -> tuple[Tensor, Tensor]:
    """The same with DPA-3's switch w = exp(-exp(20 (r / rcut_smth - 1))), which is small, not 0, at a cutoff.

    It is 1/e at rcut_smth, and 8e-7 at 6 A with rcut_smth = 5.3 A. Differentiable any number of times.
    Source: DPA-3, arXiv 2506.01686, Eq. 12.
    """
    r = torch.linalg.vector_norm(edge_vec, dim=1)
    w = torch.exp(-torch.exp(20 * (r / rcut_smth - 1)))
    rp = r + protection
    s = w / rp
    return torch.cat([s[:, None], (s / rp)[:, None] * edge_vec], 1), w


def environment(
    edge_vec: Tensor, rcut: float, rcut_smth: float, protection: float = 0.0, *, second_order: bool = False
) -> tuple[Tensor, Tensor]:
    """As `environment_reference`, by the native kernel where there is one (CPU, float32 and float64).

    Gradients can be differentiated again in what they were contracted with, as force training does, to any order.
    Second derivatives in edge_vec itself (Hessians) need `second_order=True`, which selects the reference.

    Raises: ConfigError for cutoffs that are no switch; NativeError if someone asks for second derivatives in edge_vec
    of a result without `second_order`.
    """
    if not (0 <= rcut_smth < rcut < float("inf")) or not protection >= 0:
        raise ConfigError(
            f"`rcut_smth, rcut, protection` are {rcut_smth}, {rcut}, {protection}; expected 0 <= rcut_smth < rcut and "
            "protection >= 0. Correct the descriptor's settings."
        )
    usable = edge_vec.device.type == "cpu" and edge_vec.dtype in native.SUFFIX and not second_order
    if not usable or native.library() is None:
        return environment_reference(edge_vec, rcut, rcut_smth, protection)
    env, w = _Environment.apply(edge_vec.contiguous(), _Switch(rcut, rcut_smth, protection))
    return env, w


class _Switch(NamedTuple):
    rcut: float
    rcut_smth: float
    protection: float


def _call(name: str, edge_vec: Tensor, switch: _Switch, *arrays: Tensor | None) -> None:
    """Call dpsim_<name> in the precision of edge_vec. Threads are worth their start only for many edges."""
    n = len(edge_vec)
    native.call(name, edge_vec, n, edge_vec, *switch, *arrays, threads=None if n >= 65536 else 1)


class _Environment(torch.autograd.Function):
    """(R, w) of edge_vec."""

    @staticmethod
    def forward(ctx: FunctionCtx, edge_vec: Tensor, switch: _Switch) -> tuple[Tensor, Tensor]:
        env, w = edge_vec.new_empty(len(edge_vec), 4), edge_vec.new_empty(len(edge_vec))
        _call("environment", edge_vec, switch, env, w, None, None)
        _remember(ctx, edge_vec, switch)
        return env, w

    @staticmethod
    def backward(ctx: Any, grad_env: Tensor | None, grad_w: Tensor | None) -> tuple[Tensor | None, None]:
        return _Vjp.apply(_first_order_only(ctx.saved_tensors[0]), grad_env, grad_w, ctx.switch), None


class _Vjp(torch.autograd.Function):
    """grad_edge = grad_env . dR/d(edge_vec) + grad_w dw/d(edge_vec): linear in grad_env and grad_w."""

    @staticmethod
    def forward(ctx: Any, edge_vec: Tensor, grad_env: Tensor | None, grad_w: Tensor | None, switch: _Switch) -> Tensor:
        grad_edge = torch.empty_like(edge_vec)
        _call("environment_vjp", edge_vec, switch, _contiguous(grad_env), _contiguous(grad_w), grad_edge)
        _remember(ctx, edge_vec, switch)
        ctx.given = grad_env is not None, grad_w is not None
        return grad_edge

    @staticmethod
    def backward(ctx: Any, t_edge: Tensor | None) -> tuple[Tensor | None, ...]:
        if t_edge is None:
            return None, None, None, None
        t_env, t_w = _Jvp.apply(_first_order_only(ctx.saved_tensors[0]), t_edge, ctx.switch)
        return None, t_env if ctx.given[0] else None, t_w if ctx.given[1] else None, None


class _Jvp(torch.autograd.Function):
    """t_env = dR/d(edge_vec) t_edge and t_w = dw/d(edge_vec) t_edge: linear in t_edge, the transpose of _Vjp."""

    @staticmethod
    def forward(ctx: FunctionCtx, edge_vec: Tensor, t_edge: Tensor, switch: _Switch) -> tuple[Tensor, Tensor]:
        t_env, t_w = edge_vec.new_empty(len(edge_vec), 4), edge_vec.new_empty(len(edge_vec))
        _call("environment_jvp", edge_vec, switch, _contiguous(t_edge), t_env, t_w)
        _remember(ctx, edge_vec, switch)
        return t_env, t_w

    @staticmethod
    def backward(ctx: Any, grad_env: Tensor | None, grad_w: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, _Vjp.apply(_first_order_only(ctx.saved_tensors[0]), grad_env, grad_w, ctx.switch), None


class _FirstOrderOnly(torch.autograd.Function):
    """edge_vec itself, for the derivatives: reached by a backward pass only if second derivatives are asked for."""

    @staticmethod
    def forward(ctx: FunctionCtx, edge_vec: Tensor) -> Tensor:
        return edge_vec.view_as(edge_vec)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor | None) -> Tensor:
        raise native.NativeError(
            "a second derivative with respect to `edge_vec` was asked of the native environment matrix; expected "
            "first derivatives only. Use `environment(..., second_order=True)`, or on a model "
            "`model.set_second_order()`; in training, `torch.autograd.backward(loss, inputs=parameters)`."
        )


def _first_order_only(edge_vec: Tensor) -> Tensor:
    return _FirstOrderOnly.apply(edge_vec) if torch.is_grad_enabled() and edge_vec.requires_grad else edge_vec


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _remember(ctx: Any, edge_vec: Tensor, switch: _Switch) -> None:
    ctx.save_for_backward(edge_vec)
    ctx.switch = switch
    ctx.set_materialize_grads(False)
