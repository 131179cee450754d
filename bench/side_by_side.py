"""Two programs measured side by side: workers in processes of their own that take turns, window by window."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WATER = HERE.parent.parent / "shared/data/water_pbe0ts/train/O64H128"
sys.path[:0] = [str(HERE / "workers"), str(HERE.parent)]  # dpsim: this checkout
from protocol import MARK  # noqa: E402

MAX_FOREIGN = 0.08  # share of all cores; beyond it a window is taken again
MAX_ATTEMPTS = 4  # per window


@dataclass
class Side:
    """One measured program: a worker process that trains for as many steps as it is told, then waits."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    info: dict[str, Any]

    @classmethod
    def start(cls, name: str, python: str, worker: str, spec: dict[str, Any], threads: int, folder: Path) -> Side:
        path = folder / f"{name}.json"
        path.write_text(json.dumps(spec))
        env = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "DP_INTRA_OP_PARALLELISM_THREADS": str(threads),
            "DP_INTER_OP_PARALLELISM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "NUM_WORKERS": "0",  # DeePMD-kit: read frames in the trainer itself; loader processes need the cores too
            "PYTHONPATH": str(HERE.parent) if python == sys.executable else "",
        }
        work = folder / name
        work.mkdir()
        process = subprocess.Popen(
            [python, str(HERE / "workers" / worker), str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=work,
            stderr=(work / "stderr.txt").open("w"), start_new_session=True,
        )  # fmt: skip
        side = cls(name, process, work / "stderr.txt", {})
        side.info = side.hear()
        return side

    def hear(self) -> dict[str, Any]:
        if self.process.stdout is None:
            raise RuntimeError(f"{self.name}: no output pipe")
        for line in self.process.stdout:
            if line.startswith(MARK):
                return dict(json.loads(line[len(MARK) :]))
        raise RuntimeError(f"{self.name} stopped:\n{self.log.read_text()[-3000:]}")

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.process.stdin is None:
            raise RuntimeError(f"{self.name}: no input pipe")
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def stop(self) -> None:
        """End the worker and the data loaders it may have started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def window(self, steps: int, realtime: bool, do: str = "steps") -> tuple[list[float], float]:
        """ms of each step of one window, and the share of the machine that other processes used meanwhile."""
        for _attempt in range(MAX_ATTEMPTS):
            begin, busy, own = time.perf_counter(), busy_seconds(), group_seconds(self.process.pid)
            with realtime_priority(self.process.pid) if realtime else contextlib.nullcontext():
                ms = self.ask({"do": do, "steps": steps})["ms"]
            others = (busy_seconds() - busy) - (group_seconds(self.process.pid) - own)
            foreign = others / (time.perf_counter() - begin) / (os.cpu_count() or 1)
            if foreign <= MAX_FOREIGN:
                break
            time.sleep(1)
        return ms, foreign


@contextlib.contextmanager
def realtime_priority(group: int) -> Iterator[None]:
    """Run all threads of a process group before everything else (needs root): a quiet machine for some seconds."""

    def schedule(policy: int, priority: int) -> None:
        for pid, _stat in group_members(group):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))

    schedule(os.SCHED_FIFO, 1)
    try:
        yield
    finally:
        schedule(os.SCHED_OTHER, 0)


def busy_seconds() -> float:
    """CPU time all processes have used since boot (user + nice + system + irq + softirq + steal)."""
    ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def group_members(group: int) -> list[tuple[int, list[str]]]:
    """Process id and /proc/pid/stat fields (from the third on) of each process of a group."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if int(stat[2]) == group:
                    members.append((int(entry.name), stat))
    return members


def group_seconds(group: int) -> float:
    """CPU time (user + system) of the processes of a group: a worker and its data loaders."""
    return sum(int(stat[11]) + int(stat[12]) for _pid, stat in group_members(group)) / os.sysconf("SC_CLK_TCK")


def cpu_name() -> str:
    """As the kernel names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def take_turns(sides: list[Side], windows: int, steps: int, realtime: bool) -> dict[str, dict[str, Any]]:
    """Windows of each side in turn; medians and quartiles (ms/step) and peak memory (MiB). Ends the workers."""
    times: dict[str, list[list[float]]] = {side.name: [] for side in sides}
    foreign: dict[str, list[float]] = {side.name: [] for side in sides}
    for side in sides:
        side.ask({"do": "steps", "steps": min(steps, 6)})  # warm-up: compilation by the peer's TorchScript
    for _window in range(windows):
        for side in sides:
            ms, others = side.window(steps, realtime)
            times[side.name].append(ms)
            foreign[side.name].append(round(others, 3))
    result = {}
    for side in sides:
        memory = side.ask({"do": "quit"})
        side.stop()
        steps_ms = [t for window in times[side.name] for t in window]
        quartiles = statistics.quantiles(steps_ms, n=4)
        result[side.name] = {
            "ms_per_step": statistics.median(steps_ms),
            "quartiles_ms": [quartiles[0], quartiles[2]],
            "window_medians_ms": [statistics.median(w) for w in times[side.name]],
            "foreign_cpu": foreign[side.name],
            "peak_MiB": memory["VmHWM"],
            **side.info,
        }
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options every side-by-side benchmark has."""
    parser.add_argument("--peer-python", help="Python of an environment with deepmd-kit[torch] (absent: dpsim alone)")
    parser.add_argument("--peer-only", action="store_true", help="measure the peer alone")
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), default=WATER.resolve())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--realtime", action="store_true", help="run the windows at real-time priority (needs root)")
    parser.add_argument("--output", type=Path, default=HERE / "results")


