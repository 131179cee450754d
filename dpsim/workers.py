"""Independent pieces of work, "units", one after another or many at once: on this machine, or in Slurm jobs, by Dask.

A unit is a function of plain data, `function(folder, **arguments)`, that leaves its files in a folder of its own. On
several workers each runs in its own process, `python -m dpsim.workers FOLDER`, which also repeats one by hand:

    unit.json      the function and its arguments
    result.json    what it returned, put there in one step at the end: with it a unit is finished, and never run again
    log.txt        what it printed
    error.txt      where it failed: message and traceback

A unit that fails is reported and the others go on. One whose process or machine dies is run again, `retries` times; it
finds what it left in its folder. A unit's process ends when whoever attends it ends, so nothing runs on after Ctrl-C,
kill -9 or scancel.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from dpsim.config import StrictModel
from dpsim.errors import ConfigError, DpsimError, MissingDependencyError, WorkersError
from dpsim.files import atomic_write

if TYPE_CHECKING:
    from distributed import Client

POLL_SECONDS = 30.0  # between looks at Slurm's queue while no job works
UNIT, RESULT, LOG, ERROR = "unit.json", "result.json", "log.txt", "error.txt"


class SlurmConfig(StrictModel):
    """Jobs that work on units, started by `sbatch` from here and cancelled at the end. They see the same files."""

    jobs: PositiveInt = Field(1, description="Jobs at the same time, at most.")
    units_per_job: PositiveInt = Field(1, description="Units that a job works on at the same time.")
    memory: str = Field("4 GB", description="Of each job.")
    walltime: str = Field("01:00:00", pattern=r"^(\d+-)?\d+(:\d\d){0,2}$", description="Of each job, as Slurm has it.")
    queue: str | None = Field(None, description="Partition; Slurm's default where absent.")
    account: str | None = Field(None, description="Account to charge.")
    directives: tuple[str, ...] = Field((), description='More options of sbatch, e.g. "--gres=gpu:1".')
    prologue: tuple[str, ...] = Field((), description="Lines of shell before the work, e.g. `module load cuda`.")
    python: str | None = Field(None, description="Python with dpsim on the nodes; this one where absent.")
    interface: str | None = Field(None, description="Network interface between jobs and here, e.g. ib0.")


class WorkersConfig(StrictModel):
    """Who works on units: this process (`serial`), so many processes here (`local`), or Slurm jobs (`slurm`)."""

    serial: Literal[True] | None = Field(None, description="One unit after another in this process: the default.")
    local: PositiveInt | None = Field(None, description="Units at the same time on this machine.")
    slurm: SlurmConfig | None = Field(None, description="Jobs of the Slurm workload manager.")
    threads: PositiveInt = Field(1, description="Threads (CPU cores) of each unit; with `serial`, all of the process.")
    retries: int = Field(2, ge=0, description="Times that a unit is run again after its process or machine died.")

    @model_validator(mode="after")
    def _one_kind(self) -> WorkersConfig:
        given = [name for name in ("serial", "local", "slurm") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"`workers` has {' and '.join(given)}; expected one of them. Remove the others.")
        return self

    @property
    def n_at_once(self) -> int:
        """Units that are worked on at the same time, at most."""
        return self.slurm.jobs * self.slurm.units_per_job if self.slurm else self.local or 1


@dataclass(frozen=True)
class Unit:
    """A piece of work: a key that no other has, the folder for its files, and arguments that JSON can hold."""

    key: str
    folder: Path
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a unit. error: why there is no result, with the traceback in error.txt of `unit.folder`.

    reused: it was finished before; attempts: processes that were started for it now.
    """

    unit: Unit
    result: Any = None
    error: str = ""
    reused: bool = False
    attempts: int = 0

    @property
    def failed(self) -> bool:
        return bool(self.error)


def run_units(
    function: Callable[..., Any], units: Sequence[Unit], workers: WorkersConfig | None = None, apart: bool = False
) -> Iterator[Outcome]:
    """Yield the outcome of every unit as it comes: first those finished before, then the others in any order.

    Leaving the loop early, or Ctrl-C, ends what is running.

    Args: function: of a module, called as function(folder, **arguments); what it returns JSON can hold. apart: those
        that run one after another have processes of their own too, so that memory and threads are theirs alone.
    Raises: ConfigError for units that are not distinct, or a folder that holds another unit's result;
        MissingDependencyError without Dask.
    """
    workers = workers or WorkersConfig()
    name = _name_of(function)
    for what in ("key", "folder"):
        values = [getattr(unit, what) for unit in units]
        if twice := {str(v) for v in values if values.count(v) > 1}:
            raise ConfigError(f"`units` share the {what} {sorted(twice)[:3]}; expected one of its own for each.")
    done = {unit.key: outcome for unit in units if (outcome := _finished(unit)) is not None}
    yield from done.values()
    left = [unit for unit in units if unit.key not in done]
    for unit in left:
        spec = {"key": unit.key, "function": name, "arguments": unit.arguments}
        atomic_write(unit.folder / UNIT, (json.dumps(spec, indent=1) + "\n").encode())
    if workers.n_at_once > 1 or workers.local or workers.slurm:
        yield from _in_parallel(left, workers)
    else:
        for unit in left:
            yield _outcome(unit, **_attend(*_call(unit, workers))) if apart else _outcome(unit, _perform(unit.folder))


