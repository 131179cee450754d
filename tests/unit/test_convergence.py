"""Equilibrium is found where it begins, and correlated samples count for what they are."""

import numpy as np
import pytest

from dpsim.analysis.convergence import convergence, plot_convergence
from dpsim.analysis.structure_view import StructureView, frames_to_show, view_data
from dpsim.errors import DataError


def correlated(n, tau, seed=0):
    """An autoregressive series with <x x(k)> = exp(-k / tau)."""
    random = np.random.default_rng(seed)
    a = np.exp(-1.0 / tau)
    x = np.empty(n)
    x[0] = random.normal()
    for k in range(1, n):
        x[k] = a * x[k - 1] + np.sqrt(1.0 - a * a) * random.normal()
    return x


def test_the_transient_is_left_out(tmp_path):
    n, tau = 6000, 10.0
    time = 0.1 * np.arange(n)
    values = 300.0 + correlated(n, tau) - 80.0 * np.exp(-time / 20.0)
    item = convergence(time, values)
    assert 60.0 < item.start < 200.0
    assert item.settled
    assert abs(item.mean.value - 300.0) < 4.0 * item.mean.error
    assert 0.3 * tau * 0.1 < item.correlation_time < 3.0 * tau * 0.1  # of blocks of two samples, ps
    assert item.mean.n_effective < 0.2 * n
    assert item.running_half[-1] < item.running_half[5]
    path = plot_convergence(tmp_path / "c.png", {"temperature (K)": item})
    assert path.stat().st_size > 10_000


def test_a_series_that_never_settles_is_said_to(tmp_path):
    time = np.arange(400.0)
    item = convergence(time, np.where(time < 300.0, 0.0, 5.0) + 0.1 * np.random.default_rng(0).normal(size=400))
    assert not item.settled
    with pytest.raises(DataError, match="at least 40"):
        convergence(time[:10], time[:10])


def test_structures_are_wrapped_and_small():
    r = np.array([[0.5, -0.5, 10.5], [5.0, 5.0, 5.0]])
    data = view_data(StructureView(["O", "H"], r, 10.0 * np.eye(3)))
    (frame,) = data["frames"]
    assert frame["low"] == [0.5, 5.0, 0.5]
    assert frame["high"] == [5.0, 9.5, 5.0]
    assert [s["symbol"] for s in data["species"]] == ["O", "H"]
    assert [0, 1, pytest.approx(1.15 * (0.66 + 0.31), abs=1e-3)] in data["bonds"]
    assert view_data(StructureView(["Mo", "Mo"], r))["bonds"] == []  # metals are drawn without
    assert frames_to_show(1000, 100)[-1] == 999
    assert len(frames_to_show(1000, 100)) == 30
    assert frames_to_show(1000, 29_000) == [999]
    with pytest.raises(DataError, match="2 symbols"):
        view_data(StructureView(["O", "H"], r[:1]))
    with pytest.raises(DataError, match="Xy"):
        view_data(StructureView(["Xy", "H"], r))
