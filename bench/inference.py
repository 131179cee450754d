"""Molecular dynamics speed: energy, forces and stress through the ASE calculators, microseconds per step and atom.

    python bench/inference.py --peer-python /path/to/env/bin/python

Water, 192 and 1536 atoms, float32, the same random weights on both sides: the peer writes its model in the portable
format and dpsim imports it. Energies, forces and stress are compared before anything is timed. Windows and memory as
in bench/training.py. With --model, dpsim alone is measured on that model file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import HERE, Side, add_arguments, comparison, new_report, take_turns, version_lines, write_report
from training import MODELS, peer_input

REPEATS = {192: [1, 1, 1], 1536: [2, 2, 2]}
PARITY = {"energy": 1e-5, "force_norm": 1e-3, "stress": 1e-3}  # eV/atom; relative; relative. float32 on both sides


def make_model(name: str, args: argparse.Namespace, folder: Path) -> dict[str, str]:
    """The same random model for each side: its file."""
    spec = folder / "input.json"
    spec.write_text(json.dumps(peer_input(MODELS[name][0], args.data)))
    command = [args.peer_python, str(HERE / "workers/peer_model.py"), str(spec)]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    from dpsim.models.checkpoint import save_model
    from dpsim.models.deepmd_format import read_deepmd
    from dpsim.models.energy_model import EnergyModel

    imported = read_deepmd(folder / "model.dp")
    # davg is zero here, so without truncation the native evaluation gives the same numbers.
    model = EnergyModel(imported.config.model_copy(update={"deepmd_conventions": False}))
    model.load_state_dict(imported.state_dict())
    save_model(folder / "model.dpsim", model, {})
    return {"deepmd-kit": str(folder / "model.pth"), "dpsim": str(folder / "model.dpsim")}


def check_parity(sides: list[Side]) -> dict[str, float]:
    """Differences between the sides on the first structure; refuses to time two different models."""
    if len(sides) < 2:
        return {}
    a, b = (side.info for side in sides)
    x, y = np.array(a["energy_and_stress"]), np.array(b["energy_and_stress"])
    found = {
        "energy": abs(x[0] - y[0]) / a["n_atoms"],
        "force_norm": abs(a["force_norm"] / b["force_norm"] - 1),
        "stress": float(np.abs(x[1:] - y[1:]).max() / np.abs(x[1:]).max()),
    }
    bad = {key: value for key, value in found.items() if value > PARITY[key]}
    if bad:
        raise SystemExit(f"the two sides differ by {bad}; expected at most {PARITY}: not the same model.")
    return found


def measure(n_atoms: int, files: dict[str, str], args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both sides' calculators on one structure."""
    sides = []
    for side, python in (("deepmd-kit", args.peer_python), ("dpsim", sys.executable)):
        if side in files and not (side == "dpsim" and args.peer_only):
            spec = {
                "side": side, "model": files[side], "data": str(args.data), "repeat": REPEATS[n_atoms],
                "precision": "float32",
            }  # fmt: skip
            sides.append(Side.start(side, python, "ase_steps.py", spec, args.threads, folder))
    difference = check_parity(sides)
    steps = max(10, 3000 // n_atoms)
    return {
        "n_atoms": n_atoms, "difference": difference, "steps_per_window": steps,
        **take_turns(sides, args.windows, steps, args.realtime),
    }  # fmt: skip


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
    add_arguments(parser)
    args = parser.parse_args()
    if not (args.model or args.peer_python):
        parser.error("give --peer-python for the comparison, or --model for dpsim alone")
    report = new_report("inference", args)
    with tempfile.TemporaryDirectory() as name_of_folder:
        for name in [args.model] if args.model else args.models:
            folder = Path(name_of_folder) / Path(name).stem
            folder.mkdir()
            files = {"dpsim": name} if args.model else make_model(name, args, folder)
            for n_atoms in args.atoms:
                work = folder / str(n_atoms)
                work.mkdir()
                label = f"{Path(name).stem}, {n_atoms}"
                report["results"][label] = measure(n_atoms, files, args, work)
                write_report(report, markdown(report), args.output)
    print(markdown(report))


if __name__ == "__main__":
    main()
