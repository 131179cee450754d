"""Functions of rows whose intermediates are much larger than what goes in and comes out: a few rows at a time.

    y = f(x_1, .., w_1, ..)     row i of y depends on row i of each x, and on the whole of each w

Chunks are small enough for their intermediates to stay in cache, and nothing of a chunk is kept: both backward passes
of force training evaluate it again. Plain PyTorch inside, so f is written once, without its derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor]


def chunked(function: Function, rows: Sequence[Tensor], shared: Sequence[Tensor], size: int) -> Tensor:
    """function(*rows, *shared), evaluated `size` rows at a time; differentiable twice.

    Args: rows: tensors (n, ...) that are cut; shared: tensors that every chunk takes as they are.
    """
    return _Chunked.apply(_Chunks(function, len(rows), size), *rows, *shared)


class _Chunks:
    """A function, how many of its arguments are cut, and into chunks of how many rows."""

    def __init__(self, function: Function, n_cut: int, size: int):
        self.function, self.n_cut, self.size = function, n_cut, max(1, size)

    def of(self, *inputs: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
        """The rows of each chunk, and its arguments."""
        for start in range(0, len(inputs[0]), self.size):
            rows = slice(start, start + self.size)
            yield rows, [x[rows] if k < self.n_cut else x for k, x in enumerate(inputs)]

    def leaves(self, part: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The arguments of a chunk, and those of them to differentiate in: of what is shared, what is trained."""
        leaves = [x.detach().requires_grad_(k < self.n_cut or x.requires_grad) for k, x in enumerate(part)]
        return leaves, [x for x in leaves if x.requires_grad]

    def joined(self, parts: list[tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradients of the chunks as one for each input: rows beside each other, of what is shared the sum."""
        gradients = zip(*parts, strict=True)
        joined: list[Tensor | None] = [torch.cat(next(gradients)) for _ in range(self.n_cut)]
        return joined + [sum(next(gradients)) if x.requires_grad else None for x in inputs[self.n_cut :]]


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chunks: _Chunks, *inputs: Tensor) -> Tensor:
        ctx.chunks = chunks
        ctx.save_for_backward(*inputs)
        return torch.cat([chunks.function(*part) for _, part in chunks.of(*inputs)])

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_ChunkedBackward.apply(ctx.chunks, bar, *ctx.saved_tensors)


class _ChunkedBackward(torch.autograd.Function):
    """The gradients of all inputs, as a function of the gradient in y and of the inputs."""

    @staticmethod
    def forward(ctx: Any, chunks: _Chunks, bar: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        ctx.chunks = chunks
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(bar, *inputs)
        parts = []
        for rows, part in chunks.of(*inputs):
            with torch.enable_grad():
                leaves, wanted = chunks.leaves(part)
                y = chunks.function(*leaves)
            parts.append(torch.autograd.grad(y, wanted, bar[rows]))
        return tuple(chunks.joined(parts, inputs))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *u: Tensor | None) -> tuple[Tensor | None, ...]:
        chunks, (bar, *inputs) = ctx.chunks, ctx.saved_tensors
        met = [k for k, x in enumerate(u) if x is not None]  # gradients that anything was made of
        parts, of_bar = [], []
        for rows, part in chunks.of(*inputs):
            with torch.enable_grad():
                leaves, wanted = chunks.leaves(part)
                bar_part = bar[rows].detach().requires_grad_()
                y = chunks.function(*leaves)
                first = torch.autograd.grad(y, [leaves[k] for k in met], bar_part, create_graph=True)
            u_part = [u[k][rows] if k < chunks.n_cut else u[k] for k in met]  # type: ignore[index]
            both = torch.autograd.grad(first, [bar_part, *wanted], u_part, allow_unused=True, materialize_grads=True)
            of_bar.append(both[0])
            parts.append(both[1:])
        return None, torch.cat(of_bar), *chunks.joined(parts, inputs)
