"""SOAP: Adam in the eigenbasis of the gradient's covariance.

    L = EMA(g g^T), R = EMA(g^T g)        of each weight matrix, g its gradient
    Q_L, Q_R: eigenvectors of L and R, refreshed every `refresh` steps by one power iteration and a QR
    g' = Q_L^T g Q_R                       Adam's two moments are taken of g'
    W <- W - lr Q_L [m' / (sqrt(v') + eps)] Q_R^T

Deep Potential fitting nets see descriptors whose informative variations are a few percent of their mean, in
directions that mix all components: Adam, which scales components one by one, takes many times more steps.
A side longer than `max_dim` keeps Q = 1; vectors take plain Adam. Weight decay is decoupled and on matrices only.
It bounds the weights of directions that the data hardly determines, at a price in accuracy.
Source: Vyas et al., arXiv:2409.11321 (2024), Algorithm 3; defaults from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class SOAP(torch.optim.Optimizer):
    """See the module's docstring. The state of a parameter is tensors only, so that checkpoints hold all of it."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        refresh: int = 10,
        max_dim: int = 300,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults | {"refresh": refresh, "max_dim": max_dim})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step on every parameter with a gradient. The first one only starts the covariances."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    _start(state, parameter, group["max_dim"])
                    _update_covariances(state, parameter.grad, 0.0)
                    _eigenbases(state)
                else:
                    _update(state, parameter, parameter.grad, group)


def _sides(state: dict[str, Tensor]) -> list[int]:
    """Which sides of a matrix have a basis of their own."""
    return [side for side in (0, 1) if f"covariance_{side}" in state]


def _start(state: dict[str, Tensor], parameter: Tensor, max_dim: int) -> None:
    state["step"] = torch.zeros((), dtype=torch.float64)
    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    for side, n in enumerate(parameter.shape if parameter.dim() == 2 else ()):
        if 1 < n <= max_dim:
            state[f"covariance_{side}"] = parameter.new_zeros(n, n)


def _update_covariances(state: dict[str, Tensor], g: Tensor, beta: float) -> None:
    for side in _sides(state):
        state[f"covariance_{side}"].lerp_(g @ g.t() if side == 0 else g.t() @ g, 1 - beta)


def _eigenbases(state: dict[str, Tensor]) -> None:
    """The first bases: eigenvectors, largest eigenvalue first."""
    for side in _sides(state):
        vectors = torch.linalg.eigh(state[f"covariance_{side}"].double())[1].flip(1)
        state[f"basis_{side}"] = vectors.to(state["exp_avg"].dtype).contiguous()


def _rotate(state: dict[str, Tensor], g: Tensor, *, back: bool = False) -> Tensor:
    """Into the eigenbases, or back out of them."""
    for side in _sides(state):
        q = state[f"basis_{side}"]
        if side == 0:
            g = (q if back else q.t()) @ g
        else:
            g = g @ (q.t() if back else q)
    return g


def _refresh(state: dict[str, Tensor]) -> None:
    """One power iteration towards the eigenvectors of the present covariances; the moments move along."""
    for side in _sides(state):
        covariance, old = state[f"covariance_{side}"], state[f"basis_{side}"]
        estimate = (old * (covariance @ old)).sum(0)
        order = torch.argsort(estimate, descending=True, stable=True)
        old = old[:, order]
        new, _ = torch.linalg.qr(covariance @ old)
        turn = new.t() @ old
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = state[key].index_select(side, order)
        state["exp_avg"] = turn @ state["exp_avg"] if side == 0 else state["exp_avg"] @ turn.t()
        # A checkpoint restores rows in memory order: another order here would round products differently then.
        state[f"basis_{side}"] = new.contiguous()


def _update(state: dict[str, Tensor], parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
    """Adam in the eigenbases, then the covariances, and now and then the bases."""
    beta1, beta2 = group["betas"]
    state["step"] += 1
    step = int(state["step"])
    g = _rotate(state, gradient)
    m, v = state["exp_avg"].lerp_(g, 1 - beta1), state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
    if parameter.dim() == 2:
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
    scale = (1 - beta2**step) ** 0.5 / (1 - beta1**step)
    update = _rotate(state, m / (v.sqrt() + group["eps"]), back=True)
    parameter.add_(update, alpha=-group["lr"] * scale)
    if _sides(state):
        _update_covariances(state, gradient, beta2)
        if step % group["refresh"] == 0:
            _refresh(state)
