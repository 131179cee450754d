"""The distance of two g(r): unbiased, covered by its interval, and a test that rejects as often as it says."""

from __future__ import annotations

import numpy as np
import pytest

from dpsim.analysis.rdf_distance import RDFDistance, rdf_distance
from dpsim.analysis.rdf_shells import RDF
from dpsim.errors import DataError

EDGES = np.linspace(0.0, 6.0, 121)
R = 0.5 * (EDGES[1:] + EDGES[:-1])
LIQUID = (1.0 + 1.7 * np.exp(-(((R - 2.8) / 0.15) ** 2)) - 0.3 * np.exp(-(((R - 3.4) / 0.3) ** 2))) / (
    1.0 + np.exp(-(R - 2.6) / 0.05)
)


def curve(random: np.random.Generator, g: np.ndarray, n: int, pair: tuple[str, str] = ("O", "O")) -> RDF:
    """n blocks with the noise of counting, and with smooth noise that correlates the bins."""
    smooth = random.normal(0.0, 0.02, (n, 5)) @ np.array([np.sin(np.pi * k * R / 6.0) for k in range(1, 6)])
    counting = 0.02 * random.normal(size=(n, len(R))) / np.maximum(R, 0.5)
    blocks = np.maximum(g + np.sqrt(g) * (smooth + counting), 0.0)
    error = blocks.std(axis=0, ddof=1) / np.sqrt(n)
    zeros = np.zeros_like(g)
    return RDF(pair, R, EDGES, blocks.mean(axis=0), error, zeros, zeros, np.ones_like(g), 100, blocks, blocks)


def many(true: float, n: int, repeats: int = 150) -> tuple[list[RDFDistance], float]:
    """Distances between samples of two curves, and the true one."""
    random = np.random.default_rng(1)
    other = LIQUID * (1.0 + true * np.sqrt(2.0) * np.sin(4.0 * R))
    mean = 0.5 * (LIQUID + other)
    used = mean > 0.0
    exact = float(np.sqrt(np.sum((other - LIQUID)[used] ** 2 / mean[used]) / mean.sum()))
    return [rdf_distance(curve(random, other, n), curve(random, LIQUID, n)) for _ in range(repeats)], exact


def test_equal_curves_are_rejected_as_often_as_said() -> None:
    found, _ = many(0.0, 10)
    rejected = np.mean([d.distinguishable for d in found])
    assert rejected < 0.12
    assert np.mean([d.chi2 for d in found]) == pytest.approx(1.0, abs=0.2)
    assert np.median([d.distance for d in found]) < 0.006
    assert all(d.interval[0] == 0.0 or d.p_value < 0.1 for d in found)


@pytest.mark.parametrize("n", [4, 20])
def test_different_curves_are_told_apart_and_measured(n: int) -> None:
    found, exact = many(0.05, n)
    assert exact == pytest.approx(0.05, rel=0.1)
    assert np.mean([d.distinguishable for d in found]) > 0.95
    assert np.sqrt(np.mean([d.distance**2 for d in found])) == pytest.approx(exact, rel=0.03)
    assert np.mean([d.interval[0] <= exact <= d.interval[1] for d in found]) > 0.88
    assert all(d.r_factor < d.distance + 2.0 * d.noise for d in found)


def test_more_data_narrow_the_interval() -> None:
    widths = [np.mean([d.interval[1] for d in many(0.0, n, 30)[0]]) for n in (4, 10, 40)]
    assert widths[0] > 1.4 * widths[1] > 1.9 * widths[2]


def test_bad_input() -> None:
    random = np.random.default_rng(2)
    with pytest.raises(DataError, match="expected the same"):
        rdf_distance(curve(random, LIQUID, 5), curve(random, LIQUID, 5, ("O", "H")))
    with pytest.raises(DataError, match="at least 3"):
        rdf_distance(curve(random, LIQUID, 5), curve(random, LIQUID, 2))
    with pytest.raises(DataError, match="zero"):
        rdf_distance(curve(random, 0.0 * R, 5), curve(random, 0.0 * R, 5))
