"""A student from a teacher: tables of its embedding on a given grid, its fitting nets with everything else folded in.

For a centre of type ti, with C the modes of its neighbour types stacked (channels, M) (full rank: the unit matrix,
shared by all types), the teacher's A = a C is linear in the student's contraction a, so its descriptor

    D_mp = 1/N_c^2 sum_c A_cm A_cp = 1/N_c^2 sum_kl C_km C_lp Gram_kl,     Gram_kl = sum_c a_ck a_cl

is linear in the features Gram_kl, k <= l: D = E^T features + e. E goes into the first layer of the fitting net: exact.
The same holds for radial parts, D = C^T a / N_c, and for a type embedding appended to D, which becomes a part of e.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Literal, cast

import torch
from torch import Tensor

from dpsim.data.frame import Batch
from dpsim.errors import UnsupportedModelError
from dpsim.kernels.environment import environment_reference
from dpsim.kernels.radial import DenseLayer, embedding_reference
from dpsim.models.config import Precision
from dpsim.models.descriptor_config import TypePair
from dpsim.models.descriptors.base import EnvironmentDescriptor
from dpsim.models.descriptors.dpa1 import Dpa1
from dpsim.models.descriptors.se_e2_a import SeE2a
from dpsim.models.descriptors.se_e2_r import SeE2r
from dpsim.models.energy_model import EnergyModel
from dpsim.models.graph import Graph
from dpsim.models.nets import MLP
from dpsim.models.student import Part, Student
from dpsim.models.student_config import LayerConfig, PartConfig, StudentConfig

COARSEST_STEP = 0.1  # A
_SAMPLES = 600  # distances at which modes are fitted
_INSENSITIVE = 1e-6  # of the largest sensitivity: no direction counts less
_FORCE_LENGTH = 0.5  # A; how much a slope counts beside a value when modes are fitted

Function = Callable[[Tensor], Tensor]  # of distances (n,) A, to (n, width)


@dataclass(frozen=True)
class Source:
    """One descriptor of the teacher as a table needs it. n: number of types, M: width of the embedding.

    embedding(ti, tj): G(r) of a pair of types; norm: D is the Gram matrix (radial: the sum) divided by it;
    tail: what is appended to D for each centre type, (n, ...), maybe of no columns.
    """

    kind: Literal["angular", "radial"]
    descriptor: EnvironmentDescriptor
    width: int
    axis: int
    norm: float
    embedding: Callable[[int, int], Function]
    pad: Tensor
    tail: Tensor
    slots: Literal["none", "per_type", "shared"]
    net_products: int  # multiplications of the embedding net, for one distance
    excluded: list[TypePair] = field(default_factory=list)
    excluded_counted: bool = False

    @property
    def dim(self) -> int:
        """Columns of D, without the tail."""
        return self.width * (self.axis or 1)

    @property
    def rcut(self) -> float:
        return self.descriptor.rcut

    @property
    def rcut_smth(self) -> float:
        return self.descriptor.rcut_smth

    @property
    def n_types(self) -> int:
        return self.descriptor.n_types


def sources(teacher: EnergyModel) -> list[Source]:
    """The descriptors of a teacher (float64). Raises UnsupportedModelError for what cannot be tabulated."""
    c = teacher.config.fitting
    for what, has in (
        ("the local frame descriptor", not teacher.descriptor.members),
        ("a pair table", teacher.pair_table is not None),
        ("parameters (fparam, aparam)", c.numb_fparam + c.numb_aparam > 0),
        ("a code of the data set (case_embd)", c.dim_case_embd > 0),
    ):
        if has:
            raise UnsupportedModelError(f"the model has {what}, which students lack. Compress a model without it.")
    return [_source(member) for member in teacher.descriptor.members]


def _source(d: EnvironmentDescriptor) -> Source:
    match d:
        case SeE2a() | SeE2r():
            return _of_pairs(d)
        case Dpa1() if len(d.attention):
            raise UnsupportedModelError(
                f"the model has {len(d.attention)} layers of attention: what a neighbour contributes depends on the "
                "other neighbours, so no table in one distance can hold it. Compress a model with `attn_layer: 0`."
            )
        case Dpa1():
            return _of_dpa1(d)
    raise UnsupportedModelError(f"the descriptor {type(d).__name__} cannot be tabulated; se_e2_a, se_e2_r, dpa1 can.")


def _of_pairs(d: SeE2a | SeE2r) -> Source:
    n, m = d.n_types, d.neuron
    at_empty = -d.davg[:, :1] / d.dstd[:, :1]  # s~ of an empty slot
    of_empty = torch.stack([torch.stack([d.net(i, j)(at_empty[i : i + 1])[0] for j in range(n)]) for i in range(n)])
    norm = float(sum(d.sel))
    angular = isinstance(d, SeE2a)

    def embedding(ti: int, tj: int) -> Function:
        layers = d.net(ti, tj).tensors()
        # Pairs that do not see each other have s~ = 0 in se_e2_r: their table is a constant.
        unseen = not angular and ((ti, tj) in d.exclude_types or (tj, ti) in d.exclude_types)
        base = 0.0 if angular or d.deepmd else of_empty[ti, tj]

        def function(r: Tensor) -> Tensor:
            s, _ = standardised(d, ti, r)
            return embedding_reference(s * 0 if unseen else s, layers)[0] - base

        return function

    _require_isotropic(d)
    return Source(
        kind="angular" if angular else "radial",
        descriptor=d,
        width=m,
        axis=d.axis_neuron if isinstance(d, SeE2a) else 0,
        norm=norm**2 if angular else 5 * norm,
        embedding=embedding,
        pad=(of_empty * at_empty[:, None] if angular else of_empty) if d.deepmd else torch.zeros_like(of_empty),
        tail=at_empty.new_zeros(n, 0),
        slots="per_type" if d.deepmd else "none",
        net_products=_products(d.net(0, 0).tensors()),
        excluded=d.exclude_types if angular else [],
        excluded_counted=angular and bool(d.exclude_types),
    )


def _of_dpa1(d: Dpa1) -> Source:
    _require_isotropic(d)
    n = d.n_types
    types = d.type_embedding()
    at_empty = -d.davg[:, :1] / d.dstd[:, :1]

    def embedding(ti: int, tj: int) -> Function:
        layers, gate = d.radial_layers(ti, tj, types), d.gate(ti, tj, types)

        def function(r: Tensor) -> Tensor:
            s, w = standardised(d, ti, r)
            g = embedding_reference(s, layers)[0]
            if gate is None:
                return g
            return g * (1 + (w[:, None] * gate if d.smooth else gate))

        return function

    def of_empty(ti: int, t: int) -> Tensor:
        g = embedding_reference(at_empty[ti], d.radial_layers(ti, t, types))[0][0]
        gate = d.gate(ti, t, types)
        return at_empty[ti] * (g if gate is None or d.smooth else g * (1 + gate))

    pad = torch.stack([torch.stack([of_empty(i, t) for t in range(n)]) for i in range(n)])
    return Source(
        kind="angular",
        descriptor=d,
        width=d.neuron,
        axis=d.axis_neuron,
        norm=float(d.sel[0] ** 2),
        embedding=embedding,
        pad=pad if d.deepmd else torch.zeros_like(pad),
        tail=types if d.concat_tebd else types[:, :0],
        slots="shared" if d.deepmd else "none",
        net_products=_products(d.radial_layers(0, 0, types)),
        excluded=d.exclude_types,
        excluded_counted=bool(d.exclude_types),
    )


def standardised(d: EnvironmentDescriptor, ti: int, r: Tensor) -> tuple[Tensor, Tensor]:
    """s~ and the switch w at distances r."""
    line = torch.stack([r, torch.zeros_like(r), torch.zeros_like(r)], 1)
    env, w = environment_reference(line, d.rcut, d.rcut_smth, d.protection)
    return (env[:, 0] - d.davg[ti, 0]) / d.dstd[ti, 0], w


def _require_isotropic(d: EnvironmentDescriptor) -> None:
    if d.davg[:, 1:].any() or (d.dstd[:, 1:] != d.dstd[:, 1:2]).any():
        raise UnsupportedModelError(
            "the model standardises x, y and z differently, or with a mean: it is not invariant under rotation, and a "
            "student is. Train or convert it with davg = 0 and equal dstd for x, y and z."
        )


def _products(layers: Sequence[DenseLayer]) -> int:
    return sum(layer.weight.numel() for layer in layers)


def with_derivatives(f: Function, r: Tensor) -> Tensor:
    """f, f' and f'' at r, (n, 3, width): exact, by dual numbers of dual numbers."""

    def slope(r: Tensor) -> Tensor:
        return cast(Tensor, torch.func.jvp(f, (r,), (torch.ones_like(r),))[1])

    d2g = torch.func.jvp(slope, (r,), (torch.ones_like(r),))[1]
    return torch.stack([f(r), slope(r), cast(Tensor, d2g)], 1)


