"""Equation of state, elastic constants and vacancy of Mo, Cu, Si and Ge, by models trained on the mlearn sets.

    python examples/accuracy/run.py DATA MODELS --jobs 2     # trains them: see docs/accuracy.md
    python examples/metals/run.py MODELS OUT                 # 12 protocols; the same command continues

Reads the protocols beside this file, with the model of each set that is named below; keeps results.json of each run in
`results`, and writes the table `results/table.md`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from dpsim.analysis.report import Result, read_results_json
from dpsim.protocols.registry import load_protocol, run

HERE = Path(__file__).parent
BEST = {"mo": "dpa1", "cu": "dpa1", "si": "tuned", "ge": "tuned"}  # of each set: docs/metals.md says why
KINDS = ("eos", "elastic", "defects")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="folder with mlearn_mo/dpa3/model-last.dpsim and the others")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", help="such as `mo` or `mo-elastic`")
    parser.add_argument("--model", help="the same model for all sets, such as `dpa1`; kept elsewhere, no table")
    args = parser.parse_args()
    for element, best in BEST.items():
        for kind in KINDS:
            name = f"{element}-{kind}"
            if args.only and not name.startswith(args.only):
                continue
            model = args.models / f"mlearn_{element}" / (args.model or best) / "model-last.dpsim"
            protocol = load_protocol(HERE / f"{name}.yaml").model_copy(update={"model": str(model.resolve())})
            outcome = run(protocol, args.out / f"{name}-{args.model or best}")
            if outcome.results is not None and args.model is None:
                (HERE / "results").mkdir(exist_ok=True)
                shutil.copy(outcome.results, HERE / "results" / f"{name}.json")
    if args.model is None:
        (HERE / "results" / "table.md").write_text(table(), encoding="utf-8")


def table() -> str:
    """The judged numbers of all results, and the vacancies."""
    lines = ["| | quantity | model | DFT | difference | verdict |", "|---|---|---|---|---|---|"]
    for element in BEST:
        for kind in KINDS:
            path = HERE / "results" / f"{element}-{kind}.json"
            if path.is_file():
                lines += [_row(element.capitalize(), r) for r in read_results_json(path)["results"] if _is_shown(r)]
    return "\n".join(lines) + "\n"


def _is_shown(result: Result) -> bool:
    return isinstance(result.threshold, str) and "±" in result.threshold


def _row(element: str, result: Result) -> str:
    reference = float(str(result.threshold).partition(" ")[0])
    value = result.value or 0.0
    share = 100.0 * (value - reference) / reference
    cells = (
        element,
        f"{result.name} ({result.unit})",
        f"{value:.4g}",
        f"{reference:g}",
        f"{share:+.1f} %",
        result.verdict,
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
