"""A layer of DPA-2 in which messages pass, `RepformerLayer`: f on atoms, g and h (a vector) on pairs.

All updates of a layer are made of what it begins with (sums over neighbours j, k of i; w the switch; * by element):
    symm(x)_i = 1/3 H[:, :M']^T H,  H_i = 1/sqrt(N) sum_j w_j h_ij (x) x_j           N = sel; 1/N without use_sqrt_nnei
    conv_i    = 1/N sum_j w_j (g_ij W_c) * f_j,  or 1/N sum_j w_j g_ij * (f_j W_c)    with g1_out_conv, or without
  f:  act(f_i W + b)                                                                  g1_out_mlp
      conv_i                                                                          g1_out_conv
      act(L1 [f_i, conv_i, symm(g_ij), symm(f_j)])      f_i and conv_i where they are no updates themselves
      W_o [sum_j B_ij (f_j V)]_heads,  B_ij = softmax*_j(f_i Q . f_j K / sqrt(d))     attention to the neighbours
  g:  act(g_ij W + b)
      w_j (f_i * f_j) W
      LayerNorm(W_o [sum_k A_jk (g_ik V)]_heads)                                      attention among pairs
  h:  sum_heads v_head sum_k A_jk h_ik
      A_jk = softmax+_k(a_jk) (h_ij.h_ik)/sqrt(3),  a_jk = g_ij Q . g_ik K / sqrt(d) [times h_ij.h_ik with the gate]
    softmax*(a) = w_j softmax(w_j (a + 20) - 20),   softmax+(a) = w_j w_k softmax(w_j w_k (a + 20) - 20)
  x <- (x + sum u)/sqrt(n + 1) (res_avg),  x + sum u/sqrt(n) (res_incr),  x + sum r * u, r trained (res_residual)
where u are the n updates of x. The softmax runs over `sel` slots: empty ones have the logit -20. Not smooth: w = 1, no
shift, and N is the number of neighbours + 1e-4.

Heads share what they look at: with Q K^T, and V W_o, multiplied first, queries meet g itself, and the sum over
neighbours is one of g. Nothing that lies on pairs is as wide as f: what meets the neighbours' f is summed at once
(`dpsim.kernels.neighbor_sum`).
Source: Zhang et al., npj Comput. Mater. 10, 293 (2024), Eqs. 18-20 and 24-36; w in the sums, N, 1/3, the second factor
h.h/sqrt(3) and the styles of adding as in DeePMD-kit 3.2.0. The last layer updates f only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dpsim.kernels.activation import activation
from dpsim.kernels.neighbor_sum import neighbor_dot, neighbor_sum
from dpsim.kernels.pair_attention import Attention, pair_attention, softmax_of_slots
from dpsim.models.descriptor_config import RepformerConfig
from dpsim.models.graph import Slots
from dpsim.models.nets import Layer, LayerNorm, normal_parameter

Linear = Callable[..., Layer]  # linear(n_in, n_out, bias=True) of one generator and dtype
SHIFT = 20.0  # of the smooth softmax


class Neighbors(NamedTuple):
    """The neighbours j of each atom i: edges sorted by i, and the rows of p slots that they fill where all pairs of
    neighbours of an atom meet.

    atom, offsets: j of each edge; edges of atom i are offsets[i] .. offsets[i + 1]; w (n_edges, 1): switch, or 1 where
    not smooth; mean (n or 1, 1): what sums of conv are multiplied with; norm (n_edges or 1, 1): those of symm;
    n_empty: sel - p.
    """

    atom: Tensor
    offsets: Tensor
    slots: Slots
    w: Tensor
    mean: Tensor
    norm: Tensor
    n_slots: int
    smooth: bool

    def sum(self, x: Tensor, y: Tensor) -> Tensor:
        """sum_j x_ij (x) y_ij, (n, k, d). Args: x (n_edges, k), y (n_edges, d)."""
        return neighbor_sum(x, y, self.offsets)

    def sum_of_atoms(self, x: Tensor, f: Tensor, weight: Tensor | None = None) -> Tensor:
        """sum_j x_ij (x) f_j, (n, k, d), or with a weight (k, d) sum_j (x_ij W) * f_j, (n, d)."""
        return neighbor_sum(x, f, self.offsets, self.atom, weight)

    def dot(self, z: Tensor, f: Tensor, weight: Tensor | None = None) -> Tensor:
        """z_i f_j, (n_edges, k), of z (n, k, d), or with a weight (k, d) W (z_i * f_j) of z (n, d)."""
        return neighbor_dot(z, f, self.offsets, self.atom, weight)


class RepformerLayer(nn.Module):
    """See the module's docstring."""

    def __init__(
        self, config: RepformerConfig, smooth: bool, last: bool, generator: torch.Generator, dtype: torch.dtype
    ):
        super().__init__()
        c, d1, d2 = config, config.g1_dim, config.g2_dim
        self.smooth, self.updates_pairs, self.axis_neuron = smooth, not last, c.axis_neuron
        self.act, self.style = activation(c.activation), c.update_style
        self.has_conv, self.has_grrg, self.has_drrd = c.update_g1_has_conv, c.update_g1_has_grrg, c.update_g1_has_drrd
        self.out_conv = c.g1_out_conv

        def linear(n_in: int, n_out: int, bias: bool = True) -> Layer:
            return Layer(n_in, n_out, "linear", bias=bias, resnet=False, generator=generator, dtype=dtype)

        conv_joins = self.has_conv and not self.out_conv
        n_joined = d1 * (not c.g1_out_mlp) + d2 * conv_joins
        n_joined += c.axis_neuron * (d2 * self.has_grrg + d1 * self.has_drrd)
        self.linear1 = linear(n_joined, d1)
        self.self_mlp = linear(d1, d1) if c.g1_out_mlp else None
        conv_shape = (d2, d1) if self.out_conv else (d1, d2)
        self.conv = linear(*conv_shape, bias=False) if self.has_conv else None
        self.attention = AtomAttention(config, linear) if c.update_g1_has_attn else None
        self.linear2 = self.product = self.pair_attention = None
        if self.updates_pairs:
            self.linear2 = linear(d2, d2)
            self.product = linear(d1, d2, bias=False) if c.update_g2_has_g1g1 else None
            if c.update_g2_has_attn or c.update_h2:
                self.pair_attention = PairAttention(config, linear, dtype)

        def vectors(n_updates: int, width: int) -> nn.ParameterList:
            n = n_updates if self.style == "res_residual" else 0
            return nn.ParameterList(_residual(config, width, generator, dtype) for _ in range(n))

        n_f = 1 + c.g1_out_mlp + (self.has_conv and self.out_conv) + c.update_g1_has_attn
        n_g = (1 + c.update_g2_has_g1g1 + c.update_g2_has_attn) if self.updates_pairs else 0
        n_h = 1 if self.updates_pairs and c.update_h2 else 0
        self.g1_residual, self.g2_residual, self.h2_residual = vectors(n_f, d1), vectors(n_g, d2), vectors(n_h, 1)

    def forward(self, f: Tensor, g: Tensor, h: Tensor, near: Neighbors) -> tuple[Tensor, Tensor, Tensor]:
        """f (n, d1), g (n_edges, d2), h (n_edges, 3) after this layer."""
        new_f = self.add(f, self.updates_of_f(f, g, h, near), self.g1_residual)
        if not self.updates_pairs:
            return new_f, g, h
        of_g, of_h = self.updates_of_pairs(f, g, h, near)
        return new_f, self.add(g, of_g, self.g2_residual), self.add(h, of_h, self.h2_residual)

    def updates_of_f(self, f: Tensor, g: Tensor, h: Tensor, near: Neighbors) -> list[Tensor]:
        """The updates u of f."""
        updates, joined = [], []
        if self.self_mlp is not None:
            updates.append(self.act(self.self_mlp(f)))
        else:
            joined.append(f)
        if self.conv is not None and self.out_conv:
            updates.append(near.sum_of_atoms(near.w * g, f, self.conv.weight) * near.mean)
        elif self.conv is not None:
            joined.append(near.sum(near.w, g * self.conv(f)[near.atom])[:, 0] * near.mean)
        wh = near.w * h * near.norm
        joined += [self.symmetric(near.sum(wh, g))] if self.has_grrg else []
        joined += [self.symmetric(near.sum_of_atoms(wh, f))] if self.has_drrd else []
        updates.append(self.act(self.linear1.of_parts(joined)))
        if self.attention is not None:
            updates.append(self.attention(f, near))
        return updates

    def symmetric(self, a: Tensor) -> Tensor:
        """1/3 H[:, :M']^T H, flattened. Args: H (n, 3, M)."""
        return (a[:, :, : self.axis_neuron].transpose(1, 2) @ a).flatten(1) / 3

    def updates_of_pairs(self, f: Tensor, g: Tensor, h: Tensor, near: Neighbors) -> tuple[list[Tensor], list[Tensor]]:
        """The updates of g and of h."""
        assert self.linear2 is not None
        of_g, of_h = [self.act(self.linear2(g))], []
        if self.product is not None:
            of_g.append(near.w * near.dot(f, f, self.product.weight.t()))
        if self.pair_attention is not None:
            attended, turned = self.pair_attention(g, h, near)
            of_g += [attended] if attended is not None else []
            of_h += [turned] if turned is not None else []
        return of_g, of_h

    def add(self, x: Tensor, updates: Sequence[Tensor], vectors: nn.ParameterList) -> Tensor:
        """x with its updates."""
        if not updates:
            return x
        if self.style == "res_residual":
            return sum((r * u for r, u in zip(vectors, updates, strict=True)), x)
        if self.style == "res_avg":
            return sum(updates, x) * (len(updates) + 1) ** -0.5
        return x + sum(updates[1:], updates[0]) * len(updates) ** -0.5


