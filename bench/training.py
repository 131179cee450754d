"""Training speed: milliseconds per step and peak memory, dpsim against DeePMD-kit's PyTorch backend.

    python bench/training.py --peer-python /path/to/env/bin/python

Water, 192 atoms, batch of one frame, float32. Both sides run in one session, each in a process of its own, taking
turns: a window of steps of one, then a window of the other, so that a change of the machine's speed meets both.
The number is the median over all timed steps of all windows; the warm-up window is excluded; memory is the whole
process's peak. A window during which other processes used more than 8 % of the machine is taken again: two
OpenMP threads that lose a core to a third wait for it at every barrier (a step of 0.1 s then takes seconds).
The peer makes the model, of random weights and the statistics of the data; both sides start from it, and their
energies, forces and the gradient of a loss by all weights are compared before anything is timed.
Without --peer-python dpsim is measured alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from models import CLASSICS, LEARNING_RATE, LOSS, MODELS, N_STEPS, make_model
from side_by_side import (
    WorkerError,
    check_parity,
    comparison,
    new_report,
    parse,
    start_sides,
    take_turns,
    version_lines,
    write_report,
)  # fmt: skip


def measure_training(files: dict[str, Path], args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both sides' trainers on the same data, from the same model; `files`: of each side."""
    folder.mkdir(parents=True)
    starts: dict[str, tuple[Any, ...]] = {}
    rest = (args.threads, folder, args.memory)
    if "deepmd-kit" in files:
        made = files["deepmd-kit"].parent
        spec = {**json.loads((made / "input.json").read_text()), "weights": str(made / "model.dp")}
        starts["deepmd-kit"] = (args.peer_python, "peer_training.py", spec, *rest)
    if not args.peer_only:
        spec = {
            "model": str(files["dpsim"]), "loss": LOSS, "learning_rate": LEARNING_RATE, "n_steps": N_STEPS,
            "data": str(args.data),
        }  # fmt: skip
        starts["dpsim"] = (sys.executable, "dpsim_training.py", spec, *rest)
    sides, failed = start_sides(starts)
    try:
        difference = check_parity(sides)
    except WorkerError as error:
        return {"refused": str(error)}
    return {
        "difference": difference,
        **failed,
        **take_turns(sides, 2 if args.quick else 20, args),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as one table."""
    lines = [
        "# Training: ms/step and peak memory",
        "",
        f"{report['date']}; {report['cpu']}, {report['threads']} threads, load before the run {report['load_before']}; "
        "water, 192 atoms, batch of 1 frame, float32, loss on energy and forces, Adam. "
        f"Median over {report['windows']} windows taken in turn (quartiles in brackets); memory: peak of the process.",
        "",
        "| model | deepmd-kit ms | dpsim ms | faster | deepmd-kit MiB | dpsim MiB |",
        "|---|---|---|---|---|---|",
        *(f"| {name} | {comparison(result)} |" for name, result in report["results"].items()),
        *version_lines(report),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=CLASSICS)
    args = parse(parser)
    report = new_report("training", args)
    with tempfile.TemporaryDirectory() as name_of_folder:
        for name in args.models:
            folder = Path(name_of_folder) / name
            files = make_model(name, args.data, args.peer_python, folder)
            report["results"][name] = measure_training(files, args, folder / "training")
            write_report(report, markdown(report), args.output)
    print(markdown(report))


if __name__ == "__main__":
    main()
