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
neighbours is one of g. What lies on pairs and is as wide as f exists once, the neighbours' f.
Source: Zhang et al., npj Comput. Mater. 10, 293 (2024), Eqs. 18-20 and 24-36; w in the sums, N, 1/3, the second factor
h.h/sqrt(3) and the styles of adding as in DeePMD-kit 3.2.0. The last layer updates f only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dpsim.kernels.activation import activation
from dpsim.models.descriptor_config import RepformerConfig
from dpsim.models.nets import Layer, LayerNorm, smooth_softmax

Linear = Callable[..., Layer]  # linear(n_in, n_out, bias=True) of one generator and dtype
SHIFT = 20.0  # of the smooth softmax
NEVER = -1e30  # the logit of an empty slot where there is no switch


class Neighbors(NamedTuple):
    """The neighbours of each atom in a row of p slots. In empty slots w and h are zero.

    atom (n, p): which they are; w (n, p, 1): switch, or 1 where not smooth; mean, norm: what sums of conv and symm are
    multiplied with, (n or 1, 1) and (n or 1, 1, 1); n_empty: sel - p.
    """

    atom: Tensor
    w: Tensor
    mean: Tensor
    norm: Tensor
    n_empty: int
    smooth: bool

    def of_atoms(self, f: Tensor) -> Tensor:
        """f_j (n, p, d) of f (n, d)."""
        return f.index_select(0, self.atom.flatten()).view(*self.atom.shape, -1)

    def softmax(self, logits: Tensor, w: Tensor) -> Tensor:
        """Attention weights (n, ..., p): softmax* or softmax+ without the w before it.

        Args: logits (n, ..., p): w (a + 20), of which the -20 drops out, or a where not smooth; w as long.
        """
        if self.smooth:
            return smooth_softmax(logits, self.n_empty)
        return torch.softmax(logits.masked_fill(w == 0, NEVER), -1)


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
        """f (n, d1), g (n, p, d2), h (n, p, 3) after this layer."""
        x = near.of_atoms(f)
        new_f = self.add(f, self.updates_of_f(f, x, g, h, near), self.g1_residual)
        if not self.updates_pairs:
            return new_f, g, h
        of_g, of_h = self.updates_of_pairs(f, x, g, h, near)
        return new_f, self.add(g, of_g, self.g2_residual), self.add(h, of_h, self.h2_residual)

    def updates_of_f(self, f: Tensor, x: Tensor, g: Tensor, h: Tensor, near: Neighbors) -> list[Tensor]:
        """The updates u of f. Args: x (n, p, d1): f_j."""
        updates, joined = [], []
        if self.self_mlp is not None:
            updates.append(self.act(self.self_mlp(f)))
        else:
            joined.append(f)
        if self.conv is not None and self.out_conv:
            updates.append((self.conv(near.w * g) * x).sum(1) * near.mean)
        elif self.conv is not None:
            joined.append((near.w * g * near.of_atoms(self.conv(f))).sum(1) * near.mean)
        wh = (near.w * h * near.norm).transpose(1, 2)
        joined += [self.symmetric(wh @ y) for y, has in ((g, self.has_grrg), (x, self.has_drrd)) if has]
        updates.append(self.act(self.linear1.of_parts(joined)))
        if self.attention is not None:
            updates.append(self.attention(f, x, near))
        return updates

    def symmetric(self, a: Tensor) -> Tensor:
        """1/3 H[:, :M']^T H, flattened. Args: H (n, 3, M)."""
        return (a[:, :, : self.axis_neuron].transpose(1, 2) @ a).flatten(1) / 3

    def updates_of_pairs(
        self, f: Tensor, x: Tensor, g: Tensor, h: Tensor, near: Neighbors
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The updates of g and of h."""
        assert self.linear2 is not None
        of_g, of_h = [self.act(self.linear2(g))], []
        if self.product is not None:
            of_g.append(near.w * (x @ (f[:, :, None] * self.product.weight)))
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

    def forward(self, f: Tensor, x: Tensor, near: Neighbors) -> Tensor:
        """(n, d). Args: f (n, d), x (n, p, d): f_j."""
        d, w = f.shape[1], near.w.transpose(1, 2)
        key, value = self.key_value.weight.view(d, -1, self.heads).split([self.hidden, d], 1)  # heads are the last axis
        query = self.query(f).view(-1, self.hidden, self.heads) * self.hidden**-0.5
        logits = torch.einsum("ndh,adh->nha", query, key) @ x.transpose(1, 2)  # (n, heads, p)
        weights = near.softmax((logits + SHIFT) * w if near.smooth else logits, w)
        gathered = (weights * w) @ x
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
        """Updates of g (n, p, d) and h (n, p, 3), where there are such."""
        (n, p, d), heads = g.shape, self.heads
        weights = self.weights(g, h, near)
        attended = turned = None
        if self.of_g:
            value = self.value.weight.view(d, d, heads)
            value_out = torch.einsum("ach,cho->hao", value, self.out.weight.view(d, heads, d)).reshape(heads * d, d)
            gathered = (weights @ g).view(n, heads, p, d).transpose(1, 2).flatten(2)
            attended = self.norm(nn.functional.linear(gathered, value_out.t(), self.out.bias))
        if self.turn is not None:
            turned = ((weights @ h).view(n, heads, p, 3) * self.turn.weight[:, :, None]).sum(1)
        return attended, turned

    def weights(self, g: Tensor, h: Tensor, near: Neighbors) -> Tensor:
        """A (n, heads * p, p)."""
        (n, p, d), heads = g.shape, self.heads
        query, key = self.query_key.weight.view(d, self.hidden, 2, heads).unbind(2)  # heads are the last axis
        query_key = torch.einsum("adh,bdh->ahb", query, key).reshape(d, heads * d) * self.hidden**-0.5
        queries = (g @ query_key).view(n, p, heads, d).transpose(1, 2).reshape(n, heads * p, d)
        logits = (queries @ g.transpose(1, 2)).view(n, heads, p, p)
        wh = near.w * h
        angle = (wh @ wh.transpose(1, 2))[:, None]  # w_j w_k h_j.h_k
        w = (near.w @ near.w.transpose(1, 2))[:, None]
        if near.smooth:
            logits = torch.addcmul(SHIFT * w, logits, angle if self.has_gate else w)
        elif self.has_gate:
            logits = logits * angle
        weights = near.softmax(logits, near.w[:, None].transpose(2, 3))
        return (weights * (angle * 3**-0.5)).view(n, heads * p, p)


def _residual(config: RepformerConfig, width: int, generator: torch.Generator, dtype: torch.dtype) -> nn.Parameter:
    """The vector r of an update."""
    r = torch.ones(width, dtype=torch.float64)
    if config.update_residual_init == "norm":
        r = torch.randn(width, generator=generator, dtype=torch.float64)
    return nn.Parameter((r * config.update_residual).to(dtype))