class AtomAttention(nn.Module):
    """Attention of an atom to its neighbours: B and what it gathers."""

    def __init__(self, config: RepformerConfig, linear: Linear):
        super().__init__()
        d, self.heads, self.hidden = config.g1_dim, config.attn1_nhead, config.attn1_hidden
        self.query = linear(d, self.hidden * self.heads, bias=False)
        self.key_value = linear(d, (self.hidden + d) * self.heads, bias=False)
        self.out = linear(d * self.heads, d)

    def forward(self, f: Tensor, near: Neighbors) -> Tensor:
        """(n, d). Args: f (n, d)."""
        d, w, slots = f.shape[1], near.w, near.slots
        key, value = self.key_value.weight.view(d, -1, self.heads).split([self.hidden, d], 1)  # heads are the last axis
        query = self.query(f).view(-1, self.hidden, self.heads) * self.hidden**-0.5
        logits = near.dot(torch.einsum("ndh,adh->nha", query, key), f)  # (n_edges, heads)
        logits = slots.fill((logits + SHIFT) * w if near.smooth else logits).transpose(1, 2)
        weights = softmax_of_slots(logits, slots.fill(w).transpose(1, 2), near.n_slots)
        weights = slots.edges(weights.transpose(1, 2))
        gathered = near.sum_of_atoms(weights * w, f)
        return self.out(torch.einsum("nha,ach->nhc", gathered, value).flatten(1))


