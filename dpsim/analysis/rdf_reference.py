"""Reference radial distribution functions: reading them, and saying by how much a simulated one differs."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from dpsim.analysis.rdf_shells import RDF, Array, Pair, Value, find_tops, fit_peak, jackknife
from dpsim.errors import DataError
from dpsim.files import atomic_write

_SAME_PEAK = 0.3  # A; peaks nearer than this are the same peak
_BOOTSTRAP = 200
_KEY = re.compile(r"^g?_?([A-Z][a-z]?)[-_]?([A-Z][a-z]?)(_error|_err)?$")


@dataclass(frozen=True)
class RDFReference:
    """g(r) of one pair from elsewhere. g_error may be unknown (None); n_frames too."""

    pair: Pair
    r: Array
    g: Array
    g_error: Array | None = None
    n_frames: int | None = None
    source: str = ""


@dataclass(frozen=True)
class PeakComparison:
    """One peak of a simulated g(r) beside the nearest one of the reference; positions in A."""

    position: Value
    position_reference: Value
    height: Value
    height_reference: Value

    @property
    def position_difference(self) -> Value:
        """Simulation minus reference, A."""
        return _minus(self.position, self.position_reference)

    @property
    def height_difference(self) -> Value:
        """Simulation minus reference."""
        return _minus(self.height, self.height_reference)


@dataclass(frozen=True)
class RDFComparison:
    """By how much g(r) differs from its reference, over the bins both have.

    r, difference, combined_error: bin centres (A), g - g_ref, and sqrt(error^2 + error_ref^2), (bins,).
    rms_difference: root mean square of g - g_ref. rms_in_errors: the same of (g - g_ref)/combined_error; about
        `rms_in_errors_expected` (a little above 1, from few blocks) where the two agree.
    r_factor: sum |g - g_ref| / sum |g_ref|; 0 for identical curves. r_factor_noise: what the error bars alone give.
    overlap: 1 - r_factor/2.
    peaks: the peaks of the simulated curve that the reference has too, by distance.
    largest: the difference with its error in the bin that deviates most, in errors; it lies at largest_r (A).
    reference_error: "given", "estimated" (from the number of frames, as counting noise) or "unknown" (taken as 0).
    """

    pair: Pair
    r: Array
    g_reference: Array
    reference_error_values: Array
    difference: Array
    combined_error: Array
    rms_difference: float
    rms_in_errors: float
    rms_in_errors_expected: float
    r_factor: Value
    r_factor_noise: float
    peaks: tuple[PeakComparison, ...]
    largest: Value
    largest_r: float
    reference_error: str
    source: str

    @property
    def first_peak(self) -> PeakComparison:
        """The first peak that both curves have; values that are not a number where there is none."""
        missing = Value(math.nan, math.inf)
        return self.peaks[0] if self.peaks else PeakComparison(missing, missing, missing, missing)

    @property
    def peak_position(self) -> Value:
        """Position of the first peak, A."""
        return self.first_peak.position

    @property
    def peak_position_reference(self) -> Value:
        """Position of the reference's first peak, A."""
        return self.first_peak.position_reference

    @property
    def peak_position_difference(self) -> Value:
        """Shift of the first peak against the reference, A."""
        return self.first_peak.position_difference

    @property
    def peak_height(self) -> Value:
        """Height of the first peak."""
        return self.first_peak.height

    @property
    def peak_height_reference(self) -> Value:
        """Height of the reference's first peak."""
        return self.first_peak.height_reference

    @property
    def peak_height_difference(self) -> Value:
        """Difference in height of the first peak."""
        return self.first_peak.height_difference

    @property
    def overlap(self) -> float:
        """1 - r_factor/2: the common part of the two curves."""
        return 1.0 - 0.5 * self.r_factor.value

    @property
    def label(self) -> str:
        """ "O-H" """
        return "-".join(self.pair)


def load_rdf_reference(path: str | Path) -> dict[str, RDFReference]:
    """Read reference RDFs from .npz or .csv.

    npz: arrays r (A), gOO, gOH, ..., optionally gOO_error, ... and n_frames. csv: a header `r,gOO,gOH` (or `r,O-O`),
    optionally `gOO_error`; lines that begin with # are comments.

    Returns:
        {"O-O": RDFReference, ...} in the order of the file.

    Raises:
        DataError: a file that is missing, unreadable, or holds no such arrays.
    """
    path = Path(path)
    columns = read_columns(path)
    if "r" not in columns:
        raise DataError(
            f"`reference` {path} has the columns {list(columns)}; expected `r` (A) and one g per pair, such as gOO. "
            "Rename the columns."
        )
    frames = columns.get("n_frames")
    n_frames = int(np.asarray(frames)) if frames is not None and np.asarray(frames).size == 1 else None
    references: dict[str, RDFReference] = {}
    errors: dict[str, Array] = {}
    for key, values in columns.items():
        match = _KEY.match(key)
        if match is None or key == "r":
            continue
        label = f"{match[1]}-{match[2]}"
        if match[3]:
            errors[label] = np.asarray(values, dtype=np.float64)
        else:
            references[label] = _reference((match[1], match[2]), columns["r"], values, None, n_frames, path)
    if not references:
        raise DataError(
            f"`reference` {path} has the columns {list(columns)}; expected g per pair, such as gOO. Rename."
        )
    for label, g_error in errors.items():
        if label in references:
            ref = references[label]
            references[label] = _reference(ref.pair, ref.r, ref.g, g_error, n_frames, path)
    return references


