"""Are two g(r) the same, and if not, how far apart? A test and a distance, both free of the bias that noise gives.

Two simulations never give equal curves, and a sum of |differences| grows with the noise. With Delta the difference of
the mean curves, S the covariance of one block, tau = 1/n_1 + 1/n_2 for so many blocks, and weights w of the bins,

    M = sum_k w_k Delta_k^2 - tau tr(S)         E[M] = sum_k w_k delta_k^2,  delta the true difference

is unbiased however many bins there are and however they are correlated (bins of g(r) are). The weights make it

    d^2 = sum_k g_k (delta_k/g_k)^2 / sum_k g_k,        g = (g_1 + g_2)/2

d is the root mean square relative difference of the curves, weighted by g: 0.05 means that they differ by 5 % where the
neighbours are. (The r-factor is the mean of its absolute value, so it is at most d, with the noise taken away.)

Test of d = 0: chi^2 per degree of freedom sum w Delta^2 / (tau tr S) is about F-distributed with nu and f nu degrees of
freedom, nu = (tr S)^2 / tr(S^2) the effective number of independent bins, f = n_1 + n_2 - 2.
Interval of d^2: M -+ t sqrt(2 tau^2 tr(S^2) (1 + 1/f) + 4 tau delta^T S delta).

Source: Z. Bai and H. Saranadasa, Statistica Sinica 6, 311 (1996), Eqs. 3.2-3.7, which is the two-sample mean test for
more dimensions than samples; the F-distribution by matching moments (Satterthwaite).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dpsim.analysis.rdf_shells import RDF, Array, Pair
from dpsim.analysis.statistics import student_t
from dpsim.errors import DataError

_SAME_GRID = 1e-5  # A


@dataclass(frozen=True)
class RDFDistance:
    """By how much two g(r) of one pair differ.

    distance: d of the module (0 where noise explains everything); interval of `confidence`; chi2: per degree of
    freedom, 1 for equal curves; p_value: probability of a larger one by chance; r_factor: sum |Delta| / sum g, with the
    noise in it; noise: what noise alone gives for d.
    reliable: both runs are longer than about ten correlation times of the structure.
    """

    pair: Pair
    distance: float
    interval: tuple[float, float]
    confidence: float
    chi2: float
    degrees_of_freedom: float
    p_value: float
    r_factor: float
    noise: float
    reliable: bool

    @property
    def label(self) -> str:
        """ "O-H" """
        return "-".join(self.pair)

    @property
    def distinguishable(self) -> bool:
        """Whether noise is an unlikely explanation."""
        return self.p_value < 1.0 - self.confidence


def rdf_distance(first: RDF, second: RDF, confidence: float = 0.95) -> RDFDistance:
    """Compare two simulated g(r) of one pair on one grid.

    Args:
        first, second: from `structure.rdf`, with the same bins; blocks are taken as samples, and their correlation by
            the factor `inflation` of each.
        confidence: of the interval and of the test.

    Returns:
        RDFDistance.

    Raises:
        DataError: different pairs or bins, or fewer than three blocks.
    """
    same = len(first.edges) == len(second.edges) and np.allclose(first.edges, second.edges, atol=_SAME_GRID)
    if sorted(first.pair) != sorted(second.pair) or not same:
        raise DataError(
            f"the g(r) are of {first.label} up to {first.edges[-1]:g} A in {len(first.r)} bins and of {second.label} "
            f"up to {second.edges[-1]:g} A in {len(second.r)}; expected the same. Compute them with the same r_max."
        )
    if min(first.n_blocks, second.n_blocks) < 3:
        raise DataError(
            f"the g(r) have {first.n_blocks} and {second.n_blocks} blocks; expected at least 3. Use more blocks."
        )
    g = 0.5 * (first.g + second.g)
    used = g > 0.0
    if not used.any():
        raise DataError(f"both g(r) of {first.label} are zero up to {first.edges[-1]:g} A. Use a larger r_max.")
    root_weight = 1.0 / np.sqrt(g[used] * g[used].sum())
    delta = root_weight * (first.g - second.g)[used]
    squared = float(delta @ delta)
    noise, spread, along, freedom = _noise(delta, [root_weight * b.block_g[:, used] for b in (first, second)],
                                           [b.inflation for b in (first, second)])  # fmt: skip
    estimate = squared - noise
    along = max(0.0, along - spread)  # delta^T S delta with the noise of delta taken away
    half = student_t(confidence, freedom) * math.sqrt(2.0 * spread * (1.0 + 1.0 / freedom) + 4.0 * along)
    effective = max(1.0, noise**2 / spread) if spread > 0.0 else 1.0
    chi2 = squared / noise if noise > 0.0 else (math.inf if squared > 0.0 else 1.0)
    return RDFDistance(
        pair=first.pair,
        distance=math.sqrt(max(0.0, estimate)),
        interval=(math.sqrt(max(0.0, estimate - half)), math.sqrt(max(0.0, estimate + half))),
        confidence=confidence,
        chi2=chi2,
        degrees_of_freedom=effective,
        p_value=float(stats.f.sf(chi2, effective, freedom * effective)),
        r_factor=float(np.sum(np.abs(first.g - second.g)) / np.sum(g)),
        noise=math.sqrt(noise),
        reliable=first.reliable and second.reliable,
    )


def _noise(delta: Array, blocks: list[Array], inflations: list[float]) -> tuple[float, float, float, int]:
    """tr(C), tr(C^2), delta^T C delta of the covariance C of the difference of the means, and degrees of freedom.

    C is the sum of both curves' covariances of the mean, each enlarged for correlated blocks. Of tr(C^2) the part that
    comes from estimating C with few blocks is taken away.
    """
    rows = []
    for curves, inflation in zip(blocks, inflations, strict=True):
        n = len(curves)
        rows.append(inflation / math.sqrt(n * (n - 1)) * (curves - curves.mean(axis=0)))
    deviations = np.concatenate(rows)  # C = deviations^T deviations
    freedom = len(deviations) - 2
    gram = deviations @ deviations.T
    trace = float(np.trace(gram))
    biased = float(np.sum(gram * gram))
    squared = freedom**2 / ((freedom + 2.0) * (freedom - 1.0)) * (biased - trace**2 / freedom)
    squared = max(squared, biased / freedom) if trace > 0.0 else 0.0
    projected = deviations @ delta
    return trace, squared, float(projected @ projected), freedom
