"""The model deviation: how far models disagree about a structure, which says where they know too little.

Averages <.> are over the models M_k, as populations (not samples): N atoms, forces F_i, virial W, energy E.

    devi_f,i  = sqrt(<|F_i - <F_i>|^2>)                  of each atom                          Eq. 68
    devi_v,ab = sqrt(<(W_ab - <W_ab>)^2>) / N            of each of nine components            Eq. 69
    devi_e    = sqrt(<(E - <E>)^2>) / N                  (not in the paper)
    relative    devi_f,i / (|<F_i>| + nu)                                                      Eq. 71
                devi_v,ab / (|<W>| / N + nu), |.| over all nine components                     Eq. 72
    max, min of both; avg_devi_f: mean over atoms; avg_devi_v: root mean square over components Eqs. 73-78

With labels, the distance from these stands in for that from the mean: the real error, sqrt(<|F_i - F_i,ref|^2>) and so
on, relative to the labels.

Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023). Names and definitions are those of what DeePMD-kit writes
(`dp model-devi`, model_devi.out), which for avg_devi_v differs from Eq. 77, the mean over components.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsim.data.frame import Frame
from dpsim.errors import ConfigError

Array = NDArray[np.float64]

UNITS = {
    "max_devi_v": "eV_per_atom",
    "min_devi_v": "eV_per_atom",
    "avg_devi_v": "eV_per_atom",
    "max_devi_f": "eV_per_A",
    "min_devi_f": "eV_per_A",
    "avg_devi_f": "eV_per_A",
    "devi_e": "eV_per_atom",
}
"""The statistics in the order of model_devi.out, and their units (1 for those that are relative)."""


def model_deviation(
    forces: Array,
    virials: Array | None = None,
    energies: Array | None = None,
    *,
    relative: float | None = None,
    relative_v: float | None = None,
    labels: Frame | None = None,
) -> dict[str, Any]:
    """How far models disagree, or, with labels, how far they are from these.

    Args:
        forces: (n_models, n_atoms, 3) eV/A; virials: (n_models, 3, 3) eV; energies: (n_models,) eV.
        relative: nu of the forces, eV/A; relative_v: nu of the virial, eV/atom; None: not relative.
        labels: a frame whose energy, forces and virial are compared with; what it lacks gives NaN.

    Returns:
        devi_f (n_atoms,), and of what is given the statistics named in UNITS; those of no atoms are 0.
    """
    n_atoms = max(forces.shape[1], 1)
    deviation, center = _about(forces, labels is None, None if labels is None else labels.forces)
    devi_f = np.linalg.norm(deviation, axis=-1)
    if relative is not None:
        devi_f /= np.linalg.norm(center, axis=-1) + relative
    of_atoms = devi_f if len(devi_f) else np.zeros(1)
    out: dict[str, Any] = {"devi_f": devi_f}
    out |= {"max_devi_f": of_atoms.max(), "min_devi_f": of_atoms.min(), "avg_devi_f": of_atoms.mean()}
    if virials is not None:
        spread, center = _about(virials, labels is None, None if labels is None else labels.virial)
        devi_v = spread / n_atoms
        if relative_v is not None:
            devi_v /= np.linalg.norm(center) / n_atoms + relative_v
        out |= {"max_devi_v": devi_v.max(), "min_devi_v": devi_v.min(), "avg_devi_v": np.sqrt((devi_v**2).mean())}
    if energies is not None:
        out["devi_e"] = _about(energies, labels is None, None if labels is None else labels.energy)[0] / n_atoms
    return {name: value if name == "devi_f" else float(value) for name, value in out.items()}


def _about(values: Array, mean: bool, label: Any) -> tuple[Array, Array]:
    """Root mean square distance of the models' values (n_models, ...) from their mean or the label, and that."""
    center = values.mean(axis=0) if mean else np.full(values.shape[1:], np.nan) if label is None else np.asarray(label)
    return np.sqrt(((values - center) ** 2).mean(axis=0)), center


def check_relative(relative: float | None, relative_v: float | None) -> None:
    """Raise ConfigError for a constant nu that does not protect from small forces or virials."""
    for name, value, unit in (("relative", relative, "eV/A"), ("relative_v", relative_v, "eV/atom")):
        if value is not None and not (np.isfinite(value) and value > 0.0):
            raise ConfigError(f"`{name}` is {value}; expected a number > 0 {unit}, or None. Correct it.")


def columns(relative: bool = False, relative_v: bool = False, errors: bool = False) -> list[str]:
    """The headings of a table of deviations: name and unit; `errors`: of real errors."""
    names = []
    for name, unit in UNITS.items():
        is_relative = relative if "devi_f" in name else relative_v if "devi_v" in name else False
        names.append(f"{name.replace('devi', 'error') if errors else name}_{'relative' if is_relative else unit}")
    return names


def row(found: Mapping[str, Any]) -> list[float]:
    """The statistics in the order of `columns`; NaN for those that are missing."""
    return [float(found.get(name, np.nan)) for name in UNITS]
