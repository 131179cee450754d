"""Every figure is drawn, from few points and from many, and leaves no global style behind."""

import numpy as np
import pytest

from dpsim.analysis import figures
from dpsim.analysis.dynamics import energy_drift, fluctuation_scaling
from dpsim.analysis.rdf_reference import RDFReference, compare_rdf
from dpsim.analysis.rdf_shells import RDF, find_shells
from dpsim.errors import DataError

matplotlib = pytest.importorskip("matplotlib")


def is_png(path, minimum_width=1000):
    """Whether the file is a PNG of a printable size."""
    data = path.read_bytes()
    return data[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(data[16:20], "big") >= minimum_width


def an_rdf(pair=("O", "H")) -> RDF:
    """A g(r) with a bond at 1 A and a shell at 2 A, from noisy blocks."""
    edges = np.linspace(0.0, 5.0, 101)
    r = 0.5 * (edges[1:] + edges[:-1])
    mean = 30.0 * np.exp(-((r - 1.0) ** 2) / 0.002) + (r > 1.4) * (1.0 + 0.8 * np.exp(-((r - 2.0) ** 2) / 0.05))
    blocks = mean * (1.0 + 0.02 * np.random.default_rng(0).normal(size=(10, 100)))
    counts = np.cumsum(blocks * np.diff(edges**3), axis=1)
    g, error = blocks.mean(axis=0), blocks.std(axis=0, ddof=1) / np.sqrt(10)
    return RDF(
        pair=pair, r=r, edges=edges, g=g, g_error=error, coordination=counts.mean(axis=0),
        coordination_error=counts.std(axis=0) / 3.0, ideal_pairs=np.diff(edges**3), n_frames=100, block_g=blocks,
        block_coordination=counts, shells=find_shells(edges, g, error, blocks, counts, 1.0),
    )  # fmt: skip


def test_rdf_with_and_without_a_reference(tmp_path):
    item = an_rdf()
    assert len(item.shells) == 2
    comparison = compare_rdf(item, RDFReference(item.pair, item.r, item.g))
    assert is_png(figures.plot_rdf(tmp_path / "new" / "rdf.png", [item, an_rdf(("O", "O"))], [comparison]))
    assert is_png(figures.plot_rdf(tmp_path / "alone.png", [item]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone.png", "new"]


@pytest.mark.parametrize("n", [3, 500, 20_000])
def test_time_series_of_any_length(tmp_path, n):
    random = np.random.default_rng(0)
    time = np.arange(n) * 0.001
    energy = -30_000.0 + 0.01 * random.normal(size=n)
    assert is_png(figures.plot_energy_drift(tmp_path / "e.png", time, energy, energy_drift(time, energy, 192)))
    temperature = 330.0 + 10.0 * random.normal(size=n)
    assert is_png(figures.plot_temperature(tmp_path / "t.png", time, temperature, 330.0))
    assert is_png(figures.plot_thermo(tmp_path / "p.png", time, {"pressure (bar)": temperature, "volume (Å³)": energy}))


def test_scaling_parity_and_learning_curve(tmp_path):
    scaling = fluctuation_scaling([0.5, 1.0], [0.01, 0.04])
    assert is_png(figures.plot_timestep_scaling(tmp_path / "s.png", scaling))
    x = np.random.default_rng(0).normal(size=(50, 3))
    assert is_png(figures.plot_parity(tmp_path / "p.png", {"forces (eV/Å)": (x, x + 0.1), "energy": (x[0], x[0])}))
    curves = {"forces (meV/Å)": {"training": [90.0, 50.0], "validation": [95.0, 60.0]}}
    assert is_png(figures.plot_learning_curve(tmp_path / "l.png", [0, 100], curves))


def test_the_style_stays_inside(tmp_path):
    before = dict(matplotlib.rcParams)
    figures.plot_thermo(tmp_path / "x.png", [0.0, 1.0], {"a": [0.0, 1.0]})
    assert dict(matplotlib.rcParams) == before


def test_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match=r"\(2,\).*\(3,\)"):
        figures.plot_thermo(tmp_path / "x.png", [0.0, 1.0], {"a": [0.0, 1.0, 2.0]})
    with pytest.raises(DataError, match="`rdfs` is empty"):
        figures.plot_rdf(tmp_path / "x.png", [])
    assert not list(tmp_path.iterdir())
