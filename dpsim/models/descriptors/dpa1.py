"""DPA-1: type embedding and gated self-attention over the neighbours of an atom (`se_atten`).

    T_t  = E_type(t)                                       type embedding, (tebd_dim,)
    G_ij = N([s~, T_tj, T_ti])                             concat: types enter the embedding net
    G_ij = N(s~) * (1 + w(r) N_strip([T_tj, T_ti]))        strip: types gate it (without w where not smooth)
    for each attention layer, q, k, v rows of G W_qkv, each normalised:
        l_jk = c q_j.k_k                                   c = temperature, default (attn * scaling_factor)^-1/2
        l_jk <- (l_jk + 20) w_j w_k - 20                   smooth only, as is the next w_j w_k
        a_jk = w_j w_k softmax_k(l_jk) (r^_j.r^_k)         the gate r^.r^ where attn_dotr
        G    <- LayerNorm(G + (a v) W_out)
    A_i  = 1/sel sum_j R~_ij (x) G_ij,   D_i = [A_i^T A_i[:, :M'], T_ti]

R~, s~ as in se_e2_a. The softmax runs over `sel` slots, of which empty ones hold l = -20: with a fixed number of
slots the energy stays smooth when a neighbour enters, and the sum over true neighbours is never cut.
Source: Zhang et al., npj Comput. Mater. 10, 94 (2024); DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 17-26;
order of LayerNorm and residual, normalised values and the strip gate as in DeePMD-kit 3.2.0.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dpsim.kernels.radial import DenseLayer, attach, embedding, embedding_reference
from dpsim.kernels.rows import scaled_rows
from dpsim.models.deepmd_conventions import empty_slots, fading_directions
from dpsim.models.descriptor_config import Dpa1Config
from dpsim.models.descriptors.base import EnvironmentDescriptor, embedding_net, square
from dpsim.models.graph import Graph, Segment, compact, pad_rows
from dpsim.models.nets import MLP, Layer, LayerNorm
from dpsim.models.type_embedding import TypeEmbedding

SHIFT = 20.0  # of the smooth softmax


class GatedAttention(nn.Module):
    """One layer of self-attention among the neighbours of each atom; see the module's docstring."""

    def __init__(self, config: Dpa1Config, sel: int, generator: torch.Generator, dtype: torch.dtype):
        super().__init__()
        dim, hidden = config.neuron[-1], config.attn
        self.smooth, self.dotr, self.normalize, self.sel = config.smooth, config.attn_dotr, config.normalize, sel
        self.scale = (hidden * config.scaling_factor) ** -0.5 if config.temperature is None else config.temperature
        self.in_proj = Layer(dim, 3 * hidden, "linear", resnet=False, generator=generator, dtype=dtype)
        self.out_proj = Layer(hidden, dim, "linear", resnet=False, generator=generator, dtype=dtype)
        self.norm = LayerNorm(dim, eps=config.ln_eps, dtype=dtype)

    def forward(self, g: Tensor, switch: Tensor, direction: Tensor, full: Tensor) -> Tensor:
        """G (n, p, M), w (n, p), unit vectors (n, p, 3), which slots are full (n, p) -> new G."""
        q, k, v = self.in_proj(g).chunk(3, -1)
        w = switch[..., None] if self.smooth else 1.0
        q, k, v = self.rows(q, w * self.scale), self.rows(k, w), self.rows(v, 1.0)
        if self.smooth:
            weights, factor = self.smooth_softmax(q, k, switch)
        else:
            weights = torch.softmax((q @ k.transpose(1, 2)).masked_fill(~full[:, None, :], -1e30), -1)
            factor = torch.ones_like(switch)
        if self.smooth or self.dotr:  # w_j w_k and the gate r^_j.r^_k are one product of scaled directions
            right = w * direction if self.dotr else switch[..., None]
            weights = weights * ((factor[..., None] * right) @ right.transpose(1, 2))
        return self.norm(g + self.out_proj(weights @ v))

    def rows(self, x: Tensor, factor: Tensor | float) -> Tensor:
        """factor x / |x| for each row, or factor x where rows are not normalised."""
        if not self.normalize:
            return x * factor
        return scaled_rows(x, factor * x.shape[-1] ** -0.5, False, 1e-30)

    def smooth_softmax(self, q: Tensor, k: Tensor, switch: Tensor) -> tuple[Tensor, Tensor]:
        """softmax_k(w_j w_k (c q_j.k_k + 20) - 20) over `sel` slots, as weights (n, p, p) times a factor (n, p).

        q and k come with c w_j and w_k in them, and the -20 drops out. Empty slots of the table have w = 0, so logit
        0, as empty slots must. Of the other m = sel - p empty slots, each adds exp(0) to the sum Z, so Z / (Z + m) is
        the factor. 1/Z is read off the diagonal: weight_jj = exp(logit_jj) / Z. (Where there are more neighbours than
        slots, m < 0, the energy stays smooth in the same way.)
        """
        w = switch[..., None]
        logits = torch.baddbmm(SHIFT * (w @ w.transpose(1, 2)), q, k.transpose(1, 2))
        weights = torch.softmax(logits, -1)
        one_over_z = weights.diagonal(dim1=1, dim2=2) * torch.exp(-logits.diagonal(dim1=1, dim2=2))
        return weights, 1 / (1 + (self.sel - q.shape[1]) * one_over_z)

    def of_empty_slot(self, g: Tensor) -> Tensor:
        """The same for an empty slot of DeePMD-kit, which attends to nothing."""
        return self.norm(g if self.out_proj.bias is None else g + self.out_proj.bias)


