"""The report in a real browser: nothing fails, everything is visible, at a desk, on a phone and on paper.

Needs the package playwright and any Chromium; skipped without.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from distill_for_tests import run as distill_toy
from dpsim.analysis import figures
from dpsim.analysis.dynamics import energy_drift, fluctuation_scaling
from dpsim.analysis.report import Figure, Result, Section, Table, write_report
from dpsim.analysis.structure_view import StructureView
from dpsim.config import parse_yaml, validate
from dpsim.distill.accept import AcceptConfig, accept
from dpsim.distill.config import PythonTeacher
from dpsim.protocols.runner import run_protocol
from dpsim.protocols.schema import Protocol
from pair_calculators import PairCalculator, argon
from soft_spheres import liquid

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
pytestmark = pytest.mark.slow

DESK, PHONE = {"width": 1100, "height": 900}, {"width": 390, "height": 844}
DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium: the system's, or playwright's own."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            made = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"], timeout=120_000)
        except sync_api.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield made
        made.close()


@pytest.fixture(scope="module")
def of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small real run: argon, nvt and nve, with both analyses."""
    folder = tmp_path_factory.mktemp("run")
    write(folder / "ar.extxyz", argon())
    stage = {"timestep": "5 fs", "trajectory_every": "50 fs"}
    stages = [
        {"type": "nvt", "temperature": "60 K", "steps": 60} | stage,
        {"type": "nve", "steps": 200} | stage,
    ]
    analyses = [{"type": "nve_check", "timesteps": []}, {"type": "rdf", "blocks": 4}]
    data = {"name": "argon", "structure": str(folder / "ar.extxyz"), "stages": stages, "analyses": analyses}
    outcome = run_protocol(validate(data, Protocol), folder / "run", lambda p, precision: PairCalculator())
    assert outcome.report is not None
    return outcome.report


@pytest.fixture(scope="module")
def of_everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with figures of many kinds, an image without data, and 8000 atoms."""
    folder = tmp_path_factory.mktemp("all")
    random = np.random.default_rng(0)
    time = np.arange(30_000) * 1e-3
    energy = random.normal(size=len(time))
    x = random.normal(size=(2000, 3))
    paths = [
        figures.plot_energy_drift(folder / "e.png", time, energy, energy_drift(time, energy, 10)),
        figures.plot_timestep_scaling(folder / "s.png", fluctuation_scaling([0.5, 1.0, 2.0], [0.01, 0.04, 0.17])),
        figures.plot_parity(folder / "p.png", {"forces (eV/Å)": (x, x + 0.1 * random.normal(size=x.shape))}),
        figures.plot_thermo(folder / "t.png", time[:500], {"volume (Å³)": 9.0 + x[:500, 0], "$T_0$ (K)": x[:500, 1]}),
    ]  # fmt: skip
    with figures.figure(folder / "image.png") as (_, axes):
        axes[0, 0].imshow(x[:9])
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(10)
    view = StructureView(atoms.get_chemical_symbols(), atoms.positions, atoms.cell.array)
    table = Table(["quantity " * 3, "value"], [["a" * 60, 1.0], ["b", 2.0]])
    wide = Section("Wide <things>", "`" + "x" * 300 + "`", [*map(Figure, paths), folder / "image.png"], table)
    result = Result("a", "A", 1.0, 0.1, "K", 2.0, "FAIL", "</script><script>document.title = 'broken'</script>")
    return write_report(folder, "All", [result], [wide, Section("Salt", structure=view)], {"hash": "f" * 64})


@pytest.fixture(scope="module")
def of_an_acceptance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a short acceptance test: soft spheres against themselves."""
    folder = tmp_path_factory.mktemp("acceptance")
    write(folder / "ar.extxyz", liquid())
    text = (
        "structures: [ar.extxyz]\nconditions: [{temperature: 600 K}]\ntimestep: 4 fs\nequilibration: 80 fs\n"
        "duration: 640 fs\nframe_every: 16 fs\nnve_duration: 200 fs\nruns: 2\nframes: 20\ncost: false\n"
    )
    teacher = PythonTeacher(python="soft_spheres:soft_spheres", folder=Path(__file__).parent)
    settings = parse_yaml(text, AcceptConfig, folder=folder)
    return accept(settings, teacher, teacher, folder / "run", say=lambda text: None).report


