"""The report must be right, whole, harmless and the same for programs and people."""

import json
import math
import re

import numpy as np
import pytest

from dpsim.analysis.report import (
    Figure,
    Result,
    Section,
    Table,
    overall_verdict,
    write_report,
    write_results_json,
)
from dpsim.analysis.statistics import format_value
from dpsim.errors import DataError

DRIFT = Result("energy_drift", "Energy drift", 0.01086, 0.00653, "meV/atom/ps", 0.05, "PASS", "well below")
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f6"
    "45400000000049454e44ae426082"
)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (2.89566, 0.02564, "2.896 ± 0.026"),
        (0.010859, 0.0065328, "0.0109 ± 0.0065"),
        (-0.0401, 0.068, "−0.040 ± 0.068"),
        (331.97, 1.46, "332.0 ± 1.5"),
        (12345.6, 230.0, "12346 ± 230"),
        (0.99, 0.0996, "0.99 ± 0.10"),
        (0.0, 0.0042, "0.0000 ± 0.0042"),
        (-0.00001, 0.4, "0.00 ± 0.40"),
        (1.234e-5, 1.5e-6, "(1.23 ± 0.15) × 10⁻⁵"),
        (1.2e-7, 3.0e-6, "(0.1 ± 3.0) × 10⁻⁶"),
        (2.5e8, 1.1e7, "(2.50 ± 0.11) × 10⁸"),
        (12.4446611, None, "12.44"),
        (192.0, None, "192"),
        (0.05, math.nan, "0.05"),
        (2.0, 0.0, "2"),
        (1.5e-9, None, "1.500 × 10⁻⁹"),
        (math.nan, 1.0, "–"),
        (None, None, "–"),
        (-math.inf, None, "−∞"),
    ],
)
def test_value_and_error_are_rounded_alike(value, error, text):
    assert format_value(value, error) == text


def test_verdict_is_that_of_the_worst_result():
    def result(verdict):
        return Result(verdict, verdict, 1.0, verdict=verdict)

    assert overall_verdict([]) == "INFO"
    assert overall_verdict([result("INFO")]) == "INFO"
    assert overall_verdict([result("INFO"), result("PASS")]) == "PASS"
    assert overall_verdict([result("PASS"), result("FAIL"), result("INFO")]) == "FAIL"


def test_results_json_has_the_documented_schema(tmp_path):
    results = [DRIFT, Result("exponent", "Exponent", np.float32(2.0), math.inf)]
    path = write_results_json(
        tmp_path / "run" / "results.json",
        results,
        {"seed": np.int64(0), "path": tmp_path, "sizes": np.arange(2)},
        title="T",
    )
    document = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["schema_version"] == 1
    keys = ["schema_version", "title", "verdict", "summary", "warnings", "results", "curves", "provenance"]
    assert list(document) == keys
    assert document["verdict"] == "PASS"
    assert document["results"][0] == {
        "name": "energy_drift",
        "label": "Energy drift",
        "value": 0.01086,
        "error": 0.00653,
        "unit": "meV/atom/ps",
        "threshold": 0.05,
        "verdict": "PASS",
        "explanation": "well below",
    }
    assert document["results"][1]["value"] == 2.0
    assert document["results"][1]["error"] is None
    assert document["provenance"] == {"seed": 0, "path": str(tmp_path), "sizes": [0, 1]}
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]  # no temporary file left


def test_a_name_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match="energy_drift"):
        write_results_json(tmp_path / "results.json", [DRIFT, DRIFT], {})


def test_report_is_self_contained_and_shows_everything(tmp_path):
    image = tmp_path / "energy.png"
    image.write_bytes(PIXEL)
    path = write_report(
        tmp_path,
        "Water & <friends>",
        [DRIFT, Result("t", "Temperature", 331.97, 1.46, "K", "330 ± 5", "FAIL", "see `thermostat`")],
        [
            Section("Energy", "One.\n\nTwo of O-H.", [Figure(image, "The <energy>"), image]),
            Section("Shells", table=Table(["pair", "n"], [["O-O", "4.136 ± 0.013"], ["O-H", None], ["H-H", 1.0]])),
            Section("Protocol", code="a: <script>alert(1)</script>"),
        ],
        {"date": "2026-11-21", "seed": 0, "model": {"name": "water", "sha256": "00ff"}, "note": '"><img src=x>'},
        facts={"simulated": "2.0 ps"},
        warnings=["short <run>"],
    )
    page = path.read_text(encoding="utf-8")
    assert path.name == "report.html"
    assert page.index("✗ FAIL") < page.index("Energy drift")  # the verdict comes first
    for text in ("0.0109 ± 0.0065", "332.0 ± 1.5", "≤ 0.05", "330 ± 5", "<code>thermostat</code>", "<p>One.</p>",
                 "Water &amp; &lt;friends&gt;", "short &lt;run&gt;", "sha256", "4.136 ± 0.013", "2.0 ps",
                 "1 of 2 checks fail: Temperature."):  # fmt: skip
        assert text in page
    assert "<script" not in page  # there is nothing to draw: the images carry no data
    assert "<img src=x" not in page
    assert page.count("data:image/png;base64,") == 2
    # nothing is fetched: no address, no style or image outside the page
    assert not re.search(r"https?://|url\(|@import|<link|<iframe", page)
    assert all(src.startswith("data:") for src in re.findall(r'<img[^>]*src="([^"]*)"', page))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["energy.png", "report.html"]


def test_summary_says_when_nothing_was_judged_or_all_hold(tmp_path):
    page = write_report(tmp_path, "T", [Result("a", "A", 1.0)], [], {}).read_text()
    assert "no thresholds were given" in page
    page = write_report(tmp_path, "T", [DRIFT], [], {}).read_text()
    assert "The check holds." in page


@pytest.mark.parametrize(("n_others", "judged", "folded"), [(7, True, True), (6, True, False), (7, False, False)])
def test_many_numbers_without_a_verdict_are_folded_below_those_with_one(tmp_path, n_others, judged, folded):
    results = [Result(f"x{k}", f"other {k}", float(k), 0.1) for k in range(n_others)]
    results += [Result("drift", "the drift", 0.01, 0.001, threshold=0.1, verdict="PASS")] if judged else []
    html = write_report(tmp_path, "run", results, [], {}).read_text()
    assert ("<details>" in html) == folded
    assert all(f"other {k}" in html for k in range(n_others))
    if folded:
        assert html.index("the drift") < html.index("7 further numbers") < html.index("other 0")


def test_a_missing_figure_is_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.png"):
        write_report(tmp_path, "T", [DRIFT], [Section("S", figures=[tmp_path / "missing.png"])], {})
    assert not (tmp_path / "report.html").exists()
