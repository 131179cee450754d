"""kill -9 at many moments of a distillation: it ends as one left alone, no finished work is repeated or lost.

One process imports everything and forks; each child goes on with the run and, at a random write to the disk, sends
itself SIGKILL just before it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import os, random, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
import torch
import dpsim.distill.finish, dpsim.train.trainer, dpsim.engines.ase_engine, torch._dynamo
from distill_for_tests import run
import distill_for_tests, pair_calculators

torch.set_num_threads(1)
folder, rng, kills = Path({folder!r}), random.Random(1), 0


def kill_before(name, left):
    original = getattr(os, name)

    def instead(*args, **more):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **more)

    setattr(os, name, instead)


def attempt(where, writes):
    child = os.fork()
    if child == 0:
        left = [writes]
        for name in ("fsync", "replace", "truncate"):
            kill_before(name, left)
        try:
            run(where, **{changes!r})
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


assert not attempt(folder / "whole", 1 << 30)
while attempt(folder / "parts", 8 + rng.randrange(24)):
    kills += 1
    assert kills < 200
print(kills)
"""


@pytest.mark.slow
@pytest.mark.parametrize("selector", ["teacher", "committee"])
def test_kills_change_nothing(tmp_path: Path, selector: str) -> None:
    changes = {"selector": selector, "committee": 2, "compress": {"frames": 2}, "student__train__final_steps": 3}
    here = Path(__file__).parent
    paths = [str(here), str(here.parent / "engines"), str(here.parents[1])]
    script = _SCRIPT.format(paths=paths, folder=str(tmp_path), changes=changes)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10

    whole, parts = tmp_path / "whole/run", tmp_path / "parts/run"
    units = [[json.loads(line)["unit"] for line in (f / "ledger.jsonl").open()] for f in (whole, parts)]
    assert units[0] == units[1]
    assert len(set(units[1])) == len(units[1])
    hashes = [
        {(e := json.loads(line))["unit"]: e["sha256"] for line in (f / "ledger.jsonl").open()} for f in (whole, parts)
    ]
    assert hashes[0] == hashes[1]
    files = sorted(p.relative_to(whole) for pattern in ("*.extxyz", "*.csv", "*.dpsim") for p in whole.rglob(pattern))
    files = [f for f in files if f.name != "lcurve.csv"]  # holds wall times
    assert len(files) > 20
    for file in files:
        assert (parts / file).read_bytes() == (whole / file).read_bytes(), file
