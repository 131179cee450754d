"""What run.py joins: the ab initio trajectory as one more run, the comparison, one figure and a table."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from dpsim.analysis.figures import PALETTE, figure
from dpsim.analysis.report import Curve, Result, read_results_json, write_results_json
from dpsim.analysis.statistics import format_value
from dpsim.protocols.analysis_table import run_analysis
from dpsim.protocols.compare import compare_runs
from dpsim.protocols.context import AnalysisContext
from dpsim.protocols.data_stage import stage_of_data
from dpsim.protocols.registry import parse_protocol
from dpsim.protocols.rundir import RESULTS

HERE = Path(__file__).parent
LARGEST_REPORT = 1_000_000  # bytes
NUMBERS = {  # of the table
    "temperature (K)": "nvt.averages.temperature",
    "potential energy (eV/atom)": "nvt.averages.potential_energy",
    "pressure (bar)": "nvt.averages.pressure",
    "drift, NVE (meV/atom/ps)": "nve.energy_drift",
    "D of O, corrected for the cell (cm²/s)": "nvt.diffusion.O",
    "D of O in this cell (cm²/s)": "nvt.diffusion.O.uncorrected",
    **{f"g {p}: first peak (Å)": f"nvt.rdf.{p}.peak_position" for p in ("O-O", "O-H", "H-H")},
    **{f"g {p}: its height": f"nvt.rdf.{p}.peak_height" for p in ("O-O", "O-H", "H-H")},
    **{f"g {p}: r-factor": f"nvt.rdf.{p}.r_factor" for p in ("O-O", "O-H", "H-H")},
    "neighbours within the first minimum, O-O": "nvt.rdf.O-O.coordination",
    **{f"{t}: mean (°)": f"nvt.adf.{t}.mean" for t in ("O-O-O", "H-O-H")},
    **{f"{t}: width (°)": f"nvt.adf.{t}.width" for t in ("O-O-O", "H-O-H")},
    **{f"{t}: difference": f"nvt.adf.{t}.difference" for t in ("O-O-O", "H-O-H")},
    **{f"kinetic energy of {e} (meV)": f"kinetic_energy.{e}" for e in ("H", "O")},
}
FIGURE_PIXELS = (880, 742)
PANELS = {  # curve: x and y of its axes
    "nvt.rdf.O-O": ((2.2, 6.0), (0.0, 3.4), r"$g_{\mathrm{OO}}(r)$"),
    "nvt.rdf.O-H": ((0.8, 6.0), (0.0, 2.1), r"$g_{\mathrm{OH}}(r)$"),
    "nvt.rdf.H-H": ((1.2, 6.0), (0.0, 2.1), r"$g_{\mathrm{HH}}(r)$"),
    "nvt.adf.O-O-O": ((30.0, 180.0), (0.0, 0.0175), r"$P_{\mathrm{OOO}}$ (1/°)"),
}


def analyse_aimd(data: Path, folder: Path) -> Path:
    """Frames in the DeePMD npy layout, analysed as the stage `nvt` of water.yaml is.

    Args: folder: for results.json, rdf_nvt.csv and adf_nvt.csv, which are not made again.
    """
    if (folder / RESULTS).exists():
        return folder
    protocol = parse_protocol((HERE / "water.yaml").read_text(), "water.yaml", HERE)
    stage = stage_of_data(data, folder / "stages" / "01_nvt")
    context = AnalysisContext(folder, {"nvt": stage})
    results, curves = [], []
    for analysis in protocol.analyses:  # type: ignore[attr-defined]
        if analysis.type in ("rdf", "adf"):
            changes = {"reference": None} | ({"skip": 0.0} if analysis.type == "adf" else {})
            found = run_analysis(analysis.model_copy(update=changes), context)
            results += found.results
            curves += found.curves
    write_results_json(folder / RESULTS, results, {"data": data.name}, title="AIMD", curves=curves)
    return folder


def keep(runs: Mapping[str, Path], comparison: Path, results: Path) -> None:
    """Compare the runs; keep what is worth it in the folder `results`."""
    results.mkdir(parents=True, exist_ok=True)
    compared = compare_runs([f"{label}={folder}" for label, folder in runs.items()], comparison)
    documents = {label: read_results_json(folder / RESULTS) for label, folder in runs.items()}
    plot(results / "water.png", {label: document["curves"] for label, document in documents.items()})
    table = numbers({label: document["results"] for label, document in documents.items()})
    (results / "table.md").write_text(table, encoding="utf-8")
    for folder in runs.values():
        shutil.copy(folder / RESULTS, results / f"{folder.name}.json")
    if compared.report is not None and compared.report.stat().st_size < LARGEST_REPORT:
        shutil.copy(compared.report, results / "report.html")
    print(table)
    print(f"kept in {results}")


def plot(path: Path, runs: Mapping[str, list[Curve]]) -> None:
    """Radial distribution functions and angles of all runs with bands of two standard errors; the first in black."""
    with figure(path, 2, 2, height=5.4) as (canvas, axes):
        for ax, (name, (x_range, y_range, label)) in zip(axes.ravel(), PANELS.items(), strict=True):
            for k, (run, curves) in enumerate(runs.items()):
                curve = next(c for c in curves if c.name == name)
                x, y, error = (np.array(v, dtype=float) for v in (curve.x, curve.y, curve.error))
                color = "black" if k == 0 else PALETTE[(k - 1) % len(PALETTE)]
                ax.fill_between(x, y - 2 * error, y + 2 * error, color=color, alpha=0.18, lw=0)
                ax.plot(x, y, color=color, lw=1.8 if k == 0 else 1.1, ls="-" if k == 0 else (0, (6 - k, k)), label=run)
            ax.set(xlim=x_range, ylim=y_range, ylabel=label)
            ax.set_xlabel("angle (°)" if "adf" in name else "$r$ (Å)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper right", ncols=5, borderaxespad=0.2)
    image = Image.open(path).convert("RGB").resize(FIGURE_PIXELS, Image.Resampling.LANCZOS)
    image.quantize(32, dither=Image.Dither.NONE).save(path, optimize=True)  # a small file, without the figure's data


def numbers(runs: Mapping[str, list[Result]]) -> str:
    """A Markdown table: a row for each number, a column for each run."""
    lines = [f"| | {' | '.join(runs)} |", f"|---{'|---' * len(runs)}|"]
    for label, name in NUMBERS.items():
        found = [next((r for r in results if r.name == name), None) for results in runs.values()]
        cells = [
            "–" if r is None or r.value is None else f"{format_value(r.value, r.error)}{_judged(r)}" for r in found
        ]
        if any(cell != "–" for cell in cells):
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _judged(result: Result) -> str:
    return "" if result.verdict == "INFO" else f" {result.verdict}"
