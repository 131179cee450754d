"""Comparing runs: significance at its level, what is read and refused, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dpsim.analysis.comparison import curve_distance, differences
from dpsim.analysis.report import Curve, Result, read_results_json, write_results_json
from dpsim.errors import ConfigError, DataError
from dpsim.protocols.compare import compare_runs

QUIET = Console(quiet=True)


def results(rng: np.random.Generator, n: int = 20, shift: float = 0.0) -> list[Result]:
    """n measurements of zero with error 0.1; the first is shifted."""
    values = rng.normal(scale=0.1, size=n)
    values[0] += shift
    return [Result(f"q{k}", f"Quantity {k}", float(v), 0.1, "eV") for k, v in enumerate(values)]


def test_equal_runs_differ_significantly_as_rarely_as_promised() -> None:
    rng = np.random.default_rng(0)
    trials = 400
    wrong = sum(any(d.significant for d in differences({"a": results(rng), "b": results(rng)})) for _ in range(trials))
    assert 0.02 < wrong / trials < 0.08


def test_a_true_difference_is_found() -> None:
    rng = np.random.default_rng(1)
    found = differences({"a": results(rng), "b": results(rng, shift=1.0)})
    assert [d.name for d in found if d.significant] == ["q0"]
    first = found[0]
    assert first.value == pytest.approx(1.0, abs=0.4) and first.error == pytest.approx(0.1 * 2**0.5)


def test_what_cannot_be_judged_is_not() -> None:
    a, b = Result("x", "X", 1.0), Result("x", "X", 2.0, 0.1)
    (one,) = differences({"a": [a], "b": [b]})
    assert one.value == 1.0 and one.error is None and not one.significant
    assert not differences({"a": [Result("x", "X", None)], "b": [b]})


def test_curves() -> None:
    x = np.linspace(0.0, 5.0, 200)
    rng = np.random.default_rng(2)
    error = np.full(200, 0.1)
    a, b, c = (Curve("g", "g", "r", "g", x, y + rng.normal(scale=0.1, size=200), error) for y in (x, x, x + 1.0))
    near, far = curve_distance(a, b), curve_distance(a, c)
    assert near is not None and 0.8 < near < 1.2
    assert far is not None and far > 5.0
    assert curve_distance(a, Curve("g", "g", "r", "g", x, x)) is None


def write(folder: Path, title: str, found: list[Result], model: str) -> str:
    x = np.arange(30.0)
    curve = Curve("nve.rdf.O-O", "g(r) of O-O", "r (A)", "g", x, np.sin(x), np.full(30, 0.1))
    origin = {"model": {"name": model}, "software": {"ase": "1"}, "date": title}
    write_results_json(folder / "results.json", found, origin, title=title, curves=[curve])
    return str(folder)


def test_runs_and_references_are_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    a = write(tmp_path / "a", "water", results(rng), "teacher")
    b = write(tmp_path / "b", "water", results(rng, shift=2.0), "student")
    reference = tmp_path / "experiment.json"
    reference.write_text(json.dumps({"schema_version": 1, "results": [{"name": "q1", "label": "Q", "value": 0.0}]}))
    outcome = compare_runs([a, b, f"measured={reference}"], tmp_path / "out", QUIET)
    assert "1 of 20 differences" in outcome.message and "q0" in outcome.message
    page = (tmp_path / "out" / "report.html").read_text()
    assert "teacher" in page and "student" in page and "measured" in page and "Curves" in page
    found = {r.name: r for r in read_results_json(tmp_path / "out" / "results.json")["results"]}
    assert found["b.q0"].value == pytest.approx(2.0, abs=0.5)
    assert found["measured.q1"].error is None


def test_mistakes(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    a = write(tmp_path / "a", "water", results(rng), "teacher")
    for runs, message in (
        ([a], "expected two or more"),
        ([a, a], "twice; expected names that differ"),
        ([a, str(tmp_path / "none")], "none` cannot be read"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            compare_runs(runs, tmp_path / "out", QUIET)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"schema_version": 1, "title": "o", "results": []}))
    with pytest.raises(ConfigError, match="no number in common"):
        compare_runs([a, str(other)], tmp_path / "out", QUIET)
