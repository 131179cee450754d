"""Distribution of the angles a-b-c that neighbours a and c make at a central atom b, with error bars.

    P(theta) = < number of angles within theta, theta + d theta > / (< number of angles > d theta)

per degree, so that its sum times the width of a bin is 1. Neighbours are the atoms between two distances of the central
atom, a coordination shell. Directions that have nothing to do with one another give sin(theta)/2 (per radian).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpsim.analysis.curves import BlockCurve, ReferenceCurve, curve_of_blocks, reference_curve
from dpsim.analysis.rdf_reference import read_columns
from dpsim.analysis.rdf_shells import Array, Value, jackknife
from dpsim.analysis.structure import elements_of, open_source
from dpsim.errors import DataError, did_you_mean
from dpsim.neighbors import neighbor_list

if TYPE_CHECKING:
    from MDAnalysis import Universe

Triplet = tuple[str, str, str]
Shell = tuple[float, float]
_KEY = re.compile(r"^adf_?([A-Z][a-z]?)-?([A-Z][a-z]?)-?([A-Z][a-z]?)(?:_(\d+(?:[.p]\d+)?)A)?(_error)?$")


@dataclass(frozen=True)
class AngleDistribution:
    """P(theta) of one triplet.

    shells: (from, to) of the distances centre-first and centre-last, A. curve: per degree against degrees.
    mean, width: mean angle and standard deviation, degrees. angles_per_center: how many there are at each atom.
    """

    triplet: Triplet
    shells: tuple[Shell, Shell]
    curve: BlockCurve
    mean: Value
    width: Value
    angles_per_center: Value
    n_frames: int

    @property
    def label(self) -> str:
        """ "O-O-O" """
        return "-".join(self.triplet)


@dataclass(frozen=True)
class AngleReference:
    """P(theta) from elsewhere, and up to which distance neighbours counted there (A; None where it does not say)."""

    triplet: Triplet
    curve: ReferenceCurve
    cutoff: float | None


def angle_distribution(
    source: Universe | tuple[str | Path, str | Path],
    triplet: Triplet,
    shells: tuple[Shell, Shell],
    bins: int = 90,
    blocks: int = 10,
    frames: Sequence[int] | None = None,
) -> AngleDistribution:
    """P(theta) of the angles a-b-c at the central atom b.

    Args:
        source: an MDAnalysis Universe, or the paths (topology, trajectory); periodic or not.
        triplet: elements (a, b, c).
        shells: ((from, to) of the distance b-a, (from, to) of b-c), A; `from` itself is left out.
        bins: number of bins from 0 to 180 degrees. blocks: of the trajectory, for the error bars.
        frames: indices of the frames to use; all by default.

    Returns:
        AngleDistribution.

    Raises:
        DataError: fewer frames than blocks, an element that is not there, a block without any angle.
    """
    universe = open_source(source)
    elements = elements_of(universe)
    for name in triplet:
        if name not in elements:
            known = sorted(set(elements.tolist()))
            raise DataError(f"`triplet` has {name!r}; expected one of {known}.{did_you_mean(name, known)} Correct it.")
    chosen = list(range(len(universe.trajectory)) if frames is None else frames)
    if len(chosen) < blocks or blocks < 2:
        raise DataError(
            f"`frames` are {len(chosen)} and `blocks` {blocks}; expected 2 blocks or more, and a frame in each. Run "
            "longer, or write the trajectory more often."
        )
    counts = np.array([
        np.sum([_histogram(frame, elements, triplet, shells, bins) for frame in _frames_of(universe, part)], axis=0)
        for part in np.array_split(np.array(chosen), blocks)
    ])  # fmt: skip
    totals = counts.sum(axis=1)
    if not totals.all():
        raise DataError(
            f"`shells` of {'-'.join(triplet)} are {shells} A, in which there are no two neighbours in a block of the "
            "trajectory; expected some. Widen them, or use fewer blocks."
        )
    width = 180.0 / bins
    angle = width * (np.arange(bins) + 0.5)
    curve = curve_of_blocks("-".join(triplet), angle, counts / totals[:, None] / width)
    sizes = [len(part) for part in np.array_split(np.array(chosen), blocks)]
    centers = int(np.sum(elements == triplet[1]))

    def mean(p: Array) -> float:
        return float(angle @ p / p.sum())

    def spread(p: Array) -> float:
        return math.sqrt(float((angle - mean(p)) ** 2 @ p / p.sum()))

    per_center = (totals / np.array(sizes) / centers)[:, None]
    return AngleDistribution(
        triplet=triplet,
        shells=shells,
        curve=curve,
        mean=jackknife(curve.blocks, mean, curve.inflation),
        width=jackknife(curve.blocks, spread, curve.inflation),
        angles_per_center=jackknife(per_center, lambda n: float(n[0]), curve.inflation),
        n_frames=len(chosen),
    )


def angles_at(
    positions: Array, cell: Array, elements: NDArray[np.str_], triplet: Triplet, shells: tuple[Shell, Shell]
) -> Array:
    """All angles a-b-c of one frame, degrees, each once.

    Args: positions (n, 3) A; cell (3, 3) A, zeros where there is none; elements (n,); triplet, shells as above.
    """
    pbc = np.full(3, bool(cell.any()))
    i, j, shift = neighbor_list(positions, cell, pbc, max(shells[0][1], shells[1][1]))
    at_center = elements[i] == triplet[1]
    i, j, shift = i[at_center], j[at_center], shift[at_center]
    vector = positions[j] - positions[i] + shift @ cell
    distance = np.linalg.norm(vector, axis=1)
    arms = [
        (elements[j] == name) & (distance > near) & (distance <= far)
        for name, (near, far) in ((triplet[0], shells[0]), (triplet[2], shells[1]))
    ]
    used = arms[0] | arms[1]
    if not used.any():
        return np.zeros(0)
    i, unit = i[used], vector[used] / distance[used, None]
    first, last = arms[0][used], arms[1][used]
    # edges are sorted by centre: a row of the padded table for each
    _, row, sizes = np.unique(i, return_inverse=True, return_counts=True)
    column = np.arange(len(i)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    table = np.zeros((len(sizes), int(sizes.max()), 3))
    is_first, is_last = np.zeros(table.shape[:2], bool), np.zeros(table.shape[:2], bool)
    table[row, column], is_first[row, column], is_last[row, column] = unit, first, last
    cosine = np.einsum("nix,njx->nij", table, table)
    counted = is_first[:, :, None] & is_last[:, None, :]
    # a pair that can be named in both orders is one angle; an atom makes none with itself
    both = counted & counted.transpose(0, 2, 1)
    counted &= ~both | np.triu(np.ones(counted.shape[1:], bool), 1)
    return np.degrees(np.arccos(np.clip(cosine[counted], -1.0, 1.0)))


def load_angle_references(path: str | Path) -> list[AngleReference]:
    """Read reference distributions from .npz or .csv.

    `angle_deg` (degrees) and one column per triplet: `adf_OOO_3p4A` or `adf_O-O-O_3.4A` (neighbours within 3.4 A of the
    central atom; the distance may be left out), optionally `..._error`. Any norm will do. Raises DataError.
    """
    path = Path(path)
    columns = read_columns(path)
    matches = {key: match for key in columns if (match := _KEY.match(key))}
    if "angle_deg" not in columns or not matches:
        raise DataError(
            f"`reference` {path} has the columns {list(columns)}; expected `angle_deg` and one per triplet, such as "
            "adf_OOO_3.4A. Rename the columns."
        )
    angle = np.asarray(columns["angle_deg"], dtype=np.float64)
    found = []
    for key, match in matches.items():
        if match[5]:
            continue
        triplet = (match[1], match[2], match[3])
        values = np.asarray(columns[key], dtype=np.float64)
        norm = float(np.sum(values) * np.median(np.diff(angle)))
        if not norm > 0.0:
            raise DataError(f"`reference` {path}: {key} sums to {norm:g}; expected a distribution. Correct the file.")
        error = columns.get(f"{key}_error")
        curve = reference_curve(key, angle, values / norm, None if error is None else np.asarray(error) / norm)
        found.append(AngleReference(triplet, curve, float(match[4].replace("p", ".")) if match[4] else None))
    return found


def column_name(item: AngleDistribution) -> str:
    """The name of the column in a file that `load_angle_references` reads."""
    same = item.shells[0] == item.shells[1] and item.shells[0][0] == 0.0
    return f"adf_{item.label}" + (f"_{item.shells[0][1]:.3g}A" if same else "")


def _frames_of(universe: Universe, frames: NDArray[np.int_]) -> Iterator[tuple[Array, Array]]:
    """Positions (n, 3) and cell (3, 3), A."""
    for frame in universe.trajectory[frames.tolist()]:
        cell = np.zeros((3, 3)) if frame.dimensions is None else frame.triclinic_dimensions.astype(np.float64)
        yield frame.positions.astype(np.float64), cell


def _histogram(
    frame: tuple[Array, Array], elements: NDArray[np.str_], triplet: Triplet, shells: tuple[Shell, Shell], bins: int
) -> NDArray[np.int_]:
    angles = angles_at(*frame, elements, triplet, shells)
    return np.histogram(angles, bins=bins, range=(0.0, 180.0))[0]