@dataclass(frozen=True)
class Grid:
    """Where tables begin and, for each part, the step. Refined grids keep every node."""

    r_min: float
    steps: tuple[float, ...]

    @classmethod
    def coarsest(cls, parts: Sequence[Source], r_min: float) -> Grid:
        """Steps up to COARSEST_STEP that end at rcut and have a node at rcut_smth, where w has a kink in w'''.

        Where the switch begins inside a table, r_min moves down onto a node, by less than one step.
        """
        for part in parts:
            if part.rcut_smth > r_min:
                falling = part.rcut - part.rcut_smth
                step = falling / ceil(falling / COARSEST_STEP - 1e-9)
                r_min = part.rcut - step * ceil((part.rcut - r_min) / step - 1e-9)
                break
        return cls(r_min, tuple(_step(part, r_min) for part in parts))

    def refined(self, factor: int) -> Grid:
        return Grid(self.r_min, tuple(step / factor for step in self.steps))

    def nodes(self, k: int, rcut: float) -> Tensor:
        """The nodes of part k, (n_intervals + 1,), the last exactly at rcut."""
        n = round((rcut - self.r_min) / self.steps[k])
        return torch.linspace(self.r_min, rcut, n + 1, dtype=torch.float64)


def _step(part: Source, r_min: float) -> float:
    length, falling = part.rcut - r_min, part.rcut - part.rcut_smth
    least = ceil(length / COARSEST_STEP - 1e-9)
    if part.rcut_smth > r_min:
        for n in range(least, 20 * least):
            k = falling * n / length
            if abs(k - round(k)) < 1e-9:
                return length / n
    return length / least


