"""What student.py found, as Markdown."""

from __future__ import annotations

import math
from typing import Any

from side_by_side import MAX_FOREIGN
from student_models import CELLS, PEERS, STUDENTS

REFERENCE = 12288  # atoms; slopes start here
FLOPS_ENVIRONMENT = 50  # per neighbour, beside what `dpsim compress` counts


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    first = next(iter(report["students"].values()))
    lines = [
        "# Students: energy, forces and virial of water, the same weights in DeePMD-kit and dpsim",
        "",
        f"{report['date']}; {report['cpu']}, {report['cores']} cores, load before the run {report['load_before']}; "
        f"{report['native']}. Medians of {report['windows']} windows taken in turn; "
        "what is timed: `student.py --help`. "
        f"Lists of cutoff + {report['skin_A']} A"
        + (f", one in {report['steps_per_list']:.0f} steps at 330 K." if "steps_per_list" in report else "."),
        "",
        "| model | force error rms | max (eV/A) | energy error max (eV/atom) |",
        "|---|---|---|---|",
        *(
            f"| {name} | {e['force_rms']:.1e} | {e['force_max']:.1e} | {e['energy_max']:.1e} |"
            for name, e in report["accuracy"].items()
        ),
        "",
        f"Against the uncompressed model in float64, {first['neighbors']:.0f} neighbours per atom, rms force "
        f"{report.get('force_rms', math.nan):.2f} eV/A.",
    ]
    for name, student in report["students"].items():
        lines.append(f"- {name}: {describe(student)}")
    for threads, sizes in report["results"].items():
        lines += ["", f"## {plural(threads)}", "", *table(report, threads, sizes)]
    lines += ["", "## Dynamics: 192 atoms, 0.5 fs, `dpsim run` with all its output", ""]
    for threads, runs in report.get("dynamics", {}).items():
        for name, run in runs.items():
            lines.append(
                f"- {name}, {plural(threads)}: {run['ms_per_step']:.2f} ms/step, {run['ns_per_day']:.1f} ns/day"
            )
    return "\n".join([*lines, *foot(report)]) + "\n"


def plural(threads: Any) -> str:
    return f"{threads} thread{'s' if int(threads) > 1 else ''}"


def describe(student: dict[str, Any]) -> str:
    """Size and cost of a student."""
    parts = "; ".join(
        f"{p['width']} functions per pair of types, {p['n_intervals']} intervals of {p['step']:.3f} A, "
        f"{p['n_features']} features"
        for p in student["parts"]
    )
    return f"{parts}; {flops(student) / 1e6:.2f} MFLOP per atom and call"


def flops(student: dict[str, Any]) -> float:
    return student["flops_student"] + FLOPS_ENVIRONMENT * student["neighbors"]


def table(report: dict[str, Any], threads: Any, sizes: dict[int, Any]) -> list[str]:
    """One row per size and side."""
    rows = [
        "| atoms | program | ms/step | us/atom | with lists | faster | force error rms | of the ceiling | bytes/atom |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ceiling = report["ceiling_gflops"][threads]
    for n_atoms, size in sizes.items():
        peers = [s["ms"] for name, s in size["sides"].items() if name in PEERS]
        for name, s in size["sides"].items():
            ratio = f"{min(peers) / s['with_lists_ms']:.1f}x" if peers and name in STUDENTS else "-"
            student = report["students"].get(name, report["students"]["dpsim, full rank"])
            share = flops(student) * n_atoms / (s["ms"] * 1e6 * ceiling)
            memory = "-" if int(n_atoms) == min(CELLS) else f"{s['bytes_per_atom']:.0f}"
            rows.append(
                f"| {n_atoms} | {name} | {s['ms']:.4g} | {s['us_per_atom']:.2f} | "
                f"{1000 * s['with_lists_ms'] / n_atoms:.2f} | {ratio} | {report['accuracy'][name]['force_rms']:.1e} | "
                f"{100 * share:.0f} % | {memory} |"
            )
    notes = [f"Ceiling: {ceiling:.0f} GFLOP/s; DeePMD-kit's share counts the operations of dpsim's full-rank student."]
    for name in STUDENTS:
        measured = [(n, size["sides"][name]["ms"]) for n, size in sizes.items() if name in size["sides"]]
        large = [(n, ms) for n, ms in measured if int(n) >= REFERENCE]
        if len(large) > 1:
            (n0, t0), (n1, t1) = large[0], large[-1]
            slope = math.log(t1 / t0) / math.log(int(n1) / int(n0))
            notes.append(f"{name}: time grows as N^{slope:.3f} from {n0} to {n1} atoms.")
    notes += [
        f"{name}: {one / size['sides'][name]['ms']:.2f}x as fast as with 1 thread at {n_atoms} atoms."
        for n_atoms, size in sizes.items()
        for name in STUDENTS
        if (one := one_thread(report, threads, n_atoms, name)) and n_atoms == REFERENCE
    ]
    for n_atoms, size in sizes.items():
        for name, why in size["left_out"].items():
            notes.append(f"{n_atoms} atoms, {name}: {why}.")
        if not size["interleaved"]:
            notes.append(f"{n_atoms} atoms: one program after the other, for memory.")
    return [*rows, "", *(f"- {note}" for note in notes)]


def one_thread(report: dict[str, Any], threads: int, n_atoms: int, name: str) -> float | None:
    """ms with one thread, where that has been measured too."""
    if threads == 1 or name not in report["results"].get(threads, {}).get(n_atoms, {"sides": {}})["sides"]:
        return None
    size = report["results"].get(1, {}).get(n_atoms, {"sides": {}})
    return size["sides"].get(name, {}).get("ms")


def foot(report: dict[str, Any]) -> list[str]:
    """Versions, and a warning if the machine was not quiet."""
    lines = ["", "## Versions", ""]
    found: dict[str, None] = dict.fromkeys(
        f"- {name.split()[0].strip(',')}: {', '.join(f'{key} {value}' for key, value in versions.items())}"
        for name, versions in report.get("versions", {}).items()
    )
    lines += found
    sides = [s for sizes in report["results"].values() for size in sizes.values() for s in size["sides"].values()]
    shares = [share for s in sides for share in s["foreign_cpu"]]
    if shares and max(shares) > MAX_FOREIGN:
        lines.append(f"- NOT QUIET: other processes used up to {100 * max(shares):.0f} % of the machine in a window.")
    return lines