# In the process that hands out the work


def _in_parallel(units: Sequence[Unit], workers: WorkersConfig) -> Iterator[Outcome]:
    if not units:
        return
    logs = Path(os.path.commonpath([unit.folder.absolute().parent for unit in units]), "slurm")
    with _client(workers, len(units), logs) as client:
        import distributed

        futures = {client.submit(_attend, *_call(unit, workers), key=unit.key, pure=False): unit for unit in units}
        idle = 0
        while futures:
            try:
                done = distributed.wait(list(futures), timeout=POLL_SECONDS, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                idle = idle + 1 if workers.slurm and not (client.nthreads() or _jobs_exist(client.cluster)) else 0
                if idle > 1:
                    raise WorkersError(
                        f"the jobs of Slurm end before they work; expected a Dask worker in each. What they printed is "
                        f"in {logs}: do `python` and `interface` of `workers.slurm` suit the nodes?"
                    ) from None
                continue
            for future in done:
                yield _outcome_of(future, futures.pop(future), workers.retries)


def _call(unit: Unit, workers: WorkersConfig) -> tuple[str, int, int, str, list[str]]:
    """The arguments of `_attend`."""
    path = [p or os.getcwd() for p in sys.path]
    return str(unit.folder.absolute()), workers.threads, workers.retries, os.getcwd(), path


def _outcome_of(future: Any, unit: Unit, retries: int) -> Outcome:
    from distributed import KilledWorker

    if future.status == "finished":
        return _outcome(unit, **future.result())
    error = future.exception()
    if isinstance(error, KilledWorker):
        return _outcome(unit, f"its worker died {retries + 1} times: {error.last_worker}", retries + 1)
    raise error  # a mistake of dpsim: _attend reports those of units


@contextlib.contextmanager
def _client(workers: WorkersConfig, n_units: int, logs: Path) -> Iterator[Client]:
    """Dask's workers, as many as there is work for; they, and what they run, end with the block."""
    try:
        import dask
        from distributed import Client, LocalCluster
        from distributed.security import Security

        security = Security.temporary()  # without it, whoever reaches the port can run anything as this user
    except ImportError as error:
        raise MissingDependencyError("distributed", "workers", "`workers`, but for `serial: true`,") from error
    settings = {
        "distributed.scheduler.allowed-failures": workers.retries,
        "distributed.scheduler.worker-saturation": 1.0,  # nobody holds a unit that he does not work on
        "distributed.deploy.lost-worker-timeout": "2s",
    }
    with dask.config.set(settings):
        if workers.slurm is not None:
            cluster = slurm_cluster(workers, logs, security)
            _start_jobs(cluster, min(workers.slurm.jobs, -(-n_units // workers.slurm.units_per_job)))
        else:
            cluster = LocalCluster(
                n_workers=min(workers.n_at_once, n_units),
                threads_per_worker=1,
                memory_limit=0,
                security=security,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
        with cluster, Client(cluster) as client:
            yield client


def slurm_cluster(workers: WorkersConfig, logs: Path, security: Any = None) -> Any:
    """The cluster, without any job yet; its `job_script()` is what sbatch will be given.

    logs: folder for what jobs print, and for the keys of `security`, which this user alone can read.
    """
    slurm = workers.slurm
    assert slurm is not None
    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise MissingDependencyError("dask-jobqueue", "workers", "`workers: {slurm: ...}`") from error
    if shutil.which("sbatch") is None:
        raise ConfigError("`workers.slurm` is given, but there is no `sbatch` here; expected Slurm. Write `local`.")
    logs.mkdir(parents=True, exist_ok=True)
    return SLURMCluster(
        job_name=f"dpsim-{secrets.token_hex(3)}",
        queue=slurm.queue,
        account=slurm.account,
        walltime=slurm.walltime,
        cores=slurm.units_per_job,  # Dask's threads: each waits for a unit's process
        processes=1,
        job_cpu=slurm.units_per_job * workers.threads,
        memory=slurm.memory,
        job_extra_directives=list(slurm.directives),
        job_script_prologue=list(slurm.prologue),
        log_directory=str(logs),
        python=slurm.python,
        interface=slurm.interface,
        security=security,
        shared_temp_directory=str(logs),
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
        silence_logs=logging.CRITICAL,
    )


def _start_jobs(cluster: Any, jobs: int) -> None:
    """Have so many jobs from now on: one that ends is replaced. Raises WorkersError where Slurm refuses them."""
    script = cluster.job_script()
    asked = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True)
    if asked.returncode != 0:
        cluster.close()
        raise WorkersError(
            f"`sbatch` refuses the job: {asked.stderr.strip()}. Correct `workers.slurm`; it is:\n{script}"
        )
    cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)


def _jobs_exist(cluster: Any) -> bool:
    """Whether Slurm lists any job of the cluster, waiting or running."""
    listed = subprocess.run(["squeue", "--noheader", f"--name={cluster.job_name}"], capture_output=True, text=True)
    return listed.returncode != 0 or bool(listed.stdout.strip())


def _finished(unit: Unit) -> Outcome | None:
    """The outcome kept in the folder. Raises ConfigError where it is another unit's."""
    try:
        found = json.loads((unit.folder / RESULT).read_bytes())
    except FileNotFoundError:
        return None
    if found["key"] != unit.key:
        raise ConfigError(
            f"`{unit.folder}` holds the result of the unit {found['key']!r}; expected {unit.key!r}. The work has "
            "changed since: start in a new folder, or remove this one."
        )
    return Outcome(unit, found["result"], reused=True)


def forget_other(unit: Unit) -> None:
    """Remove the result in the unit's folder if it is another unit's: what it was made of has changed since."""
    try:
        if str(json.loads((unit.folder / RESULT).read_bytes())["key"]) == unit.key:
            return
    except FileNotFoundError:
        return
    except (ValueError, KeyError):
        pass
    (unit.folder / RESULT).unlink()


def _outcome(unit: Unit, error: str = "", attempts: int = 1) -> Outcome:
    """What the unit's process left behind; `error` where it could leave nothing."""
    if error:
        return Outcome(unit, error=error, attempts=attempts)
    if (done := _finished(unit)) is not None:
        return Outcome(unit, done.result, attempts=attempts)
    with contextlib.suppress(OSError):
        return Outcome(unit, error=_message_in(unit.folder / ERROR), attempts=attempts)
    return Outcome(unit, error=f"it left neither result nor error; see {unit.folder / LOG}", attempts=attempts)


def _name_of(function: Callable[..., Any]) -> str:
    name = f"{function.__module__}:{function.__qualname__}"
    if "<" in name or function.__module__ == "__main__":
        raise ConfigError(f"`function` is {name}; expected one of a module, which other processes can import.")
    return name


# On a worker: beside the unit's process


def _attend(folder: str, threads: int, retries: int, cwd: str, path: list[str]) -> dict[str, Any]:
    """Run a unit's process until it ends by itself: {"attempts": n}, and {"error": reason} where it always died."""
    threads_of = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    environment = os.environ | threads_of | {"PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-m", "dpsim.workers", folder, "attended"]
    for attempt in range(1, retries + 2):
        with open(Path(folder, LOG), "ab") as log:
            code = _wait_for(command, log, environment, cwd)
        if code >= 0:
            return {"attempts": attempt}
    name = signal.Signals(-code).name
    hint = " Is there enough memory?" if name == "SIGKILL" else ""
    return {
        "attempts": attempt,
        "error": f"its process was killed by {name} {attempt} times; see {folder}/{LOG}.{hint}",
    }


def _wait_for(command: list[str], log: IO[bytes], environment: dict[str, str], cwd: str) -> int:
    """The exit code of a process that ends with this one: it watches the other end of its standard input."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, cwd=cwd, start_new_session=True
    )
    with process:
        return process.wait()


# In the unit's process


def _perform(folder: Path) -> str:
    """Run the unit of a folder in this process; leaves result.json or error.txt there. "", or why it failed."""
    try:
        (folder / ERROR).unlink(missing_ok=True)
        spec = json.loads((folder / UNIT).read_bytes())
        module, _, name = spec["function"].partition(":")
        function = getattr(import_module(module), name)
        result = function(folder, **spec["arguments"])
        content = json.dumps({"key": spec["key"], "result": result})
        atomic_write(folder / RESULT, f"{content}\n".encode())
        return ""
    except (Exception, SystemExit) as error:
        message = str(error) if isinstance(error, DpsimError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):  # of a full disk
            atomic_write(folder / ERROR, f"{message}\n\n{traceback.format_exc()}".encode())
        return message


def _message_in(file: Path) -> str:
    return file.read_text(encoding="utf-8").partition("\n\nTraceback")[0]


def _end_with_attendant() -> None:
    """Wait for the end of standard input, whose other end whoever attends this process holds, then end at once."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)  # the session is the unit's own: its children too


if __name__ == "__main__":
    if sys.argv[2:] == ["attended"]:
        threading.Thread(target=_end_with_attendant, daemon=True).start()
    sys.exit(_perform(Path(sys.argv[1])) or 0)  # a message goes to the log
