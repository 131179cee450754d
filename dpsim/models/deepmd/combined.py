"""Models of several parts in DeePMD-kit's files: pair tables, `zbl` (a table takes over from a network), `linear` sums.

The files hold a bias for each part and one on top. In a zbl model
    E_i = (1 - w_i) (E_i^net + b_net) + w_i (E_i^tab + b_tab) + b_top
and we keep b_top + b_net as the energy bias, b_tab - b_net as the table's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dpsim.errors import ModelFileError, UnsupportedModelError
from dpsim.models.config import ModelConfig
from dpsim.models.deepmd.binding import Adapted, Binding, Tree
from dpsim.models.deepmd.settings import pairs, refuse, refuse_newer
from dpsim.models.deepmd.standard import STANDARD, ModelKind, around, bias_bindings
from dpsim.models.energy_model import EnergyModel
from dpsim.models.linear_model import LinearConfig, LinearModel
from dpsim.models.pair_table import PairPotential, PairTable
from dpsim.models.pair_table_config import Grid, PairPotentialConfig, PairTableConfig, TableConfig

_EXCLUDED = ("atom_exclude_types", "pair_exclude_types")


def _no_input(params: Tree) -> Tree:
    refuse("a pair table, whose settings a training checkpoint lacks (`dp convert-backend` makes a .dp of it)")


# Pair tables.


def _read_table(tree: Tree) -> Tree:
    """`table`, `rcut` and `sel` of a pair table. Raises ModelFileError where its numbers contradict each other."""
    refuse_newer(tree, 2, "a pair table")
    tab = tree["tab"]
    info = [float(x) for x in np.ravel(tab["@variables"]["tab_info"])]
    told = [tab["rmin"], tab["hh"], tab["nspline"], tab["ntypes"]]
    if not np.allclose(info, told, rtol=1e-12, atol=0) or tab["ntypes"] != len(tree["type_map"]):
        raise ModelFileError(
            f"`tab_info` of a pair table is {info}; expected {told}, its rmin, hh, nspline and ntypes, for "
            f"{tree['type_map']}. Get the file again."
        )
    sel = int(np.sum(tree["sel"]))
    grid = Grid(r_min=tab["rmin"], step=tab["hh"], n_intervals=int(tab["nspline"]))
    return {"table": grid, "rcut": tree["rcut"], "sel": sel}


def _write_table(table: PairTable, config: TableConfig, type_map: list[str], sel: int) -> Tree:
    grid = cast(Grid, config.table)
    return {
        **around("pairtab", type_map),
        "tab": {
            "@class": "PairTab",
            "@version": 1,
            "rmin": grid.r_min,
            "rmax": grid.r_min + grid.step * grid.n_intervals,
            "hh": grid.step,
            "ntypes": len(type_map),
            "rcut": table.rcut,
            "nspline": grid.n_intervals,
        },
        "rcut": table.rcut,
        "sel": sel,
    }


def _table_bindings(table: PairTable) -> list[Binding]:
    """Where the numbers of a table lie; the points it was made from and its grid stand there once more."""
    c, grid = table.coefficients, table.grid
    n = c.shape[0]
    data = Adapted(c, (c.numel(),), lambda x: x.view(c.shape), lambda x: x.reshape(-1))
    info = torch.tensor([grid.r_min, grid.step, grid.n_intervals, n], dtype=torch.float64, device=c.device)
    first, second = torch.triu_indices(n, n, device="cpu").tolist()
    u = torch.stack([c[a, b] for a, b in zip(first, second, strict=True)], 1)  # (n_intervals, n_pairs, 4)
    u = torch.cat([u[:, :, 3], u[-1:].sum(2)])
    r = grid.r_min + grid.step * torch.arange(len(u), dtype=torch.float64, device=c.device)
    return [
        *bias_bindings(table.bias),
        Binding("tab.@variables.tab_data", "tab_data", data),
        Binding("tab.@variables.tab_info", "tab_info", info),
        Binding("tab.@variables.vdata", "vdata", torch.cat([r[:, None], u], 1)),
    ]


def _read_pairtab(tree: Tree) -> PairPotentialConfig:
    if tree.get("atom_exclude_types"):
        refuse("a pair table with excluded types of atoms")
    excluded = pairs(tree.get("pair_exclude_types"))
    table = _read_table(tree)
    return PairPotentialConfig(type_map=tree["type_map"], pair_exclude_types=excluded, deepmd_conventions=True, **table)


def _write_pairtab(model: PairPotential) -> Tree:
    config = model.config
    written = _write_table(model.table, config, config.type_map, config.sel or _MANY)
    return written | {"pair_exclude_types": [list(pair) for pair in config.pair_exclude_types]}


_MANY = 1000  # the `sel` of a table that counts all neighbours

PAIRTAB = ModelKind(
    read=_read_pairtab,
    build=PairPotential,
    write=_write_pairtab,
    bindings=lambda model: _table_bindings(model.table),
    from_input=_no_input,
    to_input=lambda model: {"type": "pairtab", "type_map": model.config.type_map},
    check=lambda model: None,
)


# A network and a table that takes over where atoms come close.


def _read_zbl(tree: Tree) -> ModelConfig:
    refuse_newer(tree, 2, "a zbl model")
    network, table = tree["models"]
    if network["type_map"] != tree["type_map"] or table["type_map"] != tree["type_map"]:
        refuse("a zbl model whose parts have other elements, or an order of their own")
    if any(part.get(key) for part in (network, table) for key in _EXCLUDED):
        refuse("a zbl model with excluded types in one of its parts")
    settings = _read_table(table)
    config = STANDARD.read({**network, **{key: tree.get(key) for key in _EXCLUDED}} | {"fitting": _with_types(tree)})
    if settings["sel"] < max(_n_slots(e.sel) for e in config.descriptor.environments):
        refuse("a zbl model whose network sees more neighbours than its table")
    switch = {key: tree[key] for key in ("sw_rmin", "sw_rmax", "smin_alpha")}
    checked = ModelConfig.model_validate(
        config.model_dump() | {"pair_table": PairTableConfig(**settings, **switch).model_dump()}
    )
    return checked


def _with_types(tree: Tree) -> Tree:
    """The fitting of the network; its excluded types are those of the whole."""
    return {**tree["models"][0]["fitting"], "exclude_types": tree.get("atom_exclude_types") or []}


def _n_slots(sel: Any) -> int:
    return int(np.sum(sel))


def _write_zbl(model: EnergyModel) -> Tree:
    config, table = model.config, model.pair_table
    assert table is not None
    _require_mixed([config])
    sel = table.config.sel or max(_n_slots(e.sel) for e in config.descriptor.environments)
    network = STANDARD.write(model) | {key: [] for key in _EXCLUDED}
    network["fitting"]["exclude_types"] = []
    return {
        **around("zbl", config.type_map, config),
        "models": [network, _write_table(table, table.config, config.type_map, sel)],
        "weights": "mean",
        **_switch(model),
    }


def _zbl_bindings(model: EnergyModel) -> list[Binding]:
    table = model.pair_table
    assert table is not None
    network = _under(0, STANDARD.bindings(model))
    of_net, of_atoms, n = "models.0.@variables.out_bias", "models.0.fitting.@variables.bias_atom_e", len(table.bias)
    return [
        *bias_bindings(model.energy_bias),
        *_under(1, _table_bindings(table)),
        *(binding for binding in network if binding.path != of_net),
        Binding(of_net, "", _added(model.energy_bias, 1, (1, n, 1))),
        Binding(of_net, "", _added(table.bias, -1, (1, n, 1))),
        Binding(of_atoms, "", _added(table.bias, -1, (n, 1))),
    ]


def _added(bias: Tensor, sign: int, shape: tuple[int, ...]) -> Adapted:
    """A bias of a file that counts in one of ours too; written as 0."""
    return Adapted(bias, shape, lambda x: sign * x.view(-1), lambda x: x.new_zeros(shape), add=True)


ZBL = ModelKind(
    read=_read_zbl,
    build=EnergyModel,
    write=_write_zbl,
    bindings=_zbl_bindings,
    from_input=_no_input,
    to_input=lambda model: STANDARD.to_input(model) | {"use_srtab": "in the model", **_switch(model)},
    check=STANDARD.check,
)


# Linear combinations.


def _members(tree: Tree) -> list[tuple[ModelKind, Tree]]:
    return [(_member_kind(member.get("type", "standard")), member) for member in tree["models"]]


def _member_kind(name: str) -> ModelKind:
    kinds = {"standard": STANDARD, "pairtab": PAIRTAB}
    if name not in kinds:
        refuse(f"a linear combination of a model of type '{name}'")
    return kinds[name]


def _read_linear(tree: Tree) -> LinearConfig:
    refuse_newer(tree, 3, "a linear combination")
    members = [kind.read(member) for kind, member in _members(tree)]
    weights = tree.get("weights", "mean")
    if any(isinstance(m, ModelConfig) and not m.descriptor.embeds_types for m in members):
        refuse("a linear combination with a descriptor that has nets for each type")
    return LinearConfig(
        type_map=tree["type_map"],
        members=members,
        weights=weights if isinstance(weights, str) else [float(c) for c in weights],
        precision="float64" if any(member.precision == "float64" for member in members) else "float32",
        atom_exclude_types=tree.get("atom_exclude_types") or [],
        pair_exclude_types=pairs(tree.get("pair_exclude_types")),
    )


def _kinds(model: LinearModel) -> list[tuple[ModelKind, Any]]:
    found: list[tuple[ModelKind, Any]] = []
    for member in model.members:
        if isinstance(member, EnergyModel) and member.pair_table is not None:
            raise UnsupportedModelError(
                "a member of the linear combination has a `pair_table`; expected none: DeePMD-kit combines networks "
                "and tables only. Write the member by itself, or keep the .dpsim file."
            )
        found.append((PAIRTAB if isinstance(member, PairPotential) else STANDARD, member))
    return found


def _write_linear(model: LinearModel) -> Tree:
    config = model.config
    _require_mixed(config.members)
    members = [kind.write(member) for kind, member in _kinds(model)]
    for member, own in zip(members, config.members, strict=True):
        if isinstance(own, PairPotentialConfig) and own.sel is None:
            member["sel"] = min(_slots_beyond(config, own.rcut), default=_MANY)
    return {
        # DeePMD-kit 3.2 writes "linear" here and reads "linear_ener" only; both are read here.
        **around("linear_ener", config.type_map, config),
        "@version": 3,
        "models": members,
        "weights": config.weights,
    }


def _slots_beyond(config: LinearConfig, rcut: float) -> list[int]:
    """`sel` of the networks that reach as far as a table: DeePMD-kit needs as many or fewer for the table."""
    networks = [member for member in config.members if isinstance(member, ModelConfig)]
    return [_n_slots(e.sel) for member in networks for e in member.descriptor.environments if e.rcut >= rcut]


def _linear_bindings(model: LinearModel) -> list[Binding]:
    members = [_under(k, kind.bindings(member)) for k, (kind, member) in enumerate(_kinds(model))]
    return [*bias_bindings(model.energy_bias), *(binding for member in members for binding in member)]


def _from_input(params: Tree) -> Tree:
    members = []
    for member in params["models"]:
        kind = _member_kind(member.get("type", "standard"))
        whole = {"type_map": params.get("type_map"), **member}
        members.append({**kind.from_input(whole), "type": member.get("type", "standard")})
    return {**params, "models": members}


def _to_input(model: LinearModel) -> Tree:
    members = [kind.to_input(member) for kind, member in _kinds(model)]
    config = model.config
    return {"type": "linear_ener", "type_map": config.type_map, "weights": config.weights, "models": members}


def _check(model: LinearModel) -> None:
    for kind, member in _kinds(model):
        kind.check(member)


LINEAR = ModelKind(
    read=_read_linear,
    build=LinearModel,
    write=_write_linear,
    bindings=_linear_bindings,
    from_input=_from_input,
    to_input=_to_input,
    check=_check,
)


# Shared.


def _under(k: int, bindings: Iterable[Binding]) -> list[Binding]:
    return [binding.under(f"models.{k}", f"models.{k}") for binding in bindings]


def _switch(model: EnergyModel) -> Tree:
    assert model.pair_table is not None
    own = model.pair_table.config
    return {"sw_rmin": own.sw_rmin, "sw_rmax": own.sw_rmax, "smin_alpha": own.smin_alpha}


def _require_mixed(configs: Iterable[Any]) -> None:
    """DeePMD-kit combines descriptors only that embed the types."""
    for config in configs:
        if isinstance(config, ModelConfig) and not config.descriptor.embeds_types:
            raise UnsupportedModelError(
                f"the model combines a descriptor {config.descriptor.type}; expected dpa1, dpa2 or dpa3: DeePMD-kit "
                "combines no descriptors with nets for each type. Keep the .dpsim file."
            )
