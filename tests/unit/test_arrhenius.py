"""The activation energy of made-up D(T): covered as often as it should be; breaks where there are some."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpsim.analysis import arrhenius
from dpsim.analysis.arrhenius import fit_arrhenius
from dpsim.analysis.statistics import Estimate
from dpsim.errors import DataError
from dpsim.units import BOLTZMANN_EV_PER_K

EA = 0.32


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrhenius, "_SAMPLES", 300)


def points(
    random: np.random.Generator, temperatures: list[float], error: float = 0.1, freedom: int = 6, jump: float = 0.0
) -> list[tuple[float, Estimate]]:
    """D = 1e-3 exp(-EA/kT), times exp(jump) above 860 K, with errors that are estimates themselves."""
    found = []
    for t in temperatures:
        d = 1e-3 * math.exp(-EA / (BOLTZMANN_EV_PER_K * t) + (jump if t > 860.0 else 0.0))
        estimated = d * error * math.sqrt(random.chisquare(freedom) / freedom)
        found.append((t, Estimate(d * math.exp(error * random.normal()), estimated, 100.0, 1.0, freedom)))
    return found


def test_an_exact_line() -> None:
    exact = [(t, Estimate(2e-4 * math.exp(-0.5 / (BOLTZMANN_EV_PER_K * t)), 1e-9, 50.0, 1.0, 16)) for t in (1200, 900)]
    found = fit_arrhenius(exact)
    assert found is not None
    assert found.line.activation_energy_eV == pytest.approx(0.5, rel=1e-9)
    assert found.line.log_prefactor == pytest.approx(math.log(2e-4), rel=1e-9)
    assert found.line.temperatures_K == (900, 1200)
    assert found.line.predict(np.array([900.0])) == pytest.approx(exact[1][1].value)
    assert (found.break_p_value, found.scatter_p_value, found.broken()) == (None, None, False)
    assert fit_arrhenius(exact[:1]) is None


def test_the_interval_covers_and_breaks_are_not_invented() -> None:
    random = np.random.default_rng(1)
    inside = broken = 0
    for _ in range(100):
        found = fit_arrhenius(points(random, [900, 1000, 1100, 1200, 1300]))
        assert found is not None
        low, high = found.line.interval()
        inside += low <= EA <= high
        broken += found.broken()
    assert inside >= 88
    assert broken <= 12


def test_a_jump_is_found_where_it_is() -> None:
    random = np.random.default_rng(2)
    for _ in range(5):
        found = fit_arrhenius(points(random, [700, 750, 800, 850, 900, 1000, 1100], jump=1.2))
        assert found is not None
        assert found.broken()
        assert found.between == (850, 900)
        assert found.above is not None and found.below is not None
        assert found.above.temperatures_K == (900, 1000, 1100)
        low, high = found.above.interval(0.999)
        assert low <= EA <= high


def test_bad_input() -> None:
    good = points(np.random.default_rng(3), [900.0, 1000.0])
    with pytest.raises(DataError, match="each temperature once"):
        fit_arrhenius([*good, good[0]])
    with pytest.raises(DataError, match="positive"):
        fit_arrhenius([good[0], (1100.0, Estimate(-1e-6, 1e-7, 10.0, 1.0, 5))])