@dataclass(frozen=True)
class Tables:
    """The embedding of each part at the nodes of a grid: (n, n, nodes, 3, M)."""

    grid: Grid
    values: tuple[Tensor, ...]

    @classmethod
    def of(cls, parts: Sequence[Source], grid: Grid) -> Tables:
        def table(part: Source, nodes: Tensor) -> Tensor:
            n = range(part.n_types)
            return torch.stack([torch.stack([with_derivatives(part.embedding(i, j), nodes) for j in n]) for i in n])

        return cls(grid, tuple(table(part, grid.nodes(p, part.rcut)) for p, part in enumerate(parts)))


@dataclass(frozen=True)
class Modes:
    """G_m(r) ~ sum_k B_k(r) C_km with B_k = sum_m G_m V_mk, for each pair of types: V (n, n, M, K), C (n, n, K, M)."""

    project: Tensor
    restore: Tensor

    def cut(self, k: int) -> Modes:
        """The k most important ones."""
        return Modes(self.project[..., :k], self.restore[..., :k, :])


def modes(part: Source, r_min: float, sensitivity: Tensor) -> Modes:
    """All M modes of a part, the most important first: what may be left out without forces noticing.

    With X the matrix of G over distances and S the sensitivity of the centre's type, the first K modes minimise
    |(X - X V C) S^1/2|: the SVD of X S^1/2 = U s W^T gives V = S^1/2 W and C = W^T S^-1/2. S makes an error count as
    much as the energy notices it, by up to _INSENSITIVE. The rows of X are R G and its slope (times _FORCE_LENGTH),
    because A sums R G and forces are slopes, at evenly spaced distances times r, because a shell holds neighbours in
    proportion to r^2.

    Args: sensitivity: (n, M, M), see `sensitivities`.
    """
    d = part.descriptor
    r = torch.linspace(r_min, part.rcut, _SAMPLES, dtype=torch.float64)

    def pair(ti: int, tj: int) -> tuple[Tensor, Tensor]:
        g = part.embedding(ti, tj)

        def weighted(r: Tensor) -> Tensor:
            if part.kind == "radial":
                return g(r)
            s, _ = standardised(d, ti, r)
            along = (s * d.dstd[ti, 0] + d.davg[ti, 0]) * r / (r + d.protection) / d.dstd[ti, 1]
            return torch.cat([s[:, None] * g(r), along[:, None] * g(r)], 1)

        value, slope, _ = with_derivatives(weighted, r).unbind(1)
        x = (torch.cat([value, _FORCE_LENGTH * slope], 1) * r[:, None]).reshape(-1, part.width)
        e, q = torch.linalg.eigh(sensitivity[ti])
        e = e.clamp(min=_INSENSITIVE * float(e[-1])) if float(e[-1]) > 0 else torch.ones_like(e)
        w = torch.linalg.svd(x @ (q * e.sqrt()), full_matrices=False)[2].T
        return (q * e.sqrt()) @ w, w.T @ (q * e.rsqrt()).T

    n = range(part.n_types)
    pairs = [[pair(i, j) for j in n] for i in n]
    project, restore = (torch.stack([torch.stack([p[k] for p in row]) for row in pairs]) for k in (0, 1))
    return Modes(project, restore)


