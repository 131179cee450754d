"""The data in a PNG must be what was drawn; figures that cannot be read back stay images."""

import base64

import numpy as np
import pytest

from dpsim.analysis.figure_data import split_data
from dpsim.analysis.figures import BLUE, RED, figure
from dpsim.analysis.mathtext import runs

pytest.importorskip("matplotlib")


def numbers(packed):
    """As the page unpacks them."""
    if isinstance(packed, list):
        return np.array([np.nan if v is None else v for v in packed])
    if "n" in packed:
        return packed["start"] + packed["step"] * np.arange(packed["n"])
    return np.frombuffer(base64.b64decode(packed["f32"]), "<f4").astype(float) + packed["offset"]


def panels(path):
    image, data = split_data(path.read_bytes())
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    assert split_data(image) == (image, None)
    return data["panels"]


def test_curves_bands_errors_and_axes(tmp_path):
    x = np.linspace(0.0, 3.0, 40)
    y = -3e4 + 1e-3 * np.random.default_rng(0).normal(size=40)
    with figure(tmp_path / "a.png") as (_, axes):
        ax = axes[0, 0]
        ax.plot(x, y, color=BLUE, ls="--", label="$E_0$")
        ax.fill_between(x, y - 0.002, y + 0.003, color=BLUE, alpha=0.25)
        ax.errorbar([1.0, 2.0], y[:2], [[0.1, 0.2], [0.3, 0.4]], fmt="o", color=RED, label="points")
        ax.axhline(y.mean(), color=RED)
        ax.axvspan(0.0, 1.0, color=RED, alpha=0.1)
        ax.annotate("here", (1.0, y[0]))
        ax.set_ylabel("energy (eV)")
    (panel,) = panels(tmp_path / "a.png")
    marks = {}
    for mark in panel["marks"]:
        marks.setdefault(mark["kind"], mark)
    line, band, error = marks["line"], marks["band"], marks["error"]
    assert line["dash"] == "5 3"
    np.testing.assert_allclose(numbers(line["x"]), x, atol=1e-12)
    np.testing.assert_allclose(numbers(line["y"]), y, atol=1e-9)  # eight digits would not show 1 meV of 30 keV
    np.testing.assert_allclose(numbers(band["low"]), y - 0.002, atol=1e-9)
    np.testing.assert_allclose(numbers(band["high"]), y + 0.003, atol=1e-9)
    assert band["series"] == line["series"] == [["E", "i"], ["0", "sub"]]  # what has no name belongs to its color
    assert band["alpha"] == 0.25
    np.testing.assert_allclose(numbers(error["low"]), y[:2] - [0.1, 0.2])
    np.testing.assert_allclose(numbers(error["high"]), y[:2] + [0.3, 0.4])
    assert marks["level"]["axis"] == "y"
    assert marks["level"]["at"] == pytest.approx(y.mean())
    assert (marks["span"]["axis"], marks["span"]["low"], marks["span"]["high"]) == ("x", 0.0, 1.0)
    assert marks["text"]["text"] == "here"
    assert marks["text"]["data"] == [True, True]
    assert panel["y"]["label"] == "energy (eV)"


def test_bars_points_logarithms_and_linked_panels(tmp_path):
    with figure(tmp_path / "a.png", 2, 1, sharex=True) as (_, axes):
        axes[0, 0].bar([0, 1], [2.0, 3.0], 0.8, bottom=[0.0, 1.0], label="bars")
        axes[1, 0].scatter(np.arange(20.0), np.arange(20.0) ** 2 + 1.0, s=9)
        axes[1, 0].plot([3.0], [3.0], "o", color=RED, mfc="white")
        axes[1, 0].set_yscale("log")
        axes[1, 0].set_xticks([0, 10], ["none", "ten"])
    first, second = panels(tmp_path / "a.png")
    bars = first["marks"][0]
    assert bars["series"] == "bars"
    assert numbers(bars["y1"]).tolist() == [2.0, 4.0]
    assert first["link"] == second["link"]
    assert first["x"]["hidden"]
    assert second["y"]["log"]
    assert second["x"]["ticks"] == [[0.0, "none"], [10.0, "ten"]]
    cloud, point = second["marks"]
    assert (cloud["size"], cloud["open"]) == (3.0, False)
    assert (point["open"], point["color"]) == (True, RED)


def test_long_curves_keep_their_extremes(tmp_path):
    y = np.random.default_rng(0).normal(size=100_001)
    with figure(tmp_path / "a.png") as (_, axes):
        axes[0, 0].plot(np.arange(len(y)), y)
    kept = numbers(panels(tmp_path / "a.png")[0]["marks"][0]["y"])
    assert len(kept) < 5000
    assert kept.min() == pytest.approx(y[:-1].min())
    assert kept.max() == pytest.approx(y[:-1].max())


def test_what_is_not_understood_stays_an_image(tmp_path):
    with figure(tmp_path / "image.png") as (_, axes):
        axes[0, 0].imshow(np.eye(3))
    with figure(tmp_path / "twin.png") as (_, axes):
        axes[0, 0].twinx().plot([0.0, 1.0])
    with figure(tmp_path / "arrow.png") as (_, axes):
        axes[0, 0].annotate("", (0.0, 0.0), (1.0, 1.0), arrowprops={"arrowstyle": "->"})
        axes[0, 0].text(0.5, 0.5, "x")
    for path in tmp_path.glob("*.png"):
        content = path.read_bytes()
        assert split_data(content)[1] is None or path.name == "arrow.png"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("time (ps)", "time (ps)"),
        (r"$g_{\mathrm{OH}}(r)$", [["g", "i"], ["OH", "sub"], ["(r)", "i"]]),
        (r"ideal $\Delta t^2$", [["ideal ", ""], ["Δt", "i"], ["2", "sup"]]),
        (r"$\langle x^{10}\rangle$ (Å)", [["⟨", ""], ["x", "i"], ["10", "sup"], ["⟩ (Å)", ""]]),
        (r"cost \$5", "cost $5"),
        ("$x_ab$", [["x", "i"], ["a", "sub"], ["b", "i"]]),
        ("a $ b", "a $ b"),
    ],
)
def test_mathematics_becomes_text(text, expected):
    assert runs(text) == expected
