"""dpsim.kernels.moments against its reference, to three derivatives, over every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpsim.kernels.moments import Edges, moments, moments_reference


def example(d: int, dtype: torch.dtype = torch.float64, n: int = 6) -> tuple[Tensor, Tensor, Edges]:
    """h, x, and edges of which one centre has none and one row is read by none."""
    g = torch.Generator().manual_seed(d)
    count = torch.tensor([3, 0, 5, 1, 4, 2])[:n]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(count, 0)])
    index = torch.randint(1, 7, (int(count.sum()),), generator=g)
    h, x = (torch.randn(k, w, generator=g, dtype=torch.float64).to(dtype) for k, w in ((len(index), 3), (7, d)))
    return h.requires_grad_(), x.requires_grad_(), Edges(offsets, index, 7)


@pytest.mark.parametrize("d", [1, 5, 32, 75])
def test_values_and_derivatives(d: int) -> None:
    h, x, edges = example(d)
    torch.testing.assert_close(moments(h, x, edges), moments_reference(h, x, edges), rtol=1e-13, atol=1e-13)
    w = torch.cos(torch.arange(edges.n * 3 * d, dtype=torch.float64)).view(edges.n, 3, d)
    found = []
    for function in (moments, moments_reference):

        def slopes(value: Tensor) -> list[Tensor]:
            return list(torch.autograd.grad(value.sin().sum(), (h, x), create_graph=True))

        first = slopes((w * function(h, x, edges)).sin().sum())
        second = slopes(sum(t.pow(2).sum() for t in first))
        found.append([*first, *second, *slopes(sum(t.sin().sum() for t in second))])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_gradcheck() -> None:
    h, x, edges = example(4)
    assert torch.autograd.gradcheck(lambda h, x: moments(h, x, edges), (h, x))
    assert torch.autograd.gradgradcheck(lambda h, x: moments(h, x, edges), (h, x))


def test_no_edges() -> None:
    h, x, edges = example(3, n=0)
    assert moments(h, x, edges).shape == (0, 3, 3)
    (grad,) = torch.autograd.grad(moments(h, x, edges).sum(), x)
    assert not grad.any()


def test_single_precision_is_as_good_as_the_reference() -> None:
    h, x, edges = example(64)
    exact = moments_reference(h, x, edges)
    h, x = h.detach().float(), x.detach().float()
    errors = [float((f(h, x, edges) - exact).abs().max()) for f in (moments, moments_reference)]
    assert errors[0] <= 2 * errors[1] + 1e-7
