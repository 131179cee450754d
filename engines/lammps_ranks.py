"""LAMMPS in several processes, its MPI ranks, each with a part of the box: `Lammps`, at the other end of a socket.

    mpiexec -n RANKS python -m dpsim.engines.lammps_ranks SOCKET

Rank 0 is told what to do, one method of `Lammps` after another; all ranks do it, and rank 0 answers. With dpsim they
end, however it ends: the socket closes.

Which rank holds which atoms, in which order, is a matter of the past. So every segment begins by giving the atoms out
anew, in the order of their numbers: what follows depends on the snapshot alone, and a continued run repeats it bit by
bit.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np

from dpsim.calculators.lammps_pair import mpi_launcher
from dpsim.engines.base import Array, State
from dpsim.engines.lammps_library import Lammps, Snapshot
from dpsim.errors import ConfigError, MissingDependencyError, SimulationError

_SAID = "dpsim.engines.lammps_ranks: "  # what a rank that has to end all says last
_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 20.0


def open_lammps(
    ranks: int, state: State, triclinic: bool, snapshot: Snapshot | None = None, keep_order: bool = False
) -> Lammps:
    """A `Lammps` with so many ranks: one is in this process, several are in others."""
    if ranks == 1:
        return Lammps(state, triclinic, snapshot, keep_order)
    return cast(Lammps, _OnRanks(ranks, state, triclinic, snapshot, keep_order))


def require_mpi() -> None:
    """Raise MissingDependencyError or ConfigError where LAMMPS cannot have several ranks."""
    if find_spec("mpi4py") is None:
        raise MissingDependencyError("mpi4py", "lammps", "LAMMPS with several ranks")
    if mpi_launcher() is None:
        raise ConfigError(
            "`ranks` is more than 1, but there is no `mpiexec` here; expected that of the MPI that LAMMPS uses. "
            "Install it with: pip install 'dpsim[lammps]'"
        )


class _OnRanks:
    """Every method of `Lammps`, done by all ranks."""

    def __init__(self, ranks: int, *arguments: Any):
        self._folder = tempfile.TemporaryDirectory(prefix="dpsim-ranks-")
        self._errors = Path(self._folder.name, "stderr")
        self._process, self._connection = self._start(ranks)
        self._seen: dict[str, Any] = {}
        try:
            size = self._answered()
            if size != ranks:
                raise ConfigError(
                    f"`mpiexec -n {ranks}` gives {size} rank(s); expected {ranks}. It is of another MPI than LAMMPS "
                    "and mpi4py: put the right one first in PATH."
                )
            self.numbers_of_types = self._ask("open", *arguments)
            self._ask("positions"), self._ask("cell")
        except BaseException:
            self.close()
            raise

    def _start(self, ranks: int) -> tuple[subprocess.Popen[bytes], Connection]:
        """The processes, and the line to the first of them. In a session of their own: Ctrl-C is for dpsim."""
        address = str(Path(self._folder.name, "socket"))
        command = [str(mpi_launcher()), "-n", str(ranks), sys.executable, "-m", __name__, address]
        with socket.socket(socket.AF_UNIX) as listener, self._errors.open("wb") as errors:
            listener.bind(address)
            listener.listen(1)
            listener.settimeout(_POLL_SECONDS)
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True
            )
            while True:
                try:
                    return process, Connection(listener.accept()[0].detach())
                except TimeoutError:
                    if process.poll() is not None:
                        raise SimulationError(f"`{command[0]}` ended at once: {self._last_words()}") from None

    def __getattr__(self, name: str) -> Any:
        return partial(self._ask, name)

    def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        with contextlib.suppress(OSError):  # where they have ended, which `_answered` finds too
            self._connection.send((method, arguments, named))
        if self._process.poll() is not None and method in self._seen:  # as after any run that failed: of before it
            return self._seen[method]
        answer = self._answered()
        if method in ("positions", "cell"):
            self._seen[method] = answer
        return answer

    def _answered(self) -> Any:
        """What rank 0 says. Raises SimulationError: its error, or why the ranks have ended."""
        try:
            error, answer = self._connection.recv()
        except (EOFError, OSError) as closed:
            raise SimulationError(self._last_words()) from closed
        if error:
            raise SimulationError(error)
        return answer

    def _last_words(self) -> str:
        """Why the ranks have ended."""
        self._wait()
        text = self._errors.read_text(errors="replace").strip()
        said = [line.partition(_SAID)[2] for line in text.splitlines() if _SAID in line]
        return said[0] if said else f"LAMMPS's ranks ended with code {self._process.returncode}: {text[-500:]}"

    def close(self) -> None:
        """End the ranks."""
        self._connection.close()
        self._wait()
        self._folder.cleanup()

    def _wait(self) -> None:
        """Until mpiexec has ended, and with it what it has started."""
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# ---- in the ranks ----------------------------------------------------------------------------------------------------


class _RankOfLammps(Lammps):
    """One of several: its arrays hold some of the atoms, what its methods return is of all."""

    def __init__(self, world: Any, *arguments: Any):
        self._world = world
        super().__init__(*arguments)
        if self.lmp.extract_setting("world_size") != world.size:
            raise SimulationError(
                "this LAMMPS is built without MPI, or with another; expected that of mpi4py. Leave `ranks` out, or "
                "install: pip install 'dpsim[lammps]'"
            )

    def run(self, n_steps: int, begin: bool) -> None:
        """As documented in Lammps; at the beginning of a segment the atoms are given out anew."""
        if begin:
            snapshot = self.snapshot()
            self.command("delete_atoms group all compress no")
            self._give_atoms(snapshot)
        super().run(n_steps, begin)

    def place(self, positions: Array) -> None:
        """As documented in Lammps."""
        x, self._images = self._fold(positions)
        self._array("x")[:] = x[self._array("id") - 1]
        self._array("image")[:] = self._zero_image()

    def _atoms(self) -> Snapshot:
        tags = np.arange(1, self.n + 1, dtype=np.int32)
        ranks = np.array(self.lmp.extract_global("procgrid"))  # along a, b, c: kept while the cell changes its shape
        return {"tags": tags, "x": self._by_tag("x"), "v": self._by_tag("v"), "ranks": ranks}

    def _by_tag(self, name: str) -> Array:
        parts = self._world.allgather((np.array(self._array("id")), np.array(self._array(name))))
        tags, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        ordered = np.empty_like(values)
        ordered[tags - 1] = values
        return ordered


def serve(address: str) -> None:
    """What a rank does until rank 0 finds the socket closed."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    connection = None
    if world.rank == 0:
        line = socket.socket(socket.AF_UNIX)
        line.connect(address)
        connection = Connection(line.detach())
        connection.send(("", world.size))
    lammps: _RankOfLammps | None = None
    while (request := world.bcast(_received(connection))) is not None:
        method, arguments, named = request
        answer, error = None, ""
        try:
            if method == "open":
                lammps = _RankOfLammps(world, *arguments)
                answer = lammps.numbers_of_types
            else:
                answer = getattr(lammps, method)(*arguments, **named)
        except SimulationError as problem:
            error = str(problem)
            if type(problem.__cause__).__name__ == "MPIAbortException":  # of this rank alone: the others wait for it
                print(f"{_SAID}{error}", file=sys.stderr, flush=True)
                world.Abort(1)
        if connection is not None:
            connection.send((error, answer))
    if lammps is not None:
        lammps.close()


def _received(connection: Connection | None) -> Any:
    """What rank 0 is told; None at the end, and on other ranks."""
    try:
        return None if connection is None else connection.recv()
    except (EOFError, OSError):
        return None


if __name__ == "__main__":
    try:
        serve(sys.argv[1])
    except BaseException:
        import traceback

        from mpi4py import MPI

        traceback.print_exc()
        MPI.COMM_WORLD.Abort(1)
