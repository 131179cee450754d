"""Units of work: none is lost, none is done twice, and what goes wrong is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import units_for_tests
from dpsim import workers as workers_module
from dpsim.config import parse_yaml
from dpsim.errors import ConfigError, WorkersError
from dpsim.workers import Outcome, Unit, WorkersConfig, run_units
from slurm_for_tests import alive, jobs
from units_for_tests import moody, sleep, square

ROOT = Path(__file__).parents[2]


def units_of(folder: Path, **arguments: list[Any]) -> list[Unit]:
    ((name, values),) = arguments.items()
    return [Unit(f"unit-{k}", folder / str(k), {name: value}) for k, value in enumerate(values)]


def run(function: Any, units: list[Unit], **workers: Any) -> dict[Any, Outcome]:
    """Outcomes by the unit's argument."""
    outcomes = list(run_units(function, units, WorkersConfig(**workers)))
    assert sorted(o.unit.key for o in outcomes) == sorted(u.key for u in units)
    return {next(iter(o.unit.arguments.values())): o for o in outcomes}


def calls(unit: Unit) -> int:
    return len((unit.folder / "calls").read_text().splitlines())


# In this process


def test_units_leave_results_and_are_not_run_again(tmp_path):
    units = units_of(tmp_path, x=[2.0, 3.0])
    first = run(square, units)
    assert {x: o.result["square"] for x, o in first.items()} == {2.0: 4.0, 3.0: 9.0}
    assert first[2.0].result["pid"] == os.getpid() and not first[2.0].reused
    again = run(square, [*units, Unit("new", tmp_path / "new", {"x": 5.0})])
    assert again[2.0].reused and again[2.0].result == first[2.0].result and not again[5.0].reused
    assert [calls(u) for u in units] == [1, 1]


def test_units_that_run_one_after_another_can_have_their_own_processes(tmp_path):
    units = units_of(tmp_path, mood=["killed", "fine"])
    killed, fine = run_units(moody, units, WorkersConfig(threads=3, retries=0), apart=True)
    assert killed.error.startswith("its process was killed by SIGKILL 1 times")
    assert fine.result["pid"] != os.getpid() and fine.result["threads"] == "3"


def test_a_failing_unit_is_reported_and_the_others_go_on(tmp_path):
    units = units_of(tmp_path, mood=["fails", "breaks", "exits", "unspeakable", "fine"])
    found = run(moody, units)
    assert found["fine"].result and not found["fine"].failed
    assert found["fails"].error == "`mood` is fails; expected fine. Cheer up."
    assert found["breaks"].error == "ZeroDivisionError: division by zero"
    assert "SystemExit" in found["exits"].error and "not JSON serializable" in found["unspeakable"].error
    text = (found["breaks"].unit.folder / "error.txt").read_text()
    assert "units_for_tests.py" in text and "1 / 0" in text
    assert run(moody, units)["fails"].failed and calls(units[0]) == 2  # not finished, so tried again
    assert calls(units[4]) == 1


def test_a_unit_that_succeeds_at_last_leaves_no_error(tmp_path):
    unit = Unit("a", tmp_path / "a", {"mood": "breaks"})
    assert run(moody, [unit])["breaks"].failed
    assert not run(moody, [Unit("a", tmp_path / "a", {"mood": "fine"})])["fine"].failed
    assert not (tmp_path / "a" / "error.txt").exists()


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    real = workers_module.atomic_write

    def full(path: Path, content: bytes) -> None:
        if path.name != "unit.json":
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(workers_module, "atomic_write", full)
    assert "No space left" in run(square, units_of(tmp_path, x=[1.0]))[1.0].error


def test_units_that_cannot_be_told_apart_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="share the key"):
        list(run_units(square, [Unit("a", tmp_path / "1"), Unit("a", tmp_path / "2")]))
    with pytest.raises(ConfigError, match="share the folder"):
        list(run_units(square, [Unit("a", tmp_path), Unit("b", tmp_path)]))
    run(square, [Unit("a", tmp_path / "1", {"x": 1.0})])
    with pytest.raises(ConfigError, match="holds the result of the unit 'a'; expected 'b'"):
        list(run_units(square, [Unit("b", tmp_path / "1", {"x": 1.0})]))


def test_only_functions_that_processes_can_import_are_taken(tmp_path):
    with pytest.raises(ConfigError, match="expected one of a module"):
        list(run_units(lambda folder: None, [Unit("a", tmp_path)]))


def test_workers_are_of_one_kind():
    assert WorkersConfig().n_at_once == 1 and parse_yaml("serial: true", WorkersConfig) == WorkersConfig(serial=True)
    assert parse_yaml("slurm: {jobs: 3, units_per_job: 2}", WorkersConfig).n_at_once == 6
    with pytest.raises(ConfigError, match="has local and slurm; expected one of them"):
        parse_yaml("local: 2\nslurm: {}", WorkersConfig)
    with pytest.raises(ConfigError, match="walltime"):
        parse_yaml("slurm: {walltime: tomorrow}", WorkersConfig)


# In processes of this machine


