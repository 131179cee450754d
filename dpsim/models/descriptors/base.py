"""What descriptors share: cutoffs, standardisation, embedding nets of pairs, the symmetric square D = A^T A[:, :M']."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from dpsim.errors import ConfigError
from dpsim.kernels.environment import environment
from dpsim.kernels.radial import DenseLayer, radial_contract, radial_contract_reference
from dpsim.models.deepmd_conventions import truncate_neighbors
from dpsim.models.descriptor_config import DescriptorConfig, Environment, SeE2aConfig, SeE2rConfig, TypePair
from dpsim.models.graph import Graph
from dpsim.models.nets import MLP

if TYPE_CHECKING:
    from dpsim.data.statistics import Statistics


class Descriptor(nn.Module):
    """Maps a graph to one vector per atom, invariant under translation, rotation and permutation.

    A subclass sets `dim_out` and implements `forward(graph) -> (n_atoms, dim_out)`. `rcut` is the largest distance it
    reads; a descriptor with several cutoffs takes `graph.within(smaller)`. Per-edge and per-angle state of
    message-passing descriptors lives inside forward: the graph carries positions and types only.
    """

    dim_out: int
    rcut: float
    second_order = False  # True: plain autograd everywhere, so that Hessians are right

    def forward(self, graph: Graph) -> Tensor:
        raise NotImplementedError

    @property
    def members(self) -> list[EnvironmentDescriptor]:
        """The descriptors with an environment matrix that this one consists of, one for each of its environments."""
        raise NotImplementedError

    def set_statistics(self, stats: Sequence[Statistics]) -> None:
        """Take the standard deviations of the environment matrices from the data.

        Args: stats: of each of the environments of the config. Native models keep davg = 0, so that an absent
        neighbour and one at the cutoff are the same.
        """
        for member, of_member in zip(self.members, stats, strict=True):
            member.dstd.copy_(torch.as_tensor(np.asarray(of_member.dstd)))

    def set_second_order(self, on: bool) -> None:
        """Choose between plain autograd everywhere and the kernels for first derivatives."""
        self.second_order = on


class EnvironmentDescriptor(Descriptor):
    """A descriptor with one environment matrix, standardised by davg and dstd (n_types, 4) of the centre's type."""

    davg: Tensor
    dstd: Tensor

    def __init__(
        self,
        where: Environment,
        n_types: int,
        deepmd: bool,
        dtype: torch.dtype,
        *,
        exclude_types: Sequence[TypePair],
        protection: float,
    ):
        super().__init__()
        self.rcut, self.rcut_smth, self.protection = where.rcut, where.rcut_smth, protection
        self.n_types = n_types
        sel = where.sel
        if sel == "auto":
            raise ConfigError(
                "`sel` is 'auto'; expected numbers. Training counts the neighbours in its data; give numbers here."
            )
        self.sel: list[int] = list(sel) if isinstance(sel, list) else [sel]
        self.exclude_types = list(exclude_types)
        self.deepmd = deepmd
        self.n_listed = sum(self.sel)  # DeePMD-kit only: neighbours in the model's list, from which `sel` are taken
        self.register_buffer("davg", torch.zeros(n_types, 4, dtype=dtype))
        self.register_buffer("dstd", torch.ones(n_types, 4, dtype=dtype))

    @property
    def members(self) -> list[EnvironmentDescriptor]:
        return [self]

    def visible(self, graph: Graph) -> Graph:
        """The edges it reads: those `listed` that are not of excluded pairs."""
        return self.listed(graph).without_pairs(self.exclude_types)

    def listed(self, graph: Graph) -> Graph:
        """The edges within its cutoff; DeePMD-kit: the `sel` nearest of them."""
        graph = graph.within(self.rcut)
        return truncate_neighbors(graph, self.sel, self.n_listed) if self.deepmd else graph

    def environment(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Standardised environment rows R~ = (R - davg[t_i]) / dstd[t_i], (n_edges, 4), and the switch w."""
        env, switch = environment(
            graph.edge_vec, self.rcut, self.rcut_smth, self.protection, second_order=self.second_order
        )
        center_type = graph.types[graph.center]
        return (env - self.davg[center_type]) / self.dstd[center_type], switch

    def radial_contract(self, env: Tensor, s: Tensor, offsets: Tensor, layers: Sequence[DenseLayer]) -> Tensor:
        """A_i = sum_j env_ij (x) G(s_ij), (n_centers, c, M): see `dpsim.kernels.radial`."""
        if self.second_order:
            return radial_contract_reference(env, s, offsets, layers)
        return radial_contract(env, s, offsets, layers)


class PairDescriptor(EnvironmentDescriptor):
    """A descriptor with an embedding net of one number for each pair of types, or each neighbour type (one-sided)."""

    def __init__(
        self,
        config: SeE2aConfig | SeE2rConfig,
        type_map: list[str],
        deepmd: bool,
        generator: torch.Generator,
        dtype: torch.dtype,
    ):
        super().__init__(
            *(config, len(type_map), deepmd, dtype),
            exclude_types=config.exclude_types,
            protection=config.env_protection,
        )
        self.neuron = config.neuron[-1]
        self.one_side = config.type_one_side
        self.nets = nn.ModuleList(
            embedding_net(config, 1, generator, dtype)
            for _ in range(self.n_types if self.one_side else self.n_types**2)
        )

    def net(self, center_type: int, neighbor_type: int) -> MLP:
        """The embedding net N of a pair of types."""
        net = self.nets[neighbor_type if self.one_side else center_type * self.n_types + neighbor_type]
        return cast(MLP, net)


def embedding_net(config: DescriptorConfig, n_in: int, generator: torch.Generator, dtype: torch.dtype) -> MLP:
    """An embedding net N of `n_in` numbers, with the widths and the activation of a descriptor's settings."""
    return MLP(n_in, config.neuron, config.activation, timestep=config.resnet_dt, generator=generator, dtype=dtype)


def square(a: Tensor, axis_neuron: int) -> Tensor:
    """D = A^T A[:, :M'], flattened. Args: a (n, 4, M). Returns (n, M * M')."""
    return (a.transpose(1, 2) @ a[:, :, :axis_neuron]).flatten(1)
