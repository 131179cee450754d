"""Tabulated pair potentials, and the interpolation between one and the network where atoms come close.

    u_ab(r) = ((a3 x + a2) x + a1) x + a0,  x = (r - r_k) / h,  r_k = r_min + k h <= r      cubic spline, 0 beyond rcut
    E_i^pair = 1/2 sum_j u(r_ij)                                                           half to each atom of a pair
    sigma_i = sum_j r_ij p_ij,  p_ij = exp(-r_ij / alpha) / sum_k exp(-r_ik / alpha)       soft minimum of distances
    v_i = clamp((r_b - sigma_i) / (r_b - r_a), 0, 1),  w_i = v_i^3 (10 - 15 v_i + 6 v_i^2) 1 below r_a, 0 above r_b
    E_i = (1 - w_i) E_i^net + w_i (E_i^pair + c_t)

Symbols: r_a = sw_rmin, r_b = sw_rmax, alpha = smin_alpha, c_t the bias of the table, 0 but in imported models. The
paper's Eq. 44 lacks the 1/2. An atom without neighbours has w = 0.

`zbl`: the repulsion of two screened nuclei, times a switch that falls from 1 at r_b to 0 at rcut:
    u(r) = k Z Z' / r phi(r / a),  a = 0.46850 A / (Z^0.23 + Z'^0.23),  k = e^2 / (4 pi eps_0) = 14.3996 eV A
    phi(x) = 0.18175 e^(-3.19980 x) + 0.50986 e^(-0.94229 x) + 0.28022 e^(-0.40290 x) + 0.02817 e^(-0.20162 x)

Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 43-46; Ziegler, Biersack, Littmark, The Stopping and
Range of Ions in Matter (1985), in the numbers of LAMMPS's pair_style zbl.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ase.data import atomic_numbers
from torch import Tensor, nn

from dpsim.data.frame import Batch
from dpsim.errors import ConfigError, DataError, SimulationError
from dpsim.models.deepmd_conventions import among_nearest
from dpsim.models.graph import Graph
from dpsim.models.pair_table_config import Grid, PairPotentialConfig, PairTableConfig, TableConfig
from dpsim.models.potential import DTYPES, Potential, in_batch_order

_ZBL_BEGIN, _ZBL_STEP = 0.02, 0.01  # A
_NOTHING = 1e-6  # eV: a table that ends there may end


class PairTable(nn.Module):
    """Splines of all pairs of types. Where its config is no grid yet, the numbers are computed or read from its file.

    coefficients (n_types, n_types, n_intervals, 4): a3, a2, a1, a0 of each interval, eV; bias (n_types,): c_t, eV.
    """

    coefficients: Tensor
    bias: Tensor

    def __init__(self, config: TableConfig, type_map: list[str], rcut: float):
        super().__init__()
        self.rcut = rcut if config.rcut is None else config.rcut
        coefficients = None
        if not isinstance(config.table, Grid):
            if config.table == "zbl":
                inner = config.sw_rmax if isinstance(config, PairTableConfig) else 0.5 * self.rcut
                r, u = zbl_table(type_map, inner, self.rcut)
            else:
                r, u = read_table(config.table, len(type_map), self.rcut)
            grid, coefficients = spline(r, u, len(type_map))
        else:
            grid = config.table
        self.config, self.grid = config.model_copy(update={"table": grid, "rcut": self.rcut}), grid
        n = len(type_map)
        shape = (n, n, self.grid.n_intervals, 4)
        value = torch.zeros(shape, dtype=torch.float64) if coefficients is None else torch.from_numpy(coefficients)
        self.register_buffer("coefficients", value)
        self.register_buffer("bias", torch.zeros(n, dtype=torch.float64))

    def visible(self, graph: Graph, deepmd: bool) -> Graph:
        """The edges it reads."""
        graph = graph.within(self.rcut)
        return graph.select(among_nearest(graph, self.config.sel)) if deepmd and self.config.sel else graph

    def forward(self, graph: Graph) -> Tensor:
        """E_i^pair + c_t (n_atoms,) eV, float64, from the edges of a graph that are visible."""
        r = torch.linalg.vector_norm(graph.edge_vec.to(torch.float64), dim=1)
        at = (r - self.grid.r_min) / self.grid.step
        if len(at) and float(at.detach().min()) < 0:
            raise SimulationError(
                f"two atoms are {float(r.detach().min()):.3g} A apart; the model's pair table begins at "
                f"{self.grid.r_min:g} A. Reduce the time step, or use a table that begins earlier."
            )
        k = at.detach().long().clamp(max=self.grid.n_intervals - 1)
        a3, a2, a1, a0 = self.coefficients[graph.types[graph.center], graph.neighbor_types, k].unbind(1)
        x = at - k
        ends = min(self.rcut, self.grid.r_min + self.grid.n_intervals * self.grid.step)
        u = torch.where(r < ends, ((a3 * x + a2) * x + a1) * x + a0, 0.0)
        return self.bias[graph.types].index_add(0, graph.center, 0.5 * u)


class Interpolation(PairTable):
    """A table and the weight w_i with which it takes over."""

    config: PairTableConfig

    def weights(self, graph: Graph, deepmd: bool) -> Tensor:
        """w_i (n_atoms,), float64, from the edges of a graph."""
        r = torch.linalg.vector_norm(graph.edge_vec.to(torch.float64), dim=1)
        zeros = r.new_zeros(graph.n_atoms)
        nearest = zeros
        if not deepmd:  # there total is at least 1e-20: too small a sigma where the nearest neighbour is beyond 4.6 A
            nearest = zeros.scatter_reduce(0, graph.center, r.detach(), "amin", include_self=False)
        p = torch.exp((nearest[graph.center] - r) / self.config.smin_alpha)
        total = zeros.index_add(0, graph.center, p).clamp(min=1e-20)
        sigma = zeros.index_add(0, graph.center, p * r) / total
        sw_rmin, sw_rmax = self.config.sw_rmin, self.config.sw_rmax
        v = ((sw_rmax - sigma) / (sw_rmax - sw_rmin)).clamp(0, 1)
        return torch.where(sigma == 0, 0.0, v**3 * (10 - 15 * v + 6 * v * v))

    def interpolate(self, energy: Tensor, graph: Graph, deepmd: bool) -> Tensor:
        """E_i (n_atoms,) eV from E_i^net, float64."""
        graph = self.visible(graph, deepmd)
        w = self.weights(graph, deepmd)
        close = w.detach() > 0
        if not bool(close.any()):
            return energy
        pair = self(graph.select(close[graph.center]))
        return energy + w * torch.where(close, pair - energy, 0.0)


class PairPotential(Potential):
    """E_i = E_i^pair + bias[t_i]: a table on its own."""

    def __init__(self, config: PairPotentialConfig):
        super().__init__()
        self.type_map, self.dtype, self.metadata = tuple(config.type_map), DTYPES[config.precision], {}
        self.table = PairTable(config, config.type_map, config.rcut)
        self.config, self.rcut = config.model_copy(update={"table": self.table.grid}), config.rcut

    @property
    def energy_bias(self) -> Tensor:  # type: ignore[override]
        """Of each type, eV."""
        return self.table.bias

    def atomic_energies(self, batch: Batch, edge_vec: Tensor) -> Tensor:
        graph, order = Graph.from_batch(batch, edge_vec, len(self.type_map))
        graph = graph.within(self.rcut).without_pairs(self.config.pair_exclude_types)
        return in_batch_order(self.table(self.table.visible(graph, self.config.deepmd_conventions)), graph, order, [])


# The numbers of a table.


def spline(r: np.ndarray, u: np.ndarray, n_types: int) -> tuple[Grid, np.ndarray]:
    """The grid and coefficients (n_types, n_types, n_intervals, 4) of u (n_points, n_pairs) at evenly spaced r (A).

    The slope is 0 at the last point, and the third derivative continuous at the second (DeePMD-kit: slope 0 at the
    first point too, which bends the first intervals). Pairs are counted 00, 01, ..., 11, 12, ...
    """
    from scipy.interpolate import CubicSpline  # 40 MiB that few models need

    step = float((r[-1] - r[0]) / (len(r) - 1))
    c = CubicSpline(step * np.arange(len(r)), u, bc_type=("not-a-knot", (1, np.zeros(u.shape[1])))).c
    c = c.transpose(2, 1, 0) * step ** np.arange(3, -1, -1)
    coefficients = np.empty((n_types, n_types, len(r) - 1, 4))
    for pair, (a, b) in enumerate(zip(*np.triu_indices(n_types), strict=True)):
        coefficients[a, b] = coefficients[b, a] = c[pair]
    return Grid(r_min=float(r[0]), step=step, n_intervals=len(r) - 1), coefficients


def zbl_table(type_map: list[str], inner: float, rcut: float) -> tuple[np.ndarray, np.ndarray]:
    """r (n,) A and u (n, n_pairs) eV of the screened repulsion of all pairs of elements, switched off to rcut."""
    unknown = [name for name in type_map if name not in atomic_numbers]
    if unknown:
        raise ConfigError(f"`type_map` has {unknown}; expected elements, whose charges `zbl` needs. Use a file.")
    r = np.linspace(_ZBL_BEGIN, rcut, 1 + round((rcut - _ZBL_BEGIN) / _ZBL_STEP))
    z = np.array([atomic_numbers[name] for name in type_map], dtype=np.float64)
    first, second = (z[k] for k in np.triu_indices(len(z)))
    x = r[:, None] * (first**0.23 + second**0.23) / 0.46850
    terms = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
    phi = sum(c * np.exp(-d * x) for c, d in terms)
    v = np.clip((rcut - r) / (rcut - inner), 0, 1)[:, None]
    return r, 14.399645478 * first * second / r[:, None] * phi * v**3 * (10 - 15 * v + 6 * v * v)


def read_table(path: Path, n_types: int, rcut: float) -> tuple[np.ndarray, np.ndarray]:
    """r (n,) A and u (n, n_pairs) eV from a text file, rows `r u_00 u_01 ... u_11 ...`, evenly spaced.

    A table that ends before rcut is continued to 0 by one cubic with its last slope. Raises DataError.
    """
    try:
        data = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"`{path}` cannot be read ({error}); expected rows of numbers, r and u. Correct it.") from None
    n_pairs = n_types * (n_types + 1) // 2
    if data.shape[1] != 1 + n_pairs or len(data) < 4:
        raise DataError(
            f"`{path}` has {data.shape[0]} rows of {data.shape[1]} numbers; expected 4 or more of {1 + n_pairs}: r and "
            f"u of the {n_pairs} pairs of {n_types} types. Correct it, or `type_map`."
        )
    r, u = data[:, 0], data[:, 1:]
    step = (r[-1] - r[0]) / (len(r) - 1)
    if not np.isfinite(data).all() or r[0] <= 0 or step <= 0 or np.abs(np.diff(r) - step).max() > 1e-3 * step:
        raise DataError(f"`{path}` begins with r = {r[:3].tolist()}; expected finite numbers, r > 0 in equal steps.")
    if r[-1] < rcut - 1e-6 * step:
        r, u = _continued(r, u, step, rcut)
    last = int(np.ceil((rcut - r[0]) / step - 1e-6))
    at_end = np.abs(u[min(last, len(r) - 1)]).max()
    if at_end > _NOTHING:
        raise DataError(
            f"`{path}` is {at_end:.3g} eV at rcut = {rcut:g} A; expected 0. Let it fall to 0 there, or end it earlier: "
            "it is then continued to 0."
        )
    return r[: last + 1], u[: last + 1]


def _continued(r: np.ndarray, u: np.ndarray, step: float, rcut: float) -> tuple[np.ndarray, np.ndarray]:
    """A table that ends before rcut, with more points: 0, or a cubic from its last value and slope to 0, 0."""
    from scipy.interpolate import CubicHermiteSpline

    n = int(np.ceil((rcut - r[-1]) / step - 1e-6))
    more = r[-1] + step * np.arange(1, n + 1)
    slope = np.where(u[-1] == 0, 0.0, (u[-1] - u[-2]) / step)
    ends = np.stack([u[-1], 0 * u[-1]]), np.stack([slope, 0 * slope])
    tail = CubicHermiteSpline([r[-1], more[-1]], *ends)(more)
    tail[-1] = 0
    return np.concatenate([r, more]), np.concatenate([u, tail])