def save_rdf(path: str | Path, rdfs: Sequence[RDF]) -> Path:
    """Write RDFs on one grid as CSV that `load_rdf_reference` reads, atomically: r, gOO, gOO_error, nOO, ..."""
    path = Path(path)
    header = ["r"]
    columns = [rdfs[0].r]
    for item in rdfs:
        name = "".join(item.pair)
        header += [f"g{name}", f"g{name}_error", f"coordination_{name}", f"coordination_{name}_error"]
        columns += [item.g, item.g_error, item.coordination, item.coordination_error]
    lines = [header, *([f"{x:.6g}" for x in row] for row in zip(*columns, strict=True))]
    atomic_write(path, "".join(",".join(line) + "\n" for line in lines).encode())
    return path


def compare_rdf(rdf: RDF, reference: RDFReference | RDF) -> RDFComparison:
    """Quantify the difference of g(r) from a reference.

    The reference is brought to the bins of `rdf` by interpolating its pair count int g r^2 dr (monotone cubic), which
    keeps the number of neighbours; equal bins are taken as they are. Errors of the reference: those given with it;
    else, with n_frames known, the counting noise sqrt(g / (n_frames n_ideal)) of a cell as large as the simulated one,
    a lower bound, since frames of a short trajectory are not independent; else zero. To both curves one count is
    added as the smallest error a bin can have.

    Args:
        rdf: the simulated g(r).
        reference: another one of the same pair, in either order.

    Returns:
        RDFComparison. Judging it is up to the protocol.

    Raises:
        DataError: another pair, or no common range.
    """
    if sorted(reference.pair) != sorted(rdf.pair):
        raise DataError(
            f"`reference` is of {'-'.join(reference.pair)}; expected {rdf.label}. Choose the reference of this pair."
        )
    common = _common_bins(rdf, reference.r)
    g_ref, kind, ref_error = _on_grid(rdf, reference)
    count = 1.0 / (rdf.n_frames * rdf.ideal_pairs)
    combined = np.sqrt(rdf.g_error**2 + ref_error**2 + count**2)
    used = common & ((rdf.g > 0.0) | (g_ref > 0.0))
    if not used.any():
        raise DataError(
            f"`reference` covers {reference.r[0]:g} ... {reference.r[-1]:g} A, where neither curve has pairs; expected "
            f"an overlap with 0 ... {rdf.edges[-1]:g} A. Check the unit of r."
        )
    difference = rdf.g - g_ref
    pulls = difference[used] / combined[used]
    norm = float(np.sum(np.abs(g_ref[common])))

    def r_factor(g: Array) -> float:
        return float(np.sum(np.abs(g - g_ref)[common])) / norm

    worst = int(np.flatnonzero(used)[np.argmax(np.abs(pulls))])
    freedom = rdf.n_blocks - 1
    return RDFComparison(
        pair=rdf.pair,
        r=rdf.r[common],
        g_reference=g_ref[common],
        reference_error_values=ref_error[common],
        difference=difference[common],
        combined_error=combined[common],
        rms_difference=float(np.sqrt(np.mean(difference[common] ** 2))),
        rms_in_errors=float(np.sqrt(np.mean(pulls**2))),
        rms_in_errors_expected=math.sqrt(freedom / (freedom - 2)) if freedom > 2 else math.inf,
        r_factor=jackknife(rdf.block_g, r_factor, rdf.inflation),
        r_factor_noise=math.sqrt(2.0 / math.pi) * float(np.sum(combined[used])) / norm,
        peaks=_compare_peaks(rdf, g_ref, ref_error),
        largest=Value(float(difference[worst]), float(combined[worst])),
        largest_r=float(rdf.r[worst]),
        reference_error=kind,
        source=reference.source if isinstance(reference, RDFReference) else "",
    )


def _minus(a: Value, b: Value) -> Value:
    """a - b of independent values."""
    return Value(a.value - b.value, math.hypot(a.error, b.error))


