"""DPA-2 and DPA-3 against DeePMD-kit's PyTorch backend: dynamics and training, time and memory, and what is aimed at.

    python bench/teachers.py --peer-python /path/to/env/bin/python --realtime

Rows of bench/inference.py (192 and 1536 atoms of water) and of bench/training.py (192 atoms) for the large models of
bench/models.py, each from one file of weights, with the targets beside them. A side that runs out of memory or does
not answer is reported as that. Slow sides take fewer steps: about ten seconds in a window, one step at least.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from inference import REPEATS, measure_inference
from models import MODELS, TEACHERS, make_model
from side_by_side import new_report, parse, ratio, time_cell, version_lines, write_report
from training import measure_training

MEMORY_TARGET = 6.0  # times less than the peer, at the peak of the process


def verdict(found: float | None, target: float, more: bool = False) -> str:
    """`5.1x of 4x: met`; `more`: the peer takes more than was allowed."""
    if found is None:
        return "-"
    met = "met" if found >= target else "open" if more else "missed"
    return f"{'>' if more else ''}{found:.1f}x of {target:g}x: {met}"


def measured(side: Any) -> bool:
    """Whether an entry of a result is a side that came to its end."""
    return isinstance(side, dict) and "peak_MiB" in side


def row(label: str, result: dict[str, Any], memory_GB: float) -> str:
    """One line of the table."""
    peer, own = result.get("deepmd-kit"), result.get("dpsim")
    factor = 1000 / result["n_atoms"] if "n_atoms" in result else 1.0
    if "refused" in result:
        return f"| {label} | {result['refused']} | | | | | | |"
    memory, more = ratio(result, "peak_MiB"), False
    if measured(own) and peer and "out of memory" in peer.get("failed", ""):
        memory, more = memory_GB * 1e9 / 2**20 / own["peak_MiB"], True
    beyond = ratio(
        {name: {"MiB": side["peak_MiB"] - side["after_import_MiB"]} for name, side in result.items() if measured(side)},
        "MiB",
    )
    cells = [
        label,
        time_cell(peer, factor),
        time_cell(own, factor),
        verdict(ratio(result, "ms_per_step"), result["target"]),
        *(f"{side['peak_MiB']:.0f}" if measured(side) else "-" for side in (peer, own)),
        verdict(memory, MEMORY_TARGET, more),
        "-" if beyond is None else f"{beyond:.1f}x",
    ]
    return f"| {' | '.join(cells)} |"


def markdown(report: dict[str, Any]) -> str:
    """The report as two tables."""
    head = "| deepmd-kit | dpsim | faster | deepmd-kit MiB | dpsim MiB | memory | beyond imports |\n" + "|---" * 8 + "|"
    rows = {
        kind: [row(label, r, report["memory_GB"]) for label, r in report["results"].items() if r["kind"] == kind]
        for kind in ("inference", "training")
    }
    lines = [
        "# DPA-2 and DPA-3: time and peak memory",
        "",
        f"{report['date']}; {report['cpu']}, {report['threads']} threads, load before the run {report['load_before']}; "
        "water, float32, the same weights on both sides. "
        f"Median over up to {report['windows']} windows taken in turn (quartiles in brackets); memory: peak of the "
        f"process, {report['memory_GB']:.0f} GB at most; beyond imports: without what it holds before the first step.",
        "",
        "Dynamics through ASE, us/step/atom: energy + forces + stress, neighbour lists included.",
        "",
        f"| model, atoms {head}",
        *rows["inference"],
        "",
        "Training, ms/step: 192 atoms, batch of 1 frame, loss on energy and forces, Adam.",
        "",
        f"| model {head}",
        *rows["training"],
        *version_lines(report),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=TEACHERS, default=TEACHERS)
    parser.add_argument("--atoms", nargs="*", type=int, choices=list(REPEATS), default=list(REPEATS))
    parser.add_argument("--no-training", action="store_true")
    args = parse(parser)
    report = {**new_report("teachers", args), "memory_GB": args.memory}

    def add(label: str, kind: str, target: float, result: dict[str, Any]) -> None:
        report["results"][label] = {"kind": kind, "target": target, **result}
        write_report(report, markdown(report), args.output)
        print(row(label, report["results"][label], args.memory), flush=True)

    with tempfile.TemporaryDirectory() as name_of_folder:
        for name in args.models:
            model, folder = MODELS[name], Path(name_of_folder) / name
            files = make_model(name, args.data, args.peer_python, folder)
            for n in args.atoms:
                result = measure_inference(n, files, args, folder / str(n))
                add(f"{name}, {n}", "inference", model.inference, result)
            if not args.no_training:
                add(name, "training", model.training, measure_training(files, args, folder / "training"))
    print(markdown(report))


if __name__ == "__main__":
    main()
