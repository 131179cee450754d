"""`dpsim.kernels.chunked` against the same function of all rows at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpsim.kernels.chunked import chunked


def function(x: Tensor, y: Tensor, w: Tensor, v: Tensor) -> Tensor:
    return torch.softmax((x @ w) * y, -1) @ v + y


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("size", [0, 1, 3, 7, 100])
def test_values_and_both_derivatives(size: int, trained: bool) -> None:
    g = torch.Generator().manual_seed(0)
    rows = [torch.randn(7, n, generator=g, dtype=torch.float64, requires_grad=True) for n in (5, 4)]
    shared = [torch.randn(n, 4, generator=g, dtype=torch.float64, requires_grad=trained) for n in (5, 4)]

    def everything(z: Tensor) -> list[Tensor]:
        """The value, the forces, and the gradients of a loss on them in all that is trained, and in the rows."""
        first = torch.autograd.grad(z.sin().sum(), rows, create_graph=True)
        loss = sum((x.pow(2).sum() for x in first), z.pow(2).sum())
        return [z, *first, *torch.autograd.grad(loss, rows + shared * trained)]

    whole, parts = everything(function(*rows, *shared)), everything(chunked(function, rows, shared, size))
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_of_what_is_shared_have_derivatives_too() -> None:
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2).requires_grad_()
    w = torch.tensor([[0.3], [0.7]], dtype=torch.float64, requires_grad=True)
    (of_w,) = torch.autograd.grad(chunked(lambda x, w: (x @ w).sin(), [x], [w], 2).sum(), w, create_graph=True)
    (expected,) = torch.autograd.grad((x @ w).sin().sum(), w, create_graph=True)
    for of, a in zip(torch.autograd.grad(of_w.pow(2).sum(), (x, w)), (x, w), strict=True):
        torch.testing.assert_close(of, torch.autograd.grad(expected.pow(2).sum(), a, retain_graph=True)[0])
