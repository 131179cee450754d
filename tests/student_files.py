"""Small random students and configurations for tests: any combination of parts, slots and exclusions, written fast.

A table holds G_m(r) = A_m sin(k_m r + p_m) (times the switch w(r) where nothing else fades it) with its exact
derivatives, so G is smooth, and known in closed form at any r.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpsim.models import container


@dataclass(frozen=True)
class Part:
    """One descriptor of a random student; `low_rank`: channels of their own for each neighbour type."""

    kind: str = "angular"
    rcut: float = 4.0
    rcut_smth: float = 1.0
    protection: float = 0.0
    n_intervals: int = 300
    width: int = 8
    axis: int = 4
    low_rank: bool = False
    slots: str = "none"
    sel: tuple[int, ...] = ()
    excluded: tuple[tuple[int, int], ...] = ()
    excluded_counted: bool = False


def switch(r: np.ndarray, rcut: float, rcut_smth: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """w(r) = v^3 (10 - 15 v + 6 v^2), v = clamp((rcut - r) / (rcut - rcut_smth), 0, 1), and w', w''."""
    v = np.clip((rcut - r) / (rcut - rcut_smth), 0.0, 1.0)
    slope = -1.0 / (rcut - rcut_smth)
    return (
        v**3 * (10 - 15 * v + 6 * v * v),
        30 * v * v * (1 - v) ** 2 * slope,
        60 * v * (1 - v) * (1 - 2 * v) * slope * slope,
    )


def random_student(
    parts: tuple[Part, ...] = (Part(),),
    n_types: int = 2,
    hidden: tuple[int, ...] = (16, 16),
    activation: str = "tanh",
    precision: str = "float64",
    r_min: float = 0.6,
    core_distance: float | None = None,
    atom_exclude_types: tuple[int, ...] = (),
    pair_exclude_types: tuple[tuple[int, int], ...] = (),
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and tensors (float64) of a student. Layers as wide as the one before have a residual and an idt."""
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    configs = []
    n_features = 0
    for p, part in enumerate(parts):
        radial = part.kind == "radial"
        axis = 0 if radial else part.axis
        channels = part.width * n_types if part.low_rank else part.width
        n_features += channels if radial else axis * channels - axis * (axis - 1) // 2
        step = (part.rcut - r_min) / part.n_intervals
        configs.append(
            {
                "kind": part.kind,
                "rcut": part.rcut,
                "rcut_smth": part.rcut_smth,
                "protection": part.protection,
                "step": step,
                "n_intervals": part.n_intervals,
                "width": part.width,
                "channels": channels,
                "axis": axis,
                "channel_offset": [t * part.width if part.low_rank else 0 for t in range(n_types)],
                "slots": part.slots,
                "sel": list(part.sel),
                "excluded": [list(pair) for pair in part.excluded],
                "excluded_counted": part.excluded_counted,
            }
        )
        shape = (n_types, n_types, 1, part.width)
        amplitude, k = random.normal(0, 0.3, shape), random.uniform(0.3, 1.5, shape)
        phase = random.uniform(0, 2 * np.pi, shape)
        r = (r_min + step * np.arange(part.n_intervals + 1))[:, None]
        f, df, d2f = (
            amplitude * k**d * np.sin(k * r + phase + 0.5 * np.pi * d) for d in range(3)
        )  # each derivative of a sine is a sine a quarter period on
        if radial:
            w, dw, d2w = switch(r, part.rcut, part.rcut_smth)
            f, df, d2f = f * w, df * w + f * dw, d2f * w + 2 * df * dw + f * d2w
        tensors[f"parts.{p}.table"] = np.stack([f, df, d2f], axis=3)
        tensors[f"parts.{p}.davg"] = random.normal(0, 0.05, n_types) if part.slots != "none" else np.zeros(n_types)
        tensors[f"parts.{p}.inv_dstd"] = random.uniform(1.0, 3.0, (n_types, 2))
        pad = random.normal(0, 0.02, (n_types, n_types, part.width))
        tensors[f"parts.{p}.pad"] = pad if part.slots != "none" else np.zeros_like(pad)

    widths = [n_features, *hidden]
    layers: list[dict[str, Any]] = []
    for n_in, n_out in pairwise(widths):
        residual = {n_in: 1, 2 * n_in: 2}.get(n_out, 0)
        shape_of = {"n_in": n_in, "n_out": n_out, "residual": residual}
        layers.append({**shape_of, "activation": activation, "idt": bool(residual), "bias": True})
    n_in = widths[-1]
    for t in range(n_types):
        for n, (n_before, n_out) in enumerate(pairwise(widths)):
            name = f"fitting.{t}.{n}"
            tensors[f"{name}.weight"] = random.normal(0, 0.5, (n_before, n_out)) / np.sqrt(n_before)
            tensors[f"{name}.bias"] = random.normal(0, 0.1, n_out)
            if layers[n]["idt"]:
                tensors[f"{name}.idt"] = random.uniform(0.1, 0.5, n_out)
        tensors[f"fitting.{t}.out.weight"] = random.normal(0, 1, n_in) / np.sqrt(n_in)
        tensors[f"fitting.{t}.out.bias"] = random.normal(0, 1, 1)
    tensors["energy_bias"] = random.normal(-10, 3, n_types)

    type_map = ["O", "H", "Cu", "Na", "Cl", "Si"][:n_types]
    rcut = max(part.rcut for part in parts)
    config = {
        "type_map": type_map,
        "precision": precision,
        "r_min": r_min,
        "parts": configs,
        "fitting": layers,
        "core_distances": None if core_distance is None else [[core_distance] * n_types for _ in range(n_types)],
        "atom_exclude_types": list(atom_exclude_types),
        "pair_exclude_types": [list(pair) for pair in pair_exclude_types],
    }
    header = {
        "format_version": 1,
        "kind": "student",
        "package_version": "0.1.0",
        "config": config,
        "type_map": type_map,
        "units": {"length": "A", "energy": "eV"},
        "rcut": rcut,
        "precision": precision,
        "provenance": {"made_by": "tests/student_files.py", "seed": seed},
    }
    return header, tensors


def write_student(path: str | Path, header: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """Write what `random_student` made, as a file that is right in every respect."""
    container.write(path, {name: torch.from_numpy(np.ascontiguousarray(t)) for name, t in tensors.items()}, header)
    return Path(path)


def random_atoms(
    n: int, n_types: int = 2, volume_per_atom: float = 10.0, skewed: bool = False, closest: float = 0.9, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """types (n,) int32, positions (n, 3), cell (3, 3): a jittered lattice of mixed types, `closest` A apart or more."""
    random = np.random.default_rng(seed)
    sites = int(np.ceil(n ** (1 / 3)))
    spacing = (n * volume_per_atom) ** (1 / 3) / sites
    lattice = np.stack(np.meshgrid(*[np.arange(sites)] * 3, indexing="ij"), -1).reshape(-1, 3)
    chosen = lattice[np.sort(random.permutation(len(lattice))[:n])]
    jitter = max(0.0, 0.5 * (spacing - closest) / np.sqrt(3))
    scaled = (chosen + 0.5 + random.uniform(-jitter, jitter, (n, 3)) / spacing) / sites
    cell = spacing * sites * np.eye(3)
    if skewed:  # shear keeps the volume; the distances shrink a little
        cell = cell @ np.array([[1.0, 0.0, 0.0], [0.2, 1.0, 0.0], [-0.15, 0.25, 1.0]])
    return random.integers(0, n_types, n).astype(np.int32), scaled @ cell, cell
