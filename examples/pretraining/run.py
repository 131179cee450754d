"""Pre-trains, trains the models to compare with, tests all of them, and keeps what docs/pretraining.md shows.

    python examples/pretraining/run.py DATA OUT

DATA holds the sets (<set>/train, <set>/test). The same command continues what was interrupted and skips what is done;
`--only pretraining` or a set's name makes that run alone. Results go to `results/` beside this file, the tables into
the page.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import yaml
from settings import ELEMENTS, LEVELS, STEPS, UNSEEN, WEIGHTS, pretraining, single

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parents[1] / "docs" / "pretraining.md"
BEGIN, END = "<!-- tables: written by examples/pretraining/run.py -->\n", "<!-- end of tables -->"
DPSIM = [sys.executable, "-m", "dpsim"]
ALL = "pretraining"
Errors = dict[str, dict[str, float]]  # {"energy": {"rmse": ..., "label_std": ...}, "forces": ...}


def main() -> None:
    """Train what is to be trained, test it, write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder of the data sets")
    parser.add_argument("out", type=Path, help="the folder of the runs")
    parser.add_argument("--only", choices=[ALL, *WEIGHTS], help="make this run alone, and no tests")
    options = parser.parse_args()
    data, out = options.data.resolve(), options.out.resolve()
    for name in [options.only] if options.only else [ALL, *WEIGHTS]:
        train(name, data, out)
    if not options.only:
        keep_tests(data, out)
        write_page()


def train(name: str, data: Path, out: Path) -> None:
    """Begin or continue a run; keep its learning curve and training file."""
    settings = pretraining(data) if name == ALL else single(name, data)
    folder = out / name
    out.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".yaml")
    if not file.exists():
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
    subprocess.run([*DPSIM, "train", str(file), "--directory", str(folder), "--resume"], check=True)
    RESULTS.mkdir(exist_ok=True)
    shutil.copyfile(folder / "lcurve.csv", RESULTS / f"{name}.csv")


def keep_tests(data: Path, out: Path) -> None:
    """Errors of the heads and of the single models on their sets, and zero-shot errors on the unseen sets."""
    tables = {
        "heads": [{"name": s, "data": [str(data / s / "test")], "model": model(out, s)} for s in WEIGHTS],
        "single": [{"name": s, "data": [str(data / s / "test")], "model": model(out, s, own=True)} for s in WEIGHTS],
        "zero_shot": [unseen(data, s, model(out, head)) for s, head in UNSEEN.items()],
        "zero_shot_single": [unseen(data, s, model(out, head, own=True)) for s, head in UNSEEN.items()],
    }
    for name, sets in tables.items():
        file = out / f"test_{name}.yaml"
        file.write_text(yaml.safe_dump({"sets": sets}, sort_keys=False))
        subprocess.run([*DPSIM, "test", "--table", str(file), "--output", str(out / name)], check=True)
        found = json.loads((out / name / "test.json").read_text())
        kept = {"sets": {s["name"]: s for s in found["sets"]}, "averages": found["averages"]}
        (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def model(out: Path, name: str, own: bool = False) -> str:
    """The head of a set, or the model of that set alone."""
    return str(out / name / "model-last.dpsim") if own else f"{out / ALL / 'model-last.dpsim'}:{name}"


def unseen(data: Path, name: str, model: str) -> dict[str, Any]:
    """A test on a set that was not trained on: only the energy of each element is fitted, to its training frames."""
    test = data / name / "test" / ("MD_300K" if name == "acac" else "")
    return {"name": name, "data": [str(test)], "model": model, "energy_bias": [str(data / name / "train")]}


def write_page() -> None:
    """Replace what lies between the two marks of the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(tables()) + "\n" + END + after, encoding="utf-8")


def tables() -> Iterator[str]:
    """The lines of both tables: force RMSE in meV/A / energy RMSE in meV/atom, and of all sets together."""
    found = {name: read(name) for name in ("heads", "single", "zero_shot", "zero_shot_single")}
    levels = len(set(LEVELS.values()))
    yield f"**{len(WEIGHTS)} sets, {len(ELEMENTS)} elements, {levels} levels of theory, {STEPS} steps**"
    yield from ["", "| set | level | share of draws | spread | one model per set | pre-trained, its head |"]
    yield "|---" * 6 + "|"
    for name, weight in WEIGHTS.items():
        heads, alone = found["heads"][name], found["single"][name]
        share = f"{100 * weight / sum(WEIGHTS.values()):.0f} %"
        cells = [share, pair(heads, "label_std"), pair(alone), pair(heads)]
        yield f"| {name} | {LEVELS[name]} | " + " | ".join(cells) + " |"
    yield f"| geometric mean | | | {means('heads', 'label_std')} | {means('single')} | {means('heads')} |"
    yield from ["", "**Sets never trained on, energies of the elements fitted to their training frames**", ""]
    yield "| set | head asked | spread | model of that set alone | pre-trained |"
    yield "|---" * 5 + "|"
    for name, head in UNSEEN.items():
        multi, alone = found["zero_shot"][name], found["zero_shot_single"][name]
        yield f"| {name} | {head} | " + " | ".join([pair(multi, "label_std"), pair(alone), pair(multi)]) + " |"
    spread, alone, multi = (
        means(*which) for which in (("zero_shot", "label_std"), ("zero_shot_single",), ("zero_shot",))
    )
    yield f"| geometric mean | | {spread} | {alone} | {multi} |"


def read(name: str) -> dict[str, Errors]:
    return json.loads((RESULTS / f"{name}.json").read_text())["sets"]


def pair(errors: Errors, key: str = "rmse") -> str:
    """Forces / energy. The spread of energies is that about the best constant per element: what is left to learn."""
    keys = {"forces": key, "energy": "label_std_in_composition" if key == "label_std" else key}
    return " / ".join(number(errors[q][keys[q]]) if errors[q]["n"] else "-" for q in keys)


def means(name: str, key: str = "rmse") -> str:
    """Forces / energy: geometric means over the sets (LWARMSE of DPA-3, Eq. 1, with equal weights)."""
    sets = [s for s in read(name).values() if s["energy"]["n"] and s["forces"]["n"]]
    keys = {"forces": key, "energy": "label_std_in_composition" if key == "label_std" else key}
    return " / ".join(number(geometric_mean(s[q][keys[q]] for s in sets)) for q in keys)


def number(value: float) -> str:
    """Three digits, no exponent."""
    return f"{value:.0f}" if value >= 100.0 else f"{value:.3g}"


if __name__ == "__main__":
    main()
