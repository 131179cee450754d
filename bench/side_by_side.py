"""Two programs measured side by side: workers in processes of their own that take turns, window by window."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
WATER = HERE.parent.parent / "shared/data/water_pbe0ts/train/O64H128"
sys.path[:0] = [str(HERE / "workers"), str(HERE.parent)]  # dpsim: this checkout
from protocol import MARK  # noqa: E402

MAX_FOREIGN = 0.08  # share of all cores; beyond it a window is taken again
MAX_ATTEMPTS = 4  # per window
WINDOW_SECONDS = 10.0  # of a window with more than one step
PATIENCE = 600.0  # seconds a worker has for one answer
OUT_OF_MEMORY = ("can't allocate memory", "bad_alloc", "MemoryError", "Cannot allocate memory")
# What the sides find for the same weights and structure, in float32: eV/atom; the others relative to the largest.
PARITY = {"energy": 2e-6, "forces": 1e-4, "stress": 1e-4, "gradient": 1e-4}


class WorkerError(RuntimeError):
    """A worker that ended, and why."""


@dataclass
class Side:
    """One measured program: a worker process that trains for as many steps as it is told, then waits."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    memory_GB: float | None = None
    info: dict[str, Any] = field(default_factory=dict)
    late: bool = False

    @classmethod
    def start(
        cls, name: str, python: str, worker: str, spec: dict[str, Any], threads: int, folder: Path,
        memory_GB: float | None = None,
    ) -> Side:  # fmt: skip
        """A worker with a file of what to measure. memory_GB: where its allocations fail, if anywhere."""
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
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000")  # the first to go if the machine runs out
        side = cls(name, process, work / "stderr.txt", memory_GB)
        if memory_GB is not None:
            limit = int(memory_GB * 1e9)
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (limit, limit))
        side.info = side.hear()
        return side

    def hear(self) -> dict[str, Any]:
        """The next message; its log and the reason if the worker ended or took too long."""
        if self.process.stdout is None:
            raise RuntimeError(f"{self.name}: no output pipe")
        timer = threading.Timer(PATIENCE, self.too_late)
        timer.start()
        try:
            for line in self.process.stdout:
                if line.startswith(MARK):
                    return dict(json.loads(line[len(MARK) :]))
        finally:
            timer.cancel()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        killed = self.process.returncode == -signal.SIGKILL
        self.stop()
        raise WorkerError(self.why(killed))

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.process.stdin is None:
            raise RuntimeError(f"{self.name}: no input pipe")
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        return self.hear()

    def too_late(self) -> None:
        """End a worker that has not answered."""
        self.late = True
        self.stop()

    def why(self, killed: bool) -> str:
        """Why a worker ended."""
        log = self.log.read_text()
        if self.late:
            return f"no answer in {PATIENCE:.0f} s"
        if any(words in log for words in OUT_OF_MEMORY):
            return "out of memory" + (f" at {self.memory_GB:.0f} GB" if self.memory_GB is not None else "")
        if killed:
            return "killed: out of memory of the machine"
        return f"{self.name} stopped:\n{log[-3000:]}"

    def stop(self) -> None:
        """End the worker and the data loaders it may have started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def window(
        self, steps: int, realtime: bool, do: str = "steps", attempts: int = MAX_ATTEMPTS
    ) -> tuple[list[float], float]:
        """ms of each step of one window, and the share of the machine that other processes used meanwhile."""
        for attempt in range(attempts):
            begin, busy, own = time.perf_counter(), busy_seconds(), group_seconds(self.process.pid)
            with realtime_priority(self.process.pid) if realtime else contextlib.nullcontext():
                ms = self.ask({"do": do, "steps": steps})["ms"]
            others = (busy_seconds() - busy) - (group_seconds(self.process.pid) - own)
            foreign = others / (time.perf_counter() - begin) / (os.cpu_count() or 1)
            if foreign <= MAX_FOREIGN:
                break
            if attempt < attempts - 1:
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


@dataclass
class Turns:
    """One side's windows: how many, of how many steps, and what they gave."""

    side: Side
    windows: int
    steps: int
    times: list[list[float]] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)

    @classmethod
    def planned(cls, side: Side, windows: int, steps: int, realtime: bool) -> Turns:
        """Warm up (six steps: compilation by the peer's TorchScript), and plan by the time the last step took.

        A window is `steps` steps, or what fits into ten seconds; steps longer than that are measured one by one.
        """
        begin = time.perf_counter()
        for _step in range(min(steps, 6)):
            seconds = side.window(1, realtime, attempts=1)[0][0] / 1000
            if time.perf_counter() - begin > WINDOW_SECONDS:
                break
        slow = seconds > WINDOW_SECONDS
        return cls(side, min(windows, 3) if slow else windows, max(1, min(steps, int(WINDOW_SECONDS / seconds))))

    def take(self, realtime: bool, attempts: int) -> None:
        """One window."""
        ms, others = self.side.window(self.steps, realtime, attempts=attempts)
        self.times.append(ms)
        self.foreign.append(round(others, 3))

    def end(self) -> dict[str, Any]:
        """Median and quartiles (ms/step), peak memory (MiB); ends the worker."""
        memory = self.side.ask({"do": "quit"})
        self.side.stop()
        every = [t for window in self.times for t in window]
        quartiles = statistics.quantiles(every, n=4, method="inclusive") if len(every) > 1 else 3 * every
        info = {key: value for key, value in self.side.info.items() if key != "numbers"}
        return {
            "ms_per_step": statistics.median(every),
            "quartiles_ms": [quartiles[0], quartiles[2]],
            "window_medians_ms": [statistics.median(w) for w in self.times],
            "steps_per_window": self.steps,
            "foreign_cpu": self.foreign,
            "peak_MiB": memory["VmHWM"],
            **info,
        }