def sensitivities(student: Student, batches: Sequence[Batch]) -> list[Tensor]:
    """S = sum over atoms of (dE/da)^T (dE/da), for each part and centre type: (n, M, M). Of a full-rank student."""
    parts = [cast(Part, part) for part in student.parts]
    n = len(student.type_map)
    total = [part.davg.new_zeros(n, part.config.channels, part.config.channels) for part in parts]
    for batch in batches:
        graph, _ = Graph.from_batch(batch, batch.edge_vectors(), n)
        graph = graph.within(student.rcut).without_pairs(student.config.pair_exclude_types)
        contractions = [part(graph).requires_grad_() for part in parts]
        gradients = torch.autograd.grad(student.fit(graph, contractions).sum(), contractions)
        for of_part, gradient in zip(total, gradients, strict=True):
            of_part.index_add_(0, graph.types, torch.einsum("icm,icn->imn", gradient, gradient))
    return total


def build_student(
    teacher: EnergyModel,
    parts: Sequence[Source],
    tables: Tables,
    bases: Sequence[Modes | None],
    precision: Precision,
) -> Student:
    """The student of a teacher (float64).

    Args: bases: for each part the first K `modes`; None: all M functions, in channels that the neighbour types share.
    """
    n = len(teacher.type_map)
    tensors: dict[str, Tensor] = {"energy_bias": teacher.energy_bias}
    for p, (part, table, basis) in enumerate(zip(parts, tables.values, bases, strict=True)):
        tensors |= {f"parts.{p}.{name}": x for name, x in _part_tensors(part, table, basis).items()}
    for t in range(n):
        net = cast(MLP, teacher.fitting.nets[t if teacher.fitting.type_wise else 0])
        *hidden, out = net.tensors()
        expansion = torch.block_diag(*(_expansion(part, b, t) for part, b in zip(parts, bases, strict=True)))
        constant = torch.cat([x for part in parts for x in (expansion.new_zeros(part.dim), part.tail[t])])
        layers = _fold(hidden, expansion, constant)
        for k, layer in enumerate(layers):
            named = {"weight": layer.weight, "bias": layer.bias, "idt": layer.idt}
            tensors |= {f"fitting.{t}.{k}.{name}": x for name, x in named.items() if x is not None}
        assert out.bias is not None  # the output layer has one
        tensors |= {f"fitting.{t}.out.weight": out.weight[:, 0], f"fitting.{t}.out.bias": out.bias}
    config = teacher.config
    student = Student(
        StudentConfig(
            type_map=config.type_map,
            precision=precision,
            r_min=tables.grid.r_min,
            parts=[_part_config(part, tables.grid, p, bases[p]) for p, part in enumerate(parts)],
            fitting=[
                LayerConfig(
                    n_in=layer.weight.shape[0],
                    n_out=layer.weight.shape[1],
                    activation=layer.activation,
                    residual=cast(Literal[0, 1, 2], layer.residual),
                    idt=layer.idt is not None,
                    bias=layer.bias is not None,
                )
                for layer in layers
            ],
            core_distances=config.core_distances if isinstance(config.core_distances, list) else None,
            atom_exclude_types=config.atom_exclude_types,
            pair_exclude_types=config.pair_exclude_types,
        )
    )
    student.load_state_dict(tensors)
    return student.eval()