class Dpa1(EnvironmentDescriptor):
    """See the module's docstring for the equations."""

    def __init__(
        self, config: Dpa1Config, type_map: list[str], deepmd: bool, generator: torch.Generator, dtype: torch.dtype
    ):
        super().__init__(
            *(config, len(type_map), deepmd, dtype),
            exclude_types=config.exclude_types,
            protection=config.env_protection,
        )
        self.neuron = config.neuron[-1]
        self.one_side, self.smooth, self.concat_tebd = config.type_one_side, config.smooth, config.concat_output_tebd
        self.type_embedding = TypeEmbedding(
            *(type_map, config.tebd_dim),
            econf=config.use_econf_tebd,
            bias=config.use_tebd_bias,
            generator=generator,
            dtype=dtype,
        )

        def net(n_in: int) -> MLP:
            return embedding_net(config, n_in, generator, dtype)

        n_type_inputs = config.tebd_dim * (1 if self.one_side else 2)
        strip = config.tebd_input_mode == "strip"
        self.net = net(1 if strip else 1 + n_type_inputs)
        self.strip_net = net(n_type_inputs) if strip else None
        self.attention = nn.ModuleList(
            GatedAttention(config, self.sel[0], generator, dtype) for _ in range(config.attn_layer)
        )
        self.axis_neuron = config.axis_neuron
        self.dim_out = config.neuron[-1] * config.axis_neuron + (config.tebd_dim if self.concat_tebd else 0)

    def forward(self, graph: Graph) -> Tensor:
        """D (n_atoms, dim_out) of the atoms of a graph."""
        listed = self.listed(graph)
        graph, segments = listed.without_pairs(self.exclude_types).sorted_by_pair()
        env, switch = self.environment(graph)
        direction = self.directions(graph) if self.attention else env
        n_empty = empty_slots(listed, self.sel)[:, 0] if self.deepmd else None
        types = self.type_embedding()
        descriptors = []
        for ti, start, stop in graph.blocks:
            own = [segment for segment in segments if segment.center_type == ti]
            if self.attention:
                a = self.attend(own, env, switch, direction, types)
            else:
                a = self.contract_segments(own, env, switch, types)
            if n_empty is not None:
                a = a + self.padding_term(ti, n_empty[start:stop], graph.first_type[start:stop], types)
            d = square(a / self.sel[0], self.axis_neuron)
            descriptors.append(torch.cat([d, types[ti].expand(len(d), -1)], 1) if self.concat_tebd else d)
        return torch.cat(descriptors)

    def directions(self, graph: Graph) -> Tensor:
        """Unit vectors r^_ij, (n_edges, 3)."""
        if self.deepmd:
            return fading_directions(graph.edge_vec, self.rcut, self.rcut_smth, self.dstd[graph.types[graph.center], 1])
        return nn.functional.normalize(graph.edge_vec, dim=1)

    def contract_segments(self, segments: list[Segment], env: Tensor, switch: Tensor, types: Tensor) -> Tensor:
        """sum_j R~_ij (x) G_ij without attention: for a pair of types G is a function of s~ (and of w, in the gate)."""
        a = env.new_zeros(())
        for ti, tj, edges, offsets in segments:
            rows = env[edges]
            s, layers, gate = rows[:, 0], self.radial_layers(ti, tj, types), self.gate(ti, tj, types)
            if gate is None:
                a = a + self.radial_contract(rows, s, offsets, layers)
            elif self.smooth:
                both = torch.cat([rows, rows * switch[edges, None]], 1)
                plain, gated = self.radial_contract(both, s, offsets, layers).split(4, 1)
                a = a + plain + gated * gate
            else:
                a = a + self.radial_contract(rows, s, offsets, layers) * (1 + gate)
        return a

    def attend(self, segments: list[Segment], env: Tensor, switch: Tensor, direction: Tensor, types: Tensor) -> Tensor:
        """sum_j R~_ij (x) G_ij with attention among all neighbours of i, whatever their types."""
        parts = []
        for ti, tj, edges, _ in segments:
            s, layers, gate = env[edges, 0], self.radial_layers(ti, tj, types), self.gate(ti, tj, types)
            g = embedding_reference(s, layers)[0] if self.second_order else attach(s, *embedding(s, layers))
            if gate is not None:
                g = g + g * (gate * switch[edges, None] if self.smooth else gate)
            parts.append(g)
        # Rows of edges -> rows of slots, one row of slots per centre.
        first = segments[0].edges.start
        table = compact(torch.cat([segment.slots() for segment in segments], 1))
        local = torch.where(table >= 0, table - first, -1)
        g = pad_rows(torch.cat(parts))[local]
        env, switch, direction = (pad_rows(x)[table] for x in (env, switch, direction))
        for layer in self.attention:
            g = layer(g, switch, direction, table >= 0)
        return env.transpose(1, 2) @ g

    def radial_layers(self, ti: int, tj: int, types: Tensor) -> list[DenseLayer]:
        """The embedding net of a pair of types as a net of s~ alone: in concat mode T enters the first bias."""
        if self.strip_net is not None:
            return self.net.tensors()
        return self.net.of_one_number(types[tj] if self.one_side else torch.cat([types[tj], types[ti]]))

    def gate(self, ti: int, tj: int, types: Tensor) -> Tensor | None:
        """N_strip([T_tj, T_ti]), (M,); None in concat mode."""
        if self.strip_net is None:
            return None
        t = types[tj] if self.one_side else torch.cat([types[tj], types[ti]])
        return self.strip_net(t[None])[0]

    def padding_term(self, ti: int, n_empty: Tensor, first_type: Tensor, types: Tensor) -> Tensor:
        """DeePMD-kit only: empty slots hold R~_0 = -davg/dstd and the type of the frame's first atom.

        Slots of excluded pairs are not among them: they hold 0.
        """
        row = -self.davg[ti] / self.dstd[ti]
        total = row.new_zeros(len(n_empty), 4, self.neuron)
        for t in range(self.n_types):
            g = embedding_reference(row[:1], self.radial_layers(ti, t, types))[0][0]
            gate = self.gate(ti, t, types)
            if gate is not None and not self.smooth:  # smooth: the gate is w = 0 here
                g = g * (1 + gate)
            for layer in self.attention:
                g = cast(GatedAttention, layer).of_empty_slot(g)
            total = total + (n_empty * (first_type == t))[:, None, None] * torch.outer(row, g)
        return total
