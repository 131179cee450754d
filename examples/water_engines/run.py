"""Water in ASE, LAMMPS, OpenMM and, with quantum nuclei, i-PI, beside ab initio molecular dynamics.

    python examples/water_engines/run.py ../shared/data/water_pbe0ts OUT        # half an hour on two cores

DATA: first-principles frames of 64 H2O at 330 K in the DeePMD npy layout (PBE0+TS, Zhang et al., PRL 120, 143001
(2018)); they are analysed as the runs are. Each engine runs water.yaml, i-PI runs pimd.yaml, in OUT/<engine>; the same
command continues. `dpsim compare` then joins them (OUT/comparison). Kept in `--results`: the results.json of each, one
figure, a table, and the report of the comparison if it is small.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ENGINES = {"ase": "ASE", "lammps": "LAMMPS", "openmm": "OpenMM", "pimd": "i-PI, quantum"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="such as ../shared/data/water_pbe0ts")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="water-pbe0ts-student", help="name of a bundled model, or a file")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--duration", default="60 ps", help="that is sampled")
    parser.add_argument("--pimd-duration", default="6 ps", help="that is sampled with quantum nuclei")
    parser.add_argument("--beads", type=int, default=16)
    parser.add_argument("--short", action="store_true", help="a few steps of everything, to see whether it works")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    if args.short:
        args.duration, args.pimd_duration, args.beads = "0.6 ps", "0.12 ps", 4
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the runs
    from join import analyse_aimd, keep

    aimd = analyse_aimd(args.data, args.out / "aimd")
    chosen = sorted(args.engines, key=lambda e: e != "pimd")  # the longest first
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        finished = list(
            pool.map(run_one, *zip(*[(e, keys_of(e, args, aimd), args.out / e) for e in chosen], strict=True))
        )
    done = [engine for engine in args.engines if finished[chosen.index(engine)]]
    if len(done) == len(args.engines):
        keep({"AIMD": aimd, **{ENGINES[e]: args.out / e for e in done}}, args.out / "comparison", args.results)


def keys_of(engine: str, args: argparse.Namespace, aimd: Path) -> dict[str, Any]:
    """The protocol of an engine: the file beside this one, with what the command line says."""
    quantum = engine == "pimd"
    keys: dict[str, Any] = yaml.safe_load((HERE / ("pimd.yaml" if quantum else "water.yaml")).read_text())
    keys["name"] = f"water-{engine}"
    keys["model"] = str(Path(args.model).resolve()) if Path(args.model).exists() else args.model
    if quantum:
        keys |= {"beads": args.beads, "duration": args.pimd_duration}
        return keys | ({"equilibration": "20 fs", "trajectory_every": "3 fs"} if args.short else {})
    keys["engine"] = engine
    if args.short:
        keys["stages"][0]["duration"] = keys["stages"][1]["duration"] = "0.1 ps"
        keys["stages"][2]["trajectory_every"] = "5 fs"
    keys["stages"][-1]["duration"] = args.duration
    for analysis in keys["analyses"]:
        if analysis["type"] in ("rdf", "adf"):
            analysis["reference"] = str((aimd / f"{analysis['type']}_nvt.csv").resolve())
    return keys


def run_one(engine: str, keys: dict[str, Any], folder: Path) -> bool:
    """Run, or continue. False after Ctrl-C."""
    from dpsim.protocols.registry import parse_protocol, run

    return not run(parse_protocol(yaml.safe_dump(keys, sort_keys=False), engine, HERE), folder).stopped


if __name__ == "__main__":
    main()
