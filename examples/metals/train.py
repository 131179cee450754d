"""Trains the models of examples/accuracy on, for energies and stresses: what elastic constants and vacancies need.

    python examples/accuracy/run.py DATA MODELS --jobs 2        # 3000 steps each, forces first: docs/accuracy.md
    python examples/metals/train.py DATA MODELS                 # then this, one after the other; continues when killed
    python examples/metals/run.py MODELS OUT --model tuned

Energies and virials enter the first loss with errors of some meV/atom squared, forces with 0.1 eV/A squared: beside
those of the forces their terms are nothing, and stresses stay wrong by 10 to 30 %. Here the weights are such that all
three terms are about equal where the first training ended. Cu has no stresses: its data do with energies.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

START = {"mo": "dpa1", "cu": "dpa1", "si": "dpa3", "ge": "dpa3"}
DPSIM = [sys.executable, "-c", "from dpsim.cli import main; main()"]


def training(data: Path, start: Path, steps: int) -> dict[str, Any]:
    """The train.yaml of one element; the model's own settings are those of its first training."""
    first = yaml.safe_load(start.with_name("train.yaml").read_text(encoding="utf-8"))
    return first | {
        "init_from": str(start),
        "data": {"train": [str(data)], "batch_size": "max:64"},
        "loss": {
            "energy": {"start": 200.0, "limit": 2000.0},
            "forces": {"start": 60.0, "limit": 20.0},
            "virial": {"start": 50.0, "limit": 200.0},
        },
        "schedule": {"kind": "cosine", "start_lr": 2.0e-3, "stop_lr": 1.0e-5, "warmup_steps": 100},
        "steps": steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with mlearn_mo/train and the others")
    parser.add_argument("models", type=Path, help="OUT of examples/accuracy/run.py; folders `tuned` are added to it")
    parser.add_argument("--only", choices=START, help="one element")
    parser.add_argument("--steps", type=int, default=10000, help="at 50 to 70 ms of one core each")
    parser.add_argument("--name", default="tuned", help="of the folders")
    args = parser.parse_args()
    for element, kind in START.items():
        if args.only in (None, element):
            home = args.models.resolve() / f"mlearn_{element}"
            data = args.data.resolve() / f"mlearn_{element}" / "train"
            keys = training(data, home / kind / "model-last.dpsim", args.steps)
            file = home / f"{args.name}.yaml"
            file.write_text(yaml.safe_dump(keys, sort_keys=False), encoding="utf-8")
            folder = home / args.name
            again = ["--resume"] if (folder / "checkpoint").exists() else []
            subprocess.run([*DPSIM, "train", str(file), "--directory", str(folder), *again], check=True)


if __name__ == "__main__":
    main()