def new_report(benchmark: str, args: argparse.Namespace) -> dict[str, Any]:
    """What a report says of the machine and the run."""
    return {
        "benchmark": benchmark, "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "cpu": cpu_name(),
        "cores": os.cpu_count(), "threads": args.threads, "windows": args.windows, "realtime": args.realtime,
        "load_before": [round(x, 2) for x in os.getloadavg()], "results": {},
    }  # fmt: skip


def write_report(report: dict[str, Any], markdown: str, folder: Path) -> None:
    """<benchmark>_<date>.json and .md; called after each model, so that a run cut short leaves what it has."""
    folder.mkdir(parents=True, exist_ok=True)
    date = report["date"].removesuffix(" UTC").replace(" ", "_").replace(":", "")
    stem = folder / f"{report['benchmark']}_{date}"
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown)


def time_cell(side: dict[str, Any] | None, factor: float = 1.0) -> str:
    """`median (quartiles)`, scaled, or `-`."""
    if side is None:
        return "-"
    low, high = side["quartiles_ms"]
    return f"{factor * side['ms_per_step']:.1f} ({factor * low:.1f}-{factor * high:.1f})"


def comparison(result: dict[str, Any], factor: float = 1.0) -> str:
    """Cells of one row: peer's time, dpsim's, ratio, peer's memory, dpsim's."""
    peer, own = result.get("deepmd-kit"), result.get("dpsim")
    ratio = f"{peer['ms_per_step'] / own['ms_per_step']:.2f}x" if peer and own else "-"
    memory = [f"{side['peak_MiB']:.0f}" if side else "-" for side in (peer, own)]
    return f"{time_cell(peer, factor)} | {time_cell(own, factor)} | {ratio} | {memory[0]} | {memory[1]}"


def version_lines(report: dict[str, Any]) -> list[str]:
    """One line per side, and a warning if the machine was not quiet."""
    lines, shares = [], []
    for name in ("deepmd-kit", "dpsim"):
        sides = [r[name] for r in report["results"].values() if name in r]
        shares += [share for side in sides for share in side["foreign_cpu"]]
        if sides:
            found = {**sides[0]["versions"], **({"native": sides[0]["native"]} if "native" in sides[0] else {})}
            lines.append(f"{name}: {', '.join(f'{key} {value}' for key, value in found.items())}")
    if shares and max(shares) > MAX_FOREIGN:
        lines.append(f"NOT QUIET: other processes used up to {100 * max(shares):.0f} % of the machine in a window.")
    return ["", *(f"- {line}" for line in lines)]