class PairAttention(nn.Module):
    """Attention among the pairs of an atom: A, and what g and h become of it."""

    def __init__(self, config: RepformerConfig, linear: Linear, dtype: torch.dtype):
        super().__init__()
        d, self.heads, self.hidden = config.g2_dim, config.attn2_nhead, config.attn2_hidden
        self.has_gate, self.of_g = config.attn2_has_gate, config.update_g2_has_attn
        self.query_key = linear(d, 2 * self.hidden * self.heads, bias=False)
        if self.of_g:
            self.value = linear(d, d * self.heads, bias=False)
            self.out = linear(d * self.heads, d)
            self.norm = LayerNorm(d, eps=config.ln_eps, dtype=dtype)
            self.norm.requires_grad_(config.trainable_ln)
        self.turn = linear(self.heads, 1, bias=False) if config.update_h2 else None

    def forward(self, g: Tensor, h: Tensor, near: Neighbors) -> tuple[Tensor | None, Tensor | None]:
        """Updates of g (n_edges, d) and h (n_edges, 3), where there are such."""
        d, heads, turn = g.shape[1], self.heads, self.turn
        query, key = self.query_key.weight.view(d, self.hidden, 2, heads).unbind(2)  # heads are the last axis
        query_key = torch.einsum("adh,bdh->ahb", query, key).reshape(d, heads * d) * self.hidden**-0.5
        out = []  # V W_o, and v, for each head
        if self.of_g:
            value, of_heads = self.value.weight.view(d, d, heads), self.out.weight.view(d, heads, d)
            out.append(torch.einsum("ach,cho->hao", value, of_heads))
        if turn is not None:
            out.append(turn.weight[:, :, None] * torch.eye(3, dtype=g.dtype, device=g.device))
        both = torch.cat([torch.block_diag(*of_head) for of_head in zip(*out, strict=True)])
        shift = SHIFT if near.smooth else 0.0
        kind = Attention(heads, self.has_gate, self.of_g, turn is not None, shift, near.n_slots)
        seen = pair_attention(g, h, near.w, query_key, both, near.offsets, kind)
        attended = turned = None
        if self.of_g:
            assert self.out.bias is not None  # it is made with one
            attended = self.norm(seen[:, :d] + self.out.bias)
        if turn is not None:
            turned = seen[:, -3:]
        return attended, turned


def _residual(config: RepformerConfig, width: int, generator: torch.Generator, dtype: torch.dtype) -> nn.Parameter:
    """The vector r of an update."""
    size = config.update_residual
    std, mean = (size, 0.0) if config.update_residual_init == "norm" else (0.0, size)
    return normal_parameter((width,), std, mean, generator, dtype)
