"""Writes the tables of docs/accuracy.md from `results/`: test errors and costs of all runs that are there.

    python examples/accuracy/table.py

Runs that are not finished have no numbers; the text around the tables stays.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from settings import MODELS, SETS

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parents[1] / "docs" / "accuracy.md"
BEGIN, END = "<!-- tables: written by examples/accuracy/table.py -->\n", "<!-- end of tables -->"
NAMES = {"dpa1": "DPA-1", "dpa2": "DPA-2", "dpa3": "DPA-3"}

# Force RMSE, meV/A, and energy RMSE, meV/atom (acac: meV per molecule), of others on the same test frames.
SNAP = {"mlearn_mo": (376, 9.25), "mlearn_si": (205, 8.06), "mlearn_ge": (295, 9.75), "mlearn_li": (37.9, 1.31),
        "mlearn_cu": (82.9, 0.75)}  # fmt: skip
QSNAP = {"mlearn_mo": (333, 4.04), "mlearn_si": (177, 5.51), "mlearn_ge": (200, 10.55), "mlearn_li": (44.3, 0.85),
         "mlearn_cu": (54.9, 0.77)}  # fmt: skip
ACAC = {
    "BOTNet": {"MD_300K": (6.3, 0.89), "MD_600K": (29.8, 6.2)},
    "NequIP": {"MD_300K": (5.9, 0.81), "MD_600K": (27.8, 6.04)},
    "MACE": {"MD_300K": (5.1, 0.9), "MD_600K": (22.4, 4.6)},
}
ACAC_ATOMS = 15

Results = dict[tuple[str, str], dict[str, Any]]  # {(set, model): what run.py kept}
Pair = tuple[float, float]  # what a cell shows: force / energy, or two other numbers


def main() -> None:
    """Replace what lies between the two marks of the page."""
    results = read_results()
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(tables(results)) + "\n" + END + after, encoding="utf-8")
    print(f"{len(results)} of {len(SETS) * len(MODELS)} runs are in {PAGE}")


def read_results() -> Results:
    """Of all finished runs."""
    paths = {(name, model): RESULTS / name / f"{model}.json" for name in SETS for model in MODELS}
    return {key: json.loads(path.read_text()) for key, path in paths.items() if path.is_file()}


def tables(results: Results) -> Iterator[str]:
    """The lines of all tables."""
    own = list(NAMES.values())
    yield from verdict(results)
    yield from heading("Metals and semiconductors", ["SNAP", "qSNAP", *own])
    for name in QSNAP:
        yield row(name, [SNAP[name], QSNAP[name], *(errors(results, name, model) for model in MODELS)])
    yield from heading("Acetylacetone, trained at 300 K (energies in meV per molecule)", [*ACAC, *own])
    for test in SETS["acac"].tests:
        others = [values.get(test) for values in ACAC.values()]
        yield row(test, [*others, *(errors(results, "acac", model, test, per=ACAC_ATOMS) for model in MODELS)])
    yield from heading("Other sets, beside the spread of the labels", ["spread", *own])
    for name in SETS:
        if name != "acac" and name not in QSNAP:
            spread = next((c for model in MODELS if (c := errors(results, name, model, kind="label_std"))), None)
            yield row(name, [spread, *(errors(results, name, model) for model in MODELS)])
    yield from heading("Cost of training: CPU ms per step on one core / peak memory, MiB", own)
    for name in SETS:
        runs = [results.get((name, model)) for model in MODELS]
        yield row(name, [(r["train_ms_per_step"], r["train_memory_MiB"]) if r else None for r in runs])
    yield from heading(
        "Convergence: force RMSE on the training batches in the third and the last quarter of the run", own
    )
    for name in SETS:
        yield row(name, [quarters(name, model) for model in MODELS])


def verdict(results: Results) -> Iterator[str]:
    """Who beats whom in forces, as far as the runs are finished."""
    forces = {key: run["test"][SETS[key[0]].tests[0]]["force_meV_per_A_rmse"] for key, run in results.items()}
    beaten = []
    for name, (limit, _) in QSNAP.items():
        force, model = min((forces.get((name, model), math.inf), NAMES[model]) for model in MODELS)
        if force < limit:
            beaten.append(f"{SETS[name].elements[0]} ({model})")
    pairs = [name for name in SETS if {(name, "dpa1"), (name, "dpa3")} <= forces.keys()]
    better = [name for name in pairs if forces[name, "dpa3"] < forces[name, "dpa1"]]
    yield f"{len(results)} of {len(SETS) * len(MODELS)} runs are finished. In forces, the best of the three models"
    yield f"beats qSNAP on {', '.join(beaten) or 'none'},"
    yield f"and DPA-3 beats DPA-1 on {len(better)} of the {len(pairs)} sets where both are finished."


def errors(results: Results, name: str, model: str, test: str = "", kind: str = "rmse", per: int = 1) -> Pair | None:
    """Force and energy error of a run, meV/A and meV per `per` atoms; None before it is finished."""
    if (name, model) not in results:
        return None
    e = results[name, model]["test"][test]
    return e.get(f"force_meV_per_A_{kind}", math.nan), e.get(f"energy_meV_per_atom_{kind}", math.nan) * per


def heading(title: str, columns: list[str]) -> Iterator[str]:
    yield from ["", f"**{title}**", "", "| set | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]


def row(name: str, cells: Iterable[Pair | None]) -> str:
    """A row of a table; "-" where there is no result."""
    return f"| {name} | " + " | ".join("-" if c is None else f"{number(c[0])} / {number(c[1])}" for c in cells) + " |"


def number(x: float) -> str:
    """Three digits, "-" for what is not labelled."""
    return "-" if x != x else f"{x:.3g}" if x < 1000 else f"{x:.0f}"


def quarters(name: str, model: str) -> Pair | None:
    """Force RMSE of the training batches over the third and the fourth quarter of a run."""
    path = RESULTS / name / f"{model}.csv"
    if not path.is_file():
        return None
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    squares = [float(r["force_rmse_meV_per_A"]) ** 2 for r in rows]
    n = len(squares) // 4
    third, last = squares[2 * n : 3 * n], squares[3 * n :]
    return (sum(third) / len(third)) ** 0.5, (sum(last) / len(last)) ** 0.5


if __name__ == "__main__":
    main()
