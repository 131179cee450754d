"""SIGKILL at random moments: what every engine must survive."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from diary import DIARY
from dpsim.engines.base import Engine
from dpsim.engines.output import RESTART, THERMO, TRAJECTORY, load_checkpoint

_SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from conformance import STAGES
from diary import Diary
from dataclasses import replace
from pair_calculators import PairCalculator, argon
from {module} import {engine}
from dpsim.engines.ase_engine import state_from_atoms
from dpsim.engines.base import RunControl
stage = replace(STAGES[{name!r}], n_steps={steps}, trajectory_every=3)
{engine}().run_stage(
    state_from_atoms(argon()), PairCalculator(), stage, Path({directory!r}),
    RunControl(seed=7, name="killed", checkpoint_seconds={every}, observers=(Diary(every=2),)),
)
"""


def assert_kills_change_nothing(engine: Engine, name: str, folder: Path, steps: int = 500, kills: int = 3) -> None:
    """A process killed again and again ends with files equal, byte by byte, to those of one left alone."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]

    def start(directory: Path, every: float) -> subprocess.Popen[bytes]:
        script = _SCRIPT.format(
            paths=[str(Path(__file__).parent), str(root)],
            module=type(engine).__module__,
            engine=type(engine).__name__,
            name=name,
            steps=steps,
            directory=str(directory),
            every=every,
        )
        return subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE)

    assert start(folder / "whole", 1e9).wait() == 0
    moments = random.Random(0)
    killed = 0
    while killed < kills:
        process = start(folder / "parts", 0.05)
        step_before = _step(folder / "parts")
        while process.poll() is None and _step(folder / "parts") == step_before:
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        killed += 1
    final = start(folder / "parts", 0.05)
    _, message = final.communicate()
    assert final.returncode == 0, message.decode()
    assert killed >= max(1, kills - 1)
    for file in (THERMO, TRAJECTORY, DIARY):
        assert (folder / "parts" / file).read_bytes() == (folder / "whole" / file).read_bytes(), file
    parts, whole = (load_checkpoint(folder / d / RESTART) for d in ("parts", "whole"))
    assert parts is not None
    assert whole is not None
    np.testing.assert_array_equal(parts.state.momenta, whole.state.momenta)
    assert parts.generator == whole.generator


def _step(directory: Path) -> int:
    try:
        saved = load_checkpoint(directory / RESTART)
    except Exception:
        return -1
    return -1 if saved is None else saved.step
