"""Trains and tests every model of settings.py on every data set, a few at a time, each on one core.

    python examples/accuracy/run.py DATA OUT --jobs 2

DATA holds the sets (<set>/train, <set>/test); a run works in OUT/<set>/<model>. The same command continues what was
interrupted, and skips what is done. OUT/STATUS.md says how far it is. What a finished run is worth keeping for
(settings, learning curve, test errors and cost) goes to `results/` beside this file; `table.py` makes the table of it.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from settings import MODELS, SETS, STEPS, training

RESULTS = Path(__file__).parent / "results"
DPSIM = [sys.executable, "-c", "from dpsim.cli import main; main()"]


class Job(NamedTuple):
    """One model on one set, and what it does next: train or test."""

    name: str
    model: str
    folder: Path
    data: Path

    def command(self) -> list[str]:
        """What is to be done next; empty when all is done."""
        if not (self.folder / "checkpoint").exists() or rows(self.folder)[-1]["step"] < STEPS:
            resume = ["--resume"] if self.folder.exists() else []
            return ["train", str(self.yaml), "--directory", str(self.folder), *resume]
        if not (self.folder / "test.json").exists():
            sets = [str(self.data / "test" / test) for test in SETS[self.name].tests]
            return ["test", str(self.folder / "model-last.dpsim"), *sets, "--output", str(self.folder)]
        return []

    @property
    def yaml(self) -> Path:
        """Its train.yaml: beside its folder, which `dpsim train` wants for itself."""
        return self.folder.with_suffix(".yaml")


def main() -> None:
    """Keep `--jobs` runs going until all are done."""
    options = parsed_options()
    waiting = [
        Job(name, model, options.out / name / model, options.data.resolve() / name)
        for model in options.models
        for name in options.sets
    ]
    running: dict[subprocess.Popen[bytes], Job] = {}
    while waiting or running:
        while waiting and len(running) < options.jobs:
            job = waiting.pop(0)
            if process := start(job):
                running[process] = job
        time.sleep(2)
        for process in [p for p in running if wait(p, running[p])]:
            job = running.pop(process)
            if process.returncode == 0:
                waiting.insert(0, job)  # its next command, if any
            else:
                print(f"{job.name} {job.model} ended with {process.returncode}; see {job.folder}.log", flush=True)
        write_status(options.out)


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder of the data sets")
    parser.add_argument("out", type=Path, help="the folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    return parser.parse_args()


def start(job: Job) -> subprocess.Popen[bytes] | None:
    """Start what comes next for a run; None if nothing does."""
    if not job.yaml.exists():
        job.yaml.parent.mkdir(parents=True, exist_ok=True)
        job.yaml.write_text(yaml.safe_dump(training(SETS[job.name], job.model, job.data), sort_keys=False))
    if not (command := job.command()):
        keep(job)
        return None
    with open(f"{job.folder}.log", "ab") as log:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*DPSIM, *command], stdout=log, stderr=log, env=env)


def wait(process: subprocess.Popen[bytes], job: Job) -> bool:
    """Whether a process has ended; if so, add its CPU time and memory to the costs of the run."""
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if not pid:
        return False
    process.returncode = os.waitstatus_to_exitcode(status)
    if (job.folder / "test.json").exists():  # that was the test: not a cost of training
        return True
    file = job.folder / "cost.json"
    cost = json.loads(file.read_text()) if file.exists() else {"cpu_s": 0.0, "memory_MiB": 0.0}
    cost["cpu_s"] += usage.ru_utime + usage.ru_stime
    cost["memory_MiB"] = max(cost["memory_MiB"], usage.ru_maxrss / 1024)
    file.write_text(json.dumps(cost))
    return True


def rows(folder: Path) -> list[dict[str, float]]:
    """The learning curve as numbers; a row of zeros before the first."""
    try:
        with open(folder / "lcurve.csv", newline="") as file:
            lines = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    except FileNotFoundError:
        lines = []
    return lines or [{"step": 0.0}]


def keep(job: Job) -> None:
    """Copy what is worth keeping of a finished run into `results/`."""
    target = RESULTS / job.name
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(job.folder / "lcurve.csv", target / f"{job.model}.csv")
    settings = yaml.safe_load(job.yaml.read_text())
    settings["data"]["train"] = [f"{job.name}/train"]
    (target / f"{job.model}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    sets = json.loads((job.folder / "test.json").read_text())["sets"]
    cost = json.loads((job.folder / "cost.json").read_text())
    result: dict[str, Any] = {
        "steps": STEPS,
        "train_ms_per_step": round(1000 * cost["cpu_s"] / STEPS, 1),
        "train_memory_MiB": round(cost["memory_MiB"]),
        "test": {test: metrics(errors) for test, errors in zip(SETS[job.name].tests, sets, strict=True)},
    }
    (target / f"{job.model}.json").write_text(json.dumps(result, indent=1) + "\n")


def metrics(errors: dict[str, Any]) -> dict[str, float]:
    """RMSE, MAE and the spread of the labels of one test set, meV/atom and meV/A, of what has labels."""
    names = {"energy": "energy_meV_per_atom", "forces": "force_meV_per_A", "virial": "virial_meV_per_atom"}
    return {
        f"{unit}_{kind}": round(errors[quantity][kind], 3)
        for quantity, unit in names.items()
        for kind in ("rmse", "mae", "label_std")
        if errors[quantity]["n"]
    }


def write_status(out: Path) -> None:
    """OUT/STATUS.md: how far every run is, from what lies in its folder."""
    lines = [
        f"{datetime.now():%H:%M:%S}, {STEPS} steps each; errors are those of the training batches",
        "",
        "| run | step | E meV/atom | F meV/A | ms/step | done at |",
        "|---|---|---|---|---|---|",
    ]
    for folder in (out / name / model for model in MODELS for name in SETS):
        if folder.exists():
            last = rows(folder)[-1]
            columns = ("step", "energy_rmse_meV_per_atom", "force_rmse_meV_per_A", "ms_per_step")
            cells = [f"{last.get(k, math.nan):.4g}" for k in columns]
            lines.append(f"| {folder.parent.name} {folder.name} | " + " | ".join([*cells, end(folder, last)]) + " |")
    (out / "STATUS.md").write_text("\n".join(lines) + "\n")


def end(folder: Path, last: dict[str, float]) -> str:
    """When a run will end, or that it is tested."""
    if (folder / "test.json").exists():
        return "tested"
    if "ms_per_step" not in last:
        return "-"
    written = datetime.fromtimestamp((folder / "lcurve.csv").stat().st_mtime)
    return f"{written + timedelta(milliseconds=(STEPS - last['step']) * last['ms_per_step']):%H:%M}"


if __name__ == "__main__":
    main()
