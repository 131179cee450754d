"""Training speed: milliseconds per step and peak memory, dpsim against DeePMD-kit's PyTorch backend.

    python bench/training.py --peer-python /path/to/env/bin/python

Water, 192 atoms, batch of one frame, float32. Both sides run in one session, each in a process of its own, taking
turns: a window of steps of one, then a window of the other, so that a change of the machine's speed meets both.
The number is the median over all timed steps of all windows; the warm-up window is excluded; memory is the whole
process's peak. A window during which other processes used more than 8 % of the machine is taken again: two
OpenMP threads that lose a core to a third wait for it at every barrier (a step of 0.1 s then takes seconds).
Without --peer-python dpsim is measured alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import Side, add_arguments, comparison, new_report, take_turns, version_lines, write_report

COMMON: dict[str, Any] = {"rcut": 6.0, "rcut_smth": 0.5, "neuron": [25, 50, 100], "axis_neuron": 16}
DPA1: dict[str, Any] = {**COMMON, "type": "dpa1", "sel": 138, "tebd_dim": 8, "attn": 128}
# In dpsim's own words; `peer_input` translates. The second entry: steps per window, for windows of seconds.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "se_e2_a": ({**COMMON, "type": "se_e2_a", "sel": [46, 92]}, 20),
    "dpa1_L0_concat": ({**DPA1, "attn_layer": 0, "tebd_input_mode": "concat"}, 20),
    "dpa1_L0_strip": ({**DPA1, "attn_layer": 0, "tebd_input_mode": "strip"}, 20),
    "dpa1_L2": ({**DPA1, "attn_layer": 2, "tebd_input_mode": "concat"}, 4),
}
FITTING = {"neuron": [240, 240, 240], "resnet_dt": True}
LOSS = {
    "start_pref_e": 0.02, "limit_pref_e": 1.0,
    "start_pref_f": 1000.0, "limit_pref_f": 1.0,
    "start_pref_v": 0.0, "limit_pref_v": 0.0,
}  # fmt: skip
LEARNING_RATE = {"start_lr": 1e-3, "stop_lr": 1e-8, "decay_steps": 5000}
N_STEPS = 1_000_000  # of the schedule; never reached


def peer_input(descriptor: dict[str, Any], data: Path) -> dict[str, Any]:
    """The same model and training as an input of DeePMD-kit 3.2."""
    d = {**descriptor, "precision": "float32", "seed": 1, "activation_function": "tanh"}
    if d["type"] == "dpa1":
        d.update(
            type_one_side=True, concat_output_tebd=True, smooth_type_embedding=True, attn_dotr=True, set_davg_zero=True
        )
    else:
        d["type_one_side"] = False
    return {
        "model": {
            "type_map": ["O", "H"],
            "descriptor": d,
            "fitting_net": {**FITTING, "precision": "float32", "activation_function": "tanh", "seed": 1},
        },
        "learning_rate": {"type": "exp", **LEARNING_RATE},
        "loss": {"type": "ener", **LOSS},
        "training": {
            "training_data": {"systems": [str(data)], "batch_size": 1},
            "numb_steps": N_STEPS,
            "seed": 10,
            "disp_freq": N_STEPS,
            "save_freq": N_STEPS,
            "disp_training": False,
        },
    }


def start_sides(name: str, args: argparse.Namespace, folder: Path) -> list[Side]:
    """The peer's worker and dpsim's, ready to step."""
    descriptor, _steps = MODELS[name]
    folder = folder / name
    folder.mkdir()
    sides = []
    if args.peer_python:
        spec = peer_input(descriptor, args.data)
        sides.append(Side.start("deepmd-kit", args.peer_python, "peer_training.py", spec, args.threads, folder))
    if not args.peer_only:
        spec = {
            "model": {
                "type_map": ["O", "H"], "descriptor": descriptor, "fitting": FITTING, "precision": "float32",
            },
            "loss": LOSS, "learning_rate": LEARNING_RATE, "n_steps": N_STEPS, "data": str(args.data),
        }  # fmt: skip
        sides.append(Side.start("dpsim", sys.executable, "dpsim_training.py", spec, args.threads, folder))
    return sides


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
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    add_arguments(parser)
    args = parser.parse_args()
    report = new_report("training", args)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            sides = start_sides(name, args, Path(folder))
            steps = MODELS[name][1]
            report["results"][name] = {
                "model": MODELS[name][0], "steps_per_window": steps,
                **take_turns(sides, args.windows, steps, args.realtime),
            }  # fmt: skip
            write_report(report, markdown(report), args.output)
    print(markdown(report))


if __name__ == "__main__":
    main()
