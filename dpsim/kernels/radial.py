"""The radial embedding G(s), its derivative G'(s) = dG/ds, and its contraction with the environment matrix.

    A_i[c, m] = sum_j env_ij[c] G_m(s_ij)

A descriptor whose embedding is a function of one number per edge needs, for energies AND forces, only G and G': the
forces contract G' with what comes back from the fitting net. Propagating (G, G') forwards as dual numbers replaces
the double backward through the embedding net by a single backward (equations: DeePMD-kit v2 II.A.2).

`radial_contract_reference` is plain PyTorch, differentiable any number of times, on any device, for any activation.
`radial_contract` runs the fused kernel csrc/cpu/radial_kernel.h where it can: tanh nets on the CPU. It serves the
two backward passes of force training, each of which needs half of a general backward:
  1. energy -> (env, s), by autograd.grad(..., create_graph=True): the forces,
  2. loss -> parameters, by torch.autograd.backward(loss, inputs=parameters).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dpsim.kernels import native
from dpsim.kernels.activation import activation, slope
from dpsim.kernels.neighbor_sum import neighbor_sum_reference

KEEP_BYTES = 16 * 2**20  # G and G' larger than this are evaluated again in the backward pass, not kept: as fast


class DenseLayer(NamedTuple):
    """One layer y = act(x W + b) * idt + residual, as tensors: weight (in, out), bias and idt (out,) or None.

    residual: 0 none, 1 adds x, 2 adds [x, x].
    """

    weight: Tensor
    bias: Tensor | None
    idt: Tensor | None
    residual: int
    activation: str


def embedding_reference(s: Tensor, layers: Sequence[DenseLayer]) -> tuple[Tensor, Tensor]:
    """G(s) and dG/ds of a dense net of one input, by propagating values and derivatives layer by layer.

    Args: s (n,). Returns: G, dG (n, M). Differentiable in s and in every parameter, any number of times.
    """
    x, dx = s[:, None], torch.ones_like(s)[:, None]
    for layer in layers:
        z, dz = x @ layer.weight, dx @ layer.weight  # 1. affine map of value and derivative
        if layer.bias is not None:
            z = z + layer.bias
        y, dy = activation(layer.activation)(z), slope(layer.activation)(z) * dz  # 2. chain rule
        if layer.idt is not None:  # 3. time step and residual
            y, dy = y * layer.idt, dy * layer.idt
        if layer.residual:
            y, dy = y + x.repeat(1, layer.residual), dy + dx.repeat(1, layer.residual)
        x, dx = y, dy
    return x, dx


def radial_contract_reference(env: Tensor, s: Tensor, offsets: Tensor, layers: Sequence[DenseLayer]) -> Tensor:
    """A_i[c, m] = sum_j env_ij[c] G_m(s_ij).

    Args: env (n_edges, c) and s (n_edges,), edges sorted by centre; offsets (n_centers + 1,) int64: the edges of
    centre i are offsets[i] .. offsets[i + 1]. Returns: A (n_centers, c, M).
    """
    g, _ = embedding_reference(s, layers)
    return neighbor_sum_reference(env, g, offsets)


def radial_contract(env: Tensor, s: Tensor, offsets: Tensor, layers: Sequence[DenseLayer]) -> Tensor:
    """As `radial_contract_reference`, by the fused kernel where there is one; see the module's docstring."""
    if not _native_serves(s, layers):
        return radial_contract_reference(env, s, offsets, layers)
    return _RadialContract.apply(env, s, offsets, [layer.residual for layer in layers], *_flatten(layers))


def embedding(s: Tensor, layers: Sequence[DenseLayer]) -> tuple[Tensor, Tensor]:
    """As `embedding_reference`, differentiable once and in the parameters only: s is taken as a number."""
    s = s.detach()
    if not _native_serves(s, layers):
        return embedding_reference(s, layers)
    return _Embedding.apply(s, [layer.residual for layer in layers], *_flatten(layers))


def attach(s: Tensor, g: Tensor, dg: Tensor) -> Tensor:
    """G as a function of s: the array g, with derivative dg in s. Both keep their graph to the parameters."""
    return _Attach.apply(s, g, dg)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, g: Tensor, dg: Tensor) -> Tensor:
        ctx.save_for_backward(dg)
        return g.view_as(g)

    @staticmethod
    def backward(ctx: Any, grad_g: Tensor) -> tuple[Tensor | None, ...]:
        (dg,) = ctx.saved_tensors
        return (grad_g * dg).sum(-1) if ctx.needs_input_grad[0] else None, grad_g, None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, residuals: list[int], *params: Tensor | None) -> tuple[Tensor, Tensor]:
        s = s.contiguous()
        net = _Net(residuals, params)
        g, dg = s.new_empty(2, len(s), net.width)
        native.call("embedding_forward", s, len(s), s, *net.args, g, dg)
        ctx.residuals, ctx.params = residuals, params
        ctx.save_for_backward(s)
        return g, dg

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_g: Tensor, grad_dg: Tensor) -> tuple[Any, ...]:
        (s,) = ctx.saved_tensors
        net = _Net(ctx.residuals, ctx.params)
        grads, pointers = net.gradients()
        native.call("embedding_backward", s, len(s), s, *net.args, grad_g.contiguous(), grad_dg.contiguous(), pointers)
        return None, None, *grads