def test_local_workers_survive_what_units_do(tmp_path):
    """Each unit has a process and threads of its own. One cluster for all of it: Dask takes a second to start."""
    units = units_of(tmp_path, mood=["killed once", "killed", "fails", "fine"])
    found = run(moody, units, local=2, retries=1, threads=3)
    good = [found["fine"], found["killed once"]]
    assert [o.attempts for o in good] == [1, 2] and {o.result["threads"] for o in good} == {"3"}
    assert len({o.result["pid"] for o in good} | {os.getpid()}) == 3
    assert "killed by SIGKILL 2 times" in found["killed"].error and "memory" in found["killed"].error
    assert found["fails"].error == "`mood` is fails; expected fine. Cheer up." and calls(units[2]) == 1


PROGRAM = """
import sys
from functools import partial
from pathlib import Path
import units_for_tests
from dpsim.workers import Unit, WorkersConfig, run_units

if __name__ == "__main__":
    units = [Unit(str(k), Path(sys.argv[1], str(k)), {"seconds": s}) for k, s in enumerate([0, 60, 60])]
    for outcome in run_units(units_for_tests.sleep, units, WorkersConfig(local=2)):
        print(outcome.unit.key, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_runs_on_after_an_interruption(tmp_path, number):
    """Ctrl-C (of the whole process group, as a terminal sends it), and kill -9 of the program alone."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    heeds_interrupts = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored by jobs in the background
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=environment, start_new_session=True, preexec_fn=heeds_interrupts
    ) as program:
        assert program.stdout is not None and program.stdout.readline() == b"0\n"
        wait_for(lambda: all((tmp_path / f"{k}" / "calls").exists() for k in (1, 2)))
        (os.killpg if number == signal.SIGINT else os.kill)(program.pid, number)
    pids = [int(pid) for k in (1, 2) for pid in (tmp_path / f"{k}" / "calls").read_text().split()]
    wait_for(lambda: not any(map(alive, pids)), seconds=10)
    units = [Unit(str(k), tmp_path / str(k), {"seconds": 0.0}) for k in range(3)]
    outcomes = {o.unit.key: o for o in run_units(sleep, units)}
    assert [outcomes[k].reused for k in "012"] == [True, False, False]


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# In jobs of Slurm


def test_slurm_jobs_work_and_are_cancelled(tmp_path, slurm):
    settings = {
        "jobs": 2, "memory": "2 GB", "walltime": "0-00:10:00", "queue": "short", "account": "water",
        "directives": ["--gres=gpu:1"], "prologue": ["export OF_THE_PROLOGUE=1"],
    }  # fmt: skip
    found = run(moody, units_of(tmp_path, mood=["fine", "killed once"]), slurm=settings, threads=2)
    assert found["fine"].result["threads"] == "2" and found["killed once"].attempts == 2
    script = next(slurm.glob("job-*.sh")).read_text()
    for line in ("-p short", "-A water", "--cpus-per-task=2", "-t 0-00:10:00", "--gres=gpu:1", "-n 1", "-J dpsim-"):
        assert f"#SBATCH {line}" in script
    assert "export OF_THE_PROLOGUE=1\n" in script
    assert " tls://" in script  # nobody else may give out work
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in tmp_path.glob("**/*.key.*"))
    assert len(jobs(slurm)) == 2
    wait_for(lambda: not any(map(alive, jobs(slurm))))


@pytest.mark.slow
def test_a_slurm_job_that_dies_is_replaced(tmp_path, slurm):
    outcomes = run_units(sleep, units_of(tmp_path, seconds=[0.0, 4.0]), WorkersConfig(slurm={"units_per_job": 2}))
    assert next(outcomes).result == "slept"
    (first,) = jobs(slurm)
    os.killpg(first, signal.SIGKILL)
    (last,) = outcomes
    assert last.result == "slept" and calls(last.unit) == 2
    assert len(jobs(slurm)) == 2


def test_slurm_that_refuses_is_quoted(tmp_path, slurm):
    with pytest.raises(WorkersError, match=r"invalid partition: nowhere. Correct `workers.slurm`"):
        run(square, units_of(tmp_path, x=[1.0]), slurm={"queue": "nowhere"})
    assert not jobs(slurm)


def test_jobs_that_end_at_once_are_noticed(tmp_path, slurm, monkeypatch):
    monkeypatch.setattr(workers_module, "POLL_SECONDS", 0.3)
    with pytest.raises(WorkersError, match="jobs of Slurm end before they work"):
        run(square, units_of(tmp_path, x=[1.0]), slurm={"python": "/no/such/python"})


def test_without_slurm_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no `sbatch` here"):
        run(square, units_of(tmp_path, x=[1.0]), slurm={})


def test_a_unit_can_be_repeated_by_hand(tmp_path):
    unit = Unit("a", tmp_path / "a", {"x": 3.0})
    run(square, [unit])
    (unit.folder / "result.json").unlink()
    command = [sys.executable, "-m", "dpsim.workers", str(unit.folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(units_for_tests.__file__).parent)])}
    subprocess.run(command, check=True, env=environment)
    assert json.loads((unit.folder / "result.json").read_text())["result"]["square"] == 9.0
