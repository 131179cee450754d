"""Molecular dynamics speed: energy, forces and stress through the ASE calculators, microseconds per step and atom.

    python bench/inference.py --peer-python /path/to/env/bin/python

Water, 192 and 1536 atoms, float32, the same random weights on both sides: the peer writes its model in the portable
format and dpsim imports it. Energies, forces and stress are compared before anything is timed. Windows and memory as
in bench/training.py. Without --peer-python, or with --model (a file), dpsim is measured alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from models import MODELS, make_model
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

REPEATS = {192: [1, 1, 1], 1536: [2, 2, 2]}


def measure_inference(n_atoms: int, files: dict[str, Path], args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both sides' calculators on one structure; `files`: of each side."""
    folder.mkdir(parents=True)
    starts: dict[str, tuple[Any, ...]] = {}
    for name, python in (("deepmd-kit", args.peer_python), ("dpsim", sys.executable)):
        if name in files and not (name == "dpsim" and args.peer_only):
            spec = {
                "side": name, "model": str(files[name]), "data": str(args.data), "repeat": REPEATS[n_atoms],
                "precision": "float32",
            }  # fmt: skip
            starts[name] = (python, "ase_steps.py", spec, args.threads, folder, args.memory)
    sides, failed = start_sides(starts)
    try:
        difference = check_parity(sides)
    except WorkerError as error:
        return {"n_atoms": n_atoms, "refused": str(error)}
    steps = 2 if args.quick else max(10, 3000 // n_atoms)
    return {
        "n_atoms": n_atoms,
        "difference": difference,
        **failed,
        **take_turns(sides, steps, args),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as one table."""
    lines = [
        "# Dynamics through ASE: us/step/atom and peak memory",
        "",
        f"{report['date']}; {report['cpu']}, {report['threads']} threads, load before the run {report['load_before']}; "
        "water, float32, energy + forces + stress per step, neighbour lists included. "
        f"Median over {report['windows']} windows taken in turn (quartiles in brackets); memory: peak of the process.",
        "",
        "| model, atoms | deepmd-kit us | dpsim us | faster | deepmd-kit MiB | dpsim MiB |",
        "|---|---|---|---|---|---|",
        *(f"| {name} | {comparison(r, 1000 / r['n_atoms'])} |" for name, r in report["results"].items()),
        *version_lines(report),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["se_e2_a", "dpa1_L0_strip"])
    parser.add_argument("--model", help="a .dpsim file or bundled name: measure dpsim alone on it")
    parser.add_argument("--atoms", nargs="+", type=int, choices=list(REPEATS), default=list(REPEATS))
    args = parse(parser)
    report = new_report("inference", args)
    with tempfile.TemporaryDirectory() as name_of_folder:
        for name in [args.model] if args.model else args.models:
            folder = Path(name_of_folder) / Path(name).stem
            files = {"dpsim": name} if args.model else make_model(name, args.data, args.peer_python, folder)
            for n_atoms in args.atoms:
                label = f"{Path(name).stem}, {n_atoms}"
                report["results"][label] = measure_inference(n_atoms, files, args, folder / str(n_atoms))
                write_report(report, markdown(report), args.output)
    print(markdown(report))


if __name__ == "__main__":
    main()