@pytest.fixture(scope="module")
def of_a_distillation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two rounds."""
    return distill_toy(tmp_path_factory.mktemp("distillation"), figures=True).directory / "report.html"


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """opened(path, viewport, ...) -> page; complaints of the page are collected in page.complaints."""
    contexts = []

    def visit(path: Path, viewport: dict[str, int], **options: Any) -> Any:
        context = browser.new_context(viewport=viewport, offline=True, **options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.complaints = []
        page.on("console", lambda m: page.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else page.complaints.append(r.url))
        page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            page.evaluate(DRAWN)
        return page

    yield visit
    for context in contexts:
        context.close()


def sizes(page: Any, selector: str) -> list[tuple[float, float]]:
    return [(box["width"], box["height"]) for box in (e.bounding_box() for e in page.query_selector_all(selector))]


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("which", ["of_a_run", "of_everything"])
def test_everything_is_visible(opened: Any, request: pytest.FixtureRequest, which: str, viewport: Any) -> None:
    path = request.getfixturevalue(which)
    assert path.stat().st_size < 2e6
    page = opened(path, viewport)
    assert page.complaints == []
    assert "broken" not in page.title()
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    n_figures, n_images = len(page.query_selector_all("figure")), 1 if which == "of_everything" else 0
    assert len(page.query_selector_all("figure.ready")) == n_figures - n_images
    assert len(page.query_selector_all("figure:not(.ready) img")) == n_images
    plots = sizes(page, ".panel > svg")
    assert len(plots) >= n_figures - n_images - 1
    assert all(width > 200 and height > 100 for width, height in [*plots, *sizes(page, "canvas")])
    assert page.evaluate("[...document.querySelectorAll('.marks')].every((group) => group.children.length > 0)")
    assert any(
        page.evaluate("[...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 900, 300).data]")
    )


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("which", ["of_an_acceptance", "of_a_distillation"])
def test_students_have_such_reports_too(opened: Any, request: pytest.FixtureRequest, which: str, viewport: Any) -> None:
    """One file, also where the folder's figures are gone."""
    path = request.getfixturevalue(which)
    alone = path.parent / "elsewhere" / "report.html"
    alone.parent.mkdir(exist_ok=True)
    alone.write_bytes(path.read_bytes())
    page = opened(alone, viewport)
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    n_figures = len(page.query_selector_all("figure"))
    assert n_figures >= 3
    assert len(page.query_selector_all("figure.ready")) == n_figures
    plots = sizes(page, ".panel > svg")
    assert len(plots) >= n_figures and all(width > 200 and height > 100 for width, height in plots)
    assert page.evaluate("[...document.querySelectorAll('.marks')].every((group) => group.children.length > 0)")


def test_paper_night_and_no_scripts(opened: Any, of_a_run: Path) -> None:
    page = opened(of_a_run, DESK, color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.is_visible(".tools")
    assert all(width > 200 and height > 100 for width, height in sizes(page, ".panel > svg"))
    assert len(page.pdf()) > 20_000
    assert page.complaints == []
    bare = opened(of_a_run, PHONE, java_script_enabled=False)
    assert all(width > 200 and height > 100 for width, height in sizes(bare, "figure.plot img"))


def test_figures_answer(opened: Any, of_everything: Path) -> None:
    """Values at the pointer, zoom, reset, hiding a series, a logarithmic axis."""
    page = opened(of_everything, DESK)
    panel = page.query_selector(".panel > svg")
    panel.scroll_into_view_if_needed()
    box = panel.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    labels = "[...document.querySelector('.panel svg .axes').querySelectorAll('text')].map((t) => t.textContent).join()"
    page.mouse.move(*middle)
    tip = page.query_selector(".panel .tip").inner_text()
    assert "time (ps)" in tip
    assert "drift" in tip
    before = page.evaluate(labels)
    page.mouse.down()
    page.mouse.move(middle[0] + 80, middle[1], steps=3)
    page.mouse.up()
    assert page.evaluate(labels) != before
    page.click("text=reset >> nth=0")
    assert page.evaluate(labels) == before
    n_marks = "document.querySelector('.marks').children.length"
    shown = page.evaluate(n_marks)
    page.click(".legend button >> nth=0")
    assert page.evaluate(n_marks) < shown
    scaling = page.query_selector_all("figure.plot")[1]
    ticks = scaling.query_selector(".axes").inner_html()
    scaling.query_selector("button[title='logarithmic or linear y axis']").click()
    assert scaling.query_selector(".axes").inner_html() != ticks
    assert page.complaints == []


def test_thousands_of_atoms_turn(opened: Any, of_everything: Path) -> None:
    page = opened(of_everything, DESK)
    canvas = page.query_selector("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    picture = "document.querySelector('canvas').toDataURL()"
    before = page.evaluate(picture)
    page.mouse.move(box["x"] + 300, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 420, box["y"] + 240, steps=4)
    page.evaluate(DRAWN)
    assert page.evaluate(picture) != before
    page.mouse.up()
    view = "const view = document.querySelector('figure.structure').view;"
    render = "view.render(); return Number(view.canvas.dataset.milliseconds);"
    times = page.evaluate(f"Array.from({{length: 9}}, () => {{ {view} {render} }})")
    assert min(times) < 600.0, times  # 40 on a busy core: a machine under load must not fail here
    assert page.complaints == []