def start_sides(starts: dict[str, tuple[Any, ...]]) -> tuple[list[Side], dict[str, Any]]:
    """Workers by the arguments of `Side.start`, and what is to say of those that could not start."""
    sides, failed = [], {}
    for name, arguments in starts.items():
        try:
            sides.append(Side.start(name, *arguments))
        except WorkerError as error:
            failed[name] = {"failed": str(error)}
    return sides, failed


def take_turns(sides: list[Side], steps: int, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Windows of at most `steps` steps of each side in turn: medians and peak memory, or why a side failed.

    Ends the workers.
    """
    result: dict[str, dict[str, Any]] = {}
    running: list[Turns] = []
    for side in sides:
        with reported(side, result):
            running.append(Turns.planned(side, args.windows, steps, args.realtime))
    for k in range(args.windows):
        for turns in running:
            if k < turns.windows and turns.side.name not in result:
                with reported(turns.side, result):
                    # At real-time priority others take no core from a side: their share is noted, and that is all.
                    turns.take(args.realtime, 1 if args.quick or args.realtime else MAX_ATTEMPTS)
    for turns in running:
        if turns.side.name not in result:
            with reported(turns.side, result):
                result[turns.side.name] = turns.end()
    return {side.name: result[side.name] for side in sides}


@contextlib.contextmanager
def reported(side: Side, result: dict[str, dict[str, Any]]) -> Iterator[None]:
    """A side that ends goes into the result with the reason, and the others go on."""
    try:
        yield
    except WorkerError as error:
        result[side.name] = {"failed": str(error)}


def check_parity(sides: list[Side]) -> dict[str, float]:
    """Largest differences between the sides' numbers; refuses to time two different models."""
    if len(sides) < 2:
        return {}
    a, b = (side.info["numbers"] for side in sides)
    found = {}
    for name in a:
        x, y = np.array(a[name]), np.array(b[name])
        found[name] = float(np.abs(x - y).max() / (1 if name == "energy" else np.abs(x).max()))
    bad = {name: value for name, value in found.items() if not value <= PARITY[name]}
    if bad:
        for side in sides:
            side.stop()
        raise WorkerError(f"the two sides differ by {bad}; expected at most {PARITY}: not the same model.")
    return found


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with the options that the comparisons of models have in common."""
    parser.add_argument("--peer-python", help="Python of an environment with deepmd-kit[torch] (absent: dpsim alone)")
    parser.add_argument("--peer-only", action="store_true", help="measure the peer alone")
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), default=WATER.resolve())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--memory", type=float, default=round(0.8 * machine_GB()), help="GB a side may use")
    parser.add_argument("--quick", action="store_true", help="two steps of each, quiet or not: does everything run?")
    parser.add_argument("--realtime", action="store_true", help="run the windows at real-time priority (needs root)")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    if args.quick:
        args.windows = 1
    return args


def machine_GB() -> float:
    """Memory of the machine, GB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


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
    """`median (quartiles)`, scaled, `-`, or why there is none."""
    if side is None:
        return "-"
    if "failed" in side:
        return side["failed"].strip().splitlines()[-1]
    low, high = side["quartiles_ms"]
    return f"{factor * side['ms_per_step']:.1f} ({factor * low:.1f}-{factor * high:.1f})"


def ratio(result: dict[str, Any], key: str) -> float | None:
    """How many times the peer takes what dpsim takes, if both were measured."""
    peer, own = (result.get(name, {}).get(key) for name in ("deepmd-kit", "dpsim"))
    return peer / own if peer and own else None


def comparison(result: dict[str, Any], factor: float = 1.0) -> str:
    """Cells of one row: peer's time, dpsim's, ratio, peer's memory, dpsim's."""
    peer, own = result.get("deepmd-kit"), result.get("dpsim")
    times = ratio(result, "ms_per_step")
    memory = [f"{side['peak_MiB']:.0f}" if side and "peak_MiB" in side else "-" for side in (peer, own)]
    faster = f"{times:.2f}x" if times else "-"
    return f"{time_cell(peer, factor)} | {time_cell(own, factor)} | {faster} | {memory[0]} | {memory[1]}"


def version_lines(report: dict[str, Any]) -> list[str]:
    """One line per side, and a warning if the machine was not quiet."""
    lines, shares = [], []
    for name in ("deepmd-kit", "dpsim"):
        sides = [r[name] for r in report["results"].values() if "versions" in r.get(name, {})]
        shares += [share for side in sides for share in side["foreign_cpu"]]
        if sides:
            found = {**sides[0]["versions"], **({"native": sides[0]["native"]} if "native" in sides[0] else {})}
            lines.append(f"{name}: {', '.join(f'{key} {value}' for key, value in found.items())}")
    if shares and max(shares) > MAX_FOREIGN:
        lines.append(f"NOT QUIET: other processes used up to {100 * max(shares):.0f} % of the machine in a window.")
    return ["", *(f"- {line}" for line in lines)]