class _RadialContract(torch.autograd.Function):
    """Forward, and the backward to the parameters (pass 2); the backward to env and s is `_RadialBackward` (pass 1)."""

    @staticmethod
    def forward(
        ctx: Any, env: Tensor, s: Tensor, offsets: Tensor, residuals: list[int], *params: Tensor | None
    ) -> Tensor:
        env, s, offsets = env.contiguous(), s.contiguous(), offsets.contiguous()
        net = _Net(residuals, params)
        n, channels = len(offsets) - 1, env.shape[1]
        a = env.new_empty(n, channels, net.width)
        keep = 2 * len(s) * net.width * s.element_size() <= KEEP_BYTES and any(ctx.needs_input_grad)
        g, dg = s.new_empty(2, len(s), net.width) if keep else (None, None)
        native.call("radial_forward", s, n, offsets, channels, env, s, *net.args, a, g, dg)
        ctx.residuals, ctx.params, ctx.kept = residuals, params, {"g": g, "dg": dg}
        ctx.trains = any(p is not None and p.requires_grad for p in params)
        ctx.save_for_backward(env, s, offsets)
        return a

    @staticmethod
    def backward(ctx: Any, a_bar: Tensor) -> tuple[Any, ...]:
        env, s, offsets = ctx.saved_tensors
        none: list[Tensor | None] = [None] * len(ctx.params)
        if torch.is_grad_enabled() or not ctx.trains:
            env_bar, s_bar = _RadialBackward.apply(env, s, offsets, a_bar, ctx)
            return env_bar, s_bar, None, None, *none
        net = _Net(ctx.residuals, ctx.params)
        grads, pointers = net.gradients()
        first = ctx.kept.pop("first_pass", (None, None, None))  # (a_bar, u_env, u_s) left by _RadialBackward.backward
        edges = (len(offsets) - 1, offsets, env.shape[1], env, s)
        native.call("radial_backward_parameters", s, *edges, *net.args, a_bar.contiguous(), *first, pointers)
        return None, None, None, None, *grads


class _RadialBackward(torch.autograd.Function):
    """env_bar and s_bar from a_bar. Its own backward gives the gradient in a_bar, and leaves what the parameters need
    from this pass with the forward's context: their gradient is summed in one sweep over the net, in pass 2."""

    @staticmethod
    def forward(ctx: Any, env: Tensor, s: Tensor, offsets: Tensor, a_bar: Tensor, outer: Any) -> tuple[Tensor, Tensor]:
        a_bar = a_bar.contiguous()
        net = _Net(outer.residuals, outer.params)
        env_bar, s_bar = torch.empty_like(env), torch.empty_like(s)
        edges = (len(offsets) - 1, offsets, env.shape[1], env, s)
        g, dg = outer.kept["g"], outer.kept["dg"]
        native.call("radial_backward_inputs", s, *edges, *net.args, a_bar, g, dg, env_bar, s_bar)
        ctx.outer = outer
        ctx.save_for_backward(env, s, offsets, a_bar)
        return env_bar, s_bar

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, u_env: Tensor, u_s: Tensor) -> tuple[Any, ...]:
        env, s, offsets, a_bar = ctx.saved_tensors
        outer = ctx.outer
        u_env, u_s = u_env.contiguous(), u_s.contiguous()
        g, dg = outer.kept["g"], outer.kept["dg"]
        net = _Net(outer.residuals, outer.params)
        if g is None:
            g, dg = s.new_empty(2, len(s), net.width)
            native.call("embedding_forward", s, len(s), s, *net.args, g, dg)
        grad_a_bar = torch.empty_like(a_bar)
        edges = (len(offsets) - 1, offsets, env.shape[1], net.width, env)
        native.call("radial_backward_twice", s, *edges, u_env, u_s, g, dg, grad_a_bar)
        outer.kept["first_pass"] = (a_bar, u_env, u_s)
        return None, None, None, grad_a_bar, None


def _flatten(layers: Sequence[DenseLayer]) -> list[Tensor | None]:
    return [p for layer in layers for p in (layer.weight, layer.bias, layer.idt)]


def _native_serves(s: Tensor, layers: Sequence[DenseLayer]) -> bool:
    tanh = all(layer.activation == "tanh" for layer in layers)
    return tanh and s.device.type == "cpu" and s.dtype in native.SUFFIX and native.library() is not None


class _LayerStruct(ctypes.Structure):
    """dpsim_layer of csrc/include/dpsim.h."""

    _fields_ = [(name, ctypes.c_int) for name in ("n_in", "n_out", "residual")] + [
        (name, ctypes.c_void_p) for name in ("weight", "bias", "idt")
    ]


class _LayerGradStruct(ctypes.Structure):
    """dpsim_layer_grad of csrc/include/dpsim.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias", "idt")]


class _Net:
    """The parameters of a net as the C interface takes them."""

    def __init__(self, residuals: list[int], params: Sequence[Tensor | None]):
        # contiguous() copies must live as long as their pointers
        self.params = [None if p is None else p.detach().contiguous() for p in params]
        self.layers = (_LayerStruct * len(residuals))()
        for k, residual in enumerate(residuals):
            weight, bias, idt = self.params[3 * k : 3 * k + 3]
            assert weight is not None  # a layer always has one
            n_in, n_out = weight.shape
            self.layers[k] = _LayerStruct(n_in, n_out, residual, *(_pointer(p) for p in (weight, bias, idt)))
        self.width = self.layers[-1].n_out
        self.args = (len(residuals), self.layers)

    def gradients(self) -> tuple[list[Tensor | None], Any]:
        """Tensors to write the gradients to, and the C array of their pointers."""
        grads = [None if p is None else torch.empty_like(p) for p in self.params]
        structs = (_LayerGradStruct * len(self.layers))()
        for k in range(len(self.layers)):
            structs[k] = _LayerGradStruct(*(_pointer(p) for p in grads[3 * k : 3 * k + 3]))
        return grads, structs


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