def _reference(
    pair: Pair, r: ArrayLike, g: ArrayLike, g_error: ArrayLike | None, n_frames: int | None, path: Path
) -> RDFReference:
    """A reference whose arrays are checked."""
    arrays = [np.asarray(x, dtype=np.float64) for x in (r, g, g if g_error is None else g_error)]
    label = "-".join(pair)
    if any(x.shape != arrays[0].shape or x.ndim != 1 or len(x) < 3 for x in arrays):
        raise DataError(
            f"`reference` {path} has shapes {[x.shape for x in arrays[:2]]} for r and g of {label}; expected two equal "
            "vectors of at least 3 values. Correct the file."
        )
    if not all(np.isfinite(x).all() for x in arrays) or np.any(np.diff(arrays[0]) <= 0.0) or np.any(arrays[1] < -0.5):
        raise DataError(
            f"`reference` {path} has NaN, negative g or r that does not increase for {label}; expected a clean table "
            "with r in A. Correct the file."
        )
    return RDFReference(pair, arrays[0], arrays[1], None if g_error is None else arrays[2], n_frames, str(path))


def read_columns(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file, or the columns of a .csv, by name. Raises DataError."""
    if not path.is_file():
        raise DataError(f"`reference` is {path}, which is no file; expected an .npz or .csv file. Correct the path.")
    try:
        return _read_npz(path) if path.suffix == ".npz" else _read_csv(path)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(
            f"`reference` {path} cannot be read ({error}); expected an .npz or .csv table. Export it again."
        ) from error


def _read_npz(path: Path) -> dict[str, Any]:
    """The arrays of an npz file, never unpickled."""
    with np.load(path, allow_pickle=False) as data:
        return {key: data[key] for key in data.files}


def _read_csv(path: Path) -> dict[str, Any]:
    """The columns of a CSV file by header."""
    with path.open(newline="") as file:
        rows = list(csv.reader(line for line in file if line.strip() and not line.startswith("#")))
    header = [name.strip() for name in rows[0]] if rows else []
    table = np.array([[float(x) for x in row] for row in rows[1:]]).reshape(-1, len(header))
    return {name: table[:, k] for k, name in enumerate(header)}


def _edges(r: Array) -> Array:
    """Bin edges around bin centres: half-way between, the outer ones symmetric, none below 0."""
    middle = 0.5 * (r[1:] + r[:-1])
    return np.concatenate([[max(0.0, 2.0 * r[0] - middle[0])], middle, [2.0 * r[-1] - middle[-1]]])


def _common_bins(rdf: RDF, r_reference: Array) -> NDArray[np.bool_]:
    """The bins of `rdf` that lie within the reference's range."""
    edges = _edges(r_reference)
    inside: NDArray[np.bool_] = (rdf.edges[:-1] >= edges[0] - 1e-6) & (rdf.edges[1:] <= edges[-1] + 1e-6)
    return inside


def _rebin(edges_from: Array, g: Array, edges_to: Array) -> Array:
    """g in other bins, conserving int g r^2 dr; zero outside the range of the source."""
    count = np.concatenate([[0.0], np.cumsum(g * np.diff(edges_from**3))])
    inside = np.clip(edges_to, edges_from[0], edges_from[-1])
    rebinned: Array = np.diff(PchipInterpolator(edges_from, count)(inside)) / np.diff(edges_to**3)
    return rebinned


def _on_grid(rdf: RDF, reference: RDFReference | RDF) -> tuple[Array, str, Array]:
    """The reference in the bins of `rdf`: its g, the origin of its error, and its error."""
    edges = _edges(reference.r)
    same = len(edges) == len(rdf.edges) and np.allclose(edges, rdf.edges, atol=1e-5)
    g = reference.g if same else _rebin(edges, reference.g, rdf.edges)
    if reference.g_error is not None:
        # errors of neighbouring bins are taken as independent: narrower bins are noisier
        width = np.interp(rdf.r, reference.r, np.diff(edges))
        error = np.interp(rdf.r, reference.r, reference.g_error) * np.sqrt(width / np.diff(rdf.edges))
        return g, "given", error
    if reference.n_frames is not None:
        count = 1.0 / (reference.n_frames * rdf.ideal_pairs)
        return g, "estimated", np.sqrt(np.maximum(g, 0.0) * count + count**2)
    return g, "unknown", np.zeros_like(g)


def _compare_peaks(rdf: RDF, g_ref: Array, ref_error: Array) -> tuple[PeakComparison, ...]:
    """Every peak of `rdf` beside the reference's within 0.3 A; the reference's errors by a parametric bootstrap."""
    random = np.random.default_rng(0)
    samples = g_ref + ref_error * random.normal(size=(_BOOTSTRAP, len(g_ref)))
    tops = find_tops(g_ref, ref_error)
    peaks = []
    for shell in rdf.shells:
        near = [top for top in tops if abs(rdf.r[top] - shell.peak_position.value) < _SAME_PEAK]
        if not near:
            continue
        top = min(near, key=lambda k: abs(rdf.r[k] - shell.peak_position.value))
        position, height = fit_peak(rdf.r, g_ref, top)
        spread = np.std([fit_peak(rdf.r, sample, top) for sample in samples], axis=0)
        peaks.append(
            PeakComparison(
                position=shell.peak_position,
                position_reference=Value(position, float(spread[0])),
                height=shell.peak_height,
                height_reference=Value(height, float(spread[1])),
            )
        )
    return tuple(peaks)