def _part_config(part: Source, grid: Grid, p: int, basis: Modes | None) -> PartConfig:
    d, n = part.descriptor, part.n_types
    width = part.width if basis is None else basis.project.shape[-1]
    channels = width if basis is None else n * width
    axis = part.axis if basis is None or part.kind == "radial" else channels
    n_intervals = len(grid.nodes(p, part.rcut)) - 1
    return PartConfig(
        kind=part.kind,
        rcut=part.rcut,
        rcut_smth=part.rcut_smth,
        protection=d.protection,
        step=(part.rcut - grid.r_min) / n_intervals,
        n_intervals=n_intervals,
        width=width,
        channels=channels,
        axis=axis,
        channel_offset=[0 if basis is None else t * width for t in range(n)],
        slots=part.slots,
        sel=[] if part.slots == "none" else d.sel,
        n_listed=0 if part.slots == "none" or d.n_listed == sum(d.sel) else d.n_listed,
        excluded=part.excluded,
        excluded_counted=part.excluded_counted,
    )


def _part_tensors(part: Source, table: Tensor, basis: Modes | None) -> dict[str, Tensor]:
    d = part.descriptor
    pad = part.pad
    if basis is not None:
        table = table @ basis.project[:, :, None]
        pad = (pad[:, :, None] @ basis.project)[:, :, 0]
    return {"davg": d.davg[:, 0], "inv_dstd": 1 / d.dstd[:, :2], "table": table, "pad": pad}


def _expansion(part: Source, basis: Modes | None, t: int) -> Tensor:
    """E of one part and centre type, (n_features, dim + columns of the tail): D = E^T features, zeros for the tail."""
    if basis is None:
        c = torch.eye(part.width, dtype=torch.float64)
    else:
        c = basis.restore[t].flatten(0, 1)
    if part.kind == "angular":
        axis = part.axis if basis is None else len(c)
        k, m = torch.triu_indices(axis, len(c))
        e = c[k, :, None] * c[m, None, : part.axis]
        e = e + (k != m)[:, None, None] * c[m, :, None] * c[k, None, : part.axis]  # Gram_kl stands for Gram_lk too
        c = e.flatten(1)
    return torch.cat([c / part.norm, c.new_zeros(len(c), part.tail.shape[1])], 1)


def _fold(hidden: Sequence[DenseLayer], expansion: Tensor, constant: Tensor) -> list[DenseLayer]:
    """The layers of a fitting net as layers of the features: D = expansion^T features + constant."""
    if hidden[0].residual:  # D itself is passed on: make it with a linear layer
        return [DenseLayer(expansion, constant, None, 0, "linear"), *hidden]
    first, *others = hidden
    bias = constant @ first.weight + (0 if first.bias is None else first.bias)
    return [first._replace(weight=expansion @ first.weight, bias=bias), *others]
