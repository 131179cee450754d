"""DPA-2: a DPA-1 without attention, then layers in which messages pass between atoms (`dpa2`).

    T_t   = E_type(t)                                       type embedding
    D0_i  = DPA-1 (no attention, own cutoff) [, three-body terms (own cutoff)]        repinit
    f_i   = act(D0_i W [+ T_ti W'])                         no W where D0 is as wide as f
    g_ij  = act(W_g R~_ij,0 + b),  h_ij = R~_ij,1..3        R~: the standardised environment matrix of the third cutoff
            or of r_ij/rcut and the vector to j, over rcut                            direct_dist
    (f, g, h) <- RepformerLayer(f, g, h)                    nlayers times
    D_i   = [f_i, T_ti]

Repinit: `dpa1.py`, `three_body.py`; the layers: `repformer.py`. f reaches nlayers times the repformer's cutoff.
Source: Zhang et al., npj Comput. Mater. 10, 293 (2024), Eqs. 7-23; no attention in the repinit, the activations of the
first f and g, and the third cutoff as in DeePMD-kit 3.2.0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpsim.kernels.activation import activation
from dpsim.models.descriptor_config import Dpa2Config
from dpsim.models.descriptors.base import Descriptor, EnvironmentDescriptor
from dpsim.models.descriptors.dpa1 import Dpa1
from dpsim.models.descriptors.repformer import Neighbors, RepformerLayer
from dpsim.models.descriptors.three_body import SeE3Tebd
from dpsim.models.graph import Graph, starts
from dpsim.models.nets import Layer

FEW = 1e-4  # added to the number of neighbours, not smooth, as in DeePMD-kit


class Repformer(EnvironmentDescriptor):
    """The layers, and the g and h they begin with."""

    def __init__(self, config: Dpa2Config, n_types: int, deepmd: bool, generator: torch.Generator, dtype: torch.dtype):
        settings = config.repformer
        super().__init__(
            *(settings, n_types, deepmd, dtype), exclude_types=config.exclude_types, protection=config.env_protection
        )
        self.smooth, self.direct_dist, self.use_sqrt = config.smooth, settings.direct_dist, settings.use_sqrt_nnei
        self.act = activation(settings.activation)
        self.g_embedding = Layer(1, settings.g2_dim, "linear", resnet=False, generator=generator, dtype=dtype)
        self.layers = nn.ModuleList(
            RepformerLayer(settings, config.smooth, k == settings.nlayers - 1, generator, dtype)
            for k in range(settings.nlayers)
        )

    def pass_messages(self, graph: Graph, f: Tensor) -> Tensor:
        """f (n_atoms, d1) after all layers."""
        near, g, h = self.pairs(graph)
        for layer in self.layers:
            f, g, h = layer(f, g, h, near)
        return f

    def pairs(self, graph: Graph) -> tuple[Neighbors, Tensor, Tensor]:
        """The neighbours, g (n_edges, d2) and h (n_edges, 3)."""
        graph, slots = self.visible(graph).in_slots()
        rows, switch = self.environment(graph)
        if self.direct_dist:
            r = torch.linalg.vector_norm(graph.edge_vec, dim=1, keepdim=True)
            rows = torch.cat([r, graph.edge_vec], 1) / self.rcut
        s, h = rows.split([1, 3], -1)
        w = (switch if self.smooth else torch.ones_like(switch))[:, None]
        n = w.new_full((1, 1), self.sel[0]) if self.smooth else slots.count[:, None].to(w.dtype)
        few = 0.0 if self.smooth else FEW
        norm = 1 / (few + (torch.sqrt(n) if self.use_sqrt else n))
        near = Neighbors(
            atom=graph.neighbor,
            offsets=starts(slots.count),
            slots=slots,
            w=w,
            mean=1 / (few + n),
            norm=norm if self.smooth else norm[graph.center],
            n_slots=self.sel[0] if self.smooth else 0,
            smooth=self.smooth,
        )
        return near, self.act(self.g_embedding(s)), h


class Dpa2(Descriptor):
    """See the module's docstring for the equations."""

    def __init__(
        self, config: Dpa2Config, type_map: list[str], deepmd: bool, generator: torch.Generator, dtype: torch.dtype
    ):
        super().__init__()
        args = (type_map, deepmd, generator, dtype)
        self.rcut, self.concat_tebd = config.rcut, config.concat_output_tebd
        self.repinit = Dpa1(config.repinit_descriptor, *args)
        three_body = config.three_body_descriptor
        self.three_body = None if three_body is None else SeE3Tebd(three_body, *args, own_types=False)
        self.repformer = Repformer(config, len(type_map), deepmd, generator, dtype)

        def linear(n_in: int) -> Layer:
            return Layer(n_in, f_dim, "linear", bias=False, resnet=False, generator=generator, dtype=dtype)

        f_dim, tebd_dim = config.repformer.g1_dim, config.repinit.tebd_dim
        n_repinit = self.repinit.dim_out + (0 if self.three_body is None else self.three_body.dim_out)
        self.shape_transform = None if n_repinit == f_dim else linear(n_repinit)
        self.tebd_transform = linear(tebd_dim) if config.add_tebd_to_repinit_out else None
        self.dim_out = f_dim + (tebd_dim if self.concat_tebd else 0)

    @property
    def members(self) -> list[EnvironmentDescriptor]:
        return [part for part in (self.repinit, self.three_body, self.repformer) if part is not None]

    def set_second_order(self, on: bool) -> None:
        super().set_second_order(on)
        for part in self.members:
            part.set_second_order(on)

    def forward(self, graph: Graph) -> Tensor:
        """D (n_atoms, dim_out) of the atoms of a graph."""
        types = self.repinit.type_embedding()
        f = self.repinit(graph)
        if self.three_body is not None:
            f = torch.cat([f, self.three_body(graph, types)], 1)
        if self.shape_transform is not None:
            f = self.shape_transform(f)
        if self.tebd_transform is not None:
            f = f + self.tebd_transform(types)[graph.types]
        f = self.repformer.pass_messages(graph, self.repformer.act(f))
        return torch.cat([f, types[graph.types]], 1) if self.concat_tebd else f
