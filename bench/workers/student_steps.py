"""Energy, forces and virial of water, call by call, by one program: run by bench/student.py.

Programs (`program` of the specification):
  dpsim           a student by dpsim.kernels.student, which keeps its own neighbour list with a skin
  deepmd-library  DeePMD-kit's C library, as LAMMPS uses it, with ghost atoms and a neighbour list made here beforehand:
                  neither making it nor folding the ghosts' forces onto their owners is timed
  deepmd-python   DeePMD-kit's DeepPot.eval, which makes a neighbour list in every call

Messages: `steps` times calls between which the atoms move too little to need another list, `build` (dpsim) calls in
each of which the list is built anew, `dynamics` (dpsim) says how often that happens, `evaluate` writes a file of
energies and forces. Memory is what the calls add to a process that has evaluated 192 atoms before.
"""

import ctypes
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
from protocol import hear, memory_MiB, say, versions

MOVE = np.array([[0.01, -0.005, 0.002], [-0.01, 0.005, -0.002]])  # A, in turns: far less than half of the skin
MASSES = np.array([15.999, 1.008])  # amu, of the types O and H
VELOCITY_UNIT = 0.09822694788  # sqrt(eV/amu) in A/fs
BOLTZMANN = 8.617333262e-5  # eV/K


class Dpsim:
    """A student by dpsim's native kernels, forces and virial included."""

    packages = ("torch", "numpy")

    def __init__(self, spec):
        from dpsim.kernels.student import NativeStudent, Workspace

        self.student, self.skin = NativeStudent(spec["model"], "float32"), spec["skin"]
        self._workspace = lambda: Workspace(spec["threads"])

    def prepare(self, types, positions, cell):
        self.types, self.cell, self.workspace = types, cell, self._workspace()

    def __call__(self, positions):
        pbc = (True, True, True)
        found = self.student.compute(self.workspace, self.types, positions, self.cell, pbc, self.skin, virial=True)
        return found.energy, found.forces

    def n_rebuilds(self):
        return self.workspace.n_rebuilds


class DeepmdPython:
    """DeepPot.eval: the interface of users' scripts and of the ASE calculator."""

    packages = ("deepmd-kit", "torch", "tensorflow-cpu", "numpy")

    def __init__(self, spec):
        from deepmd.infer import DeepPot

        self.potential = DeepPot(spec["model"])

    def prepare(self, types, positions, cell):
        self.types, self.cell = types, cell.reshape(1, 9)

    def __call__(self, positions):
        energy, forces, _virial = self.potential.eval(positions.reshape(1, -1), self.cell, self.types)
        return float(energy[0, 0]), forces[0]


class DeepmdLibrary:
    """DP_DeepPotComputeNList of libdeepmd_c, the call behind LAMMPS' pair style, on a list made beforehand."""

    packages = DeepmdPython.packages

    def __init__(self, spec):
        mpi = Path(sys.prefix) / "lib/libmpi.so.12"  # of the package mpich; its PyTorch operators want one
        if mpi.exists():
            ctypes.CDLL(str(mpi), mode=ctypes.RTLD_GLOBAL)
        import deepmd.lmp  # noqa: F401  loads TensorFlow's and PyTorch's libraries
        from deepmd.env import SHARED_LIB_DIR

        self.lib = ctypes.CDLL(str(Path(SHARED_LIB_DIR) / "libdeepmd_c.so"), mode=ctypes.RTLD_GLOBAL)
        self.lib.DP_NewDeepPot.restype = self.lib.DP_NewNlist.restype = ctypes.c_void_p
        self.lib.DP_DeepPotCheckOK.restype = ctypes.c_char_p
        self.potential = ctypes.c_void_p(self.lib.DP_NewDeepPot(spec["model"].encode()))
        self._check()
        self.rcut, self.skin = spec["rcut"], spec["skin"]

    def _check(self):
        problem = self.lib.DP_DeepPotCheckOK(self.potential)
        if problem:
            raise RuntimeError(problem.decode())

    def prepare(self, types, positions, cell):
        reach = self.rcut + self.skin
        self.owner, self.offset = images(positions, cell, reach)
        every = positions[self.owner] + self.offset
        self.n = len(positions)
        counts, self.neighbors = full_list(every, self.n, reach)
        self.types = np.ascontiguousarray(types[self.owner], dtype=np.int32)
        self.cell = np.ascontiguousarray(cell)
        self.ids, self.counts = np.arange(self.n, dtype=np.int32), counts.astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self.pointers = (self.neighbors.ctypes.data + 4 * starts).astype(np.uint64)
        rows = ctypes.c_void_p(self.pointers.ctypes.data)
        self.list = ctypes.c_void_p(self.lib.DP_NewNlist(self.n, address(self.ids), address(self.counts), rows))
        self.ago = 0
        self.energy, self.forces, self.virial = np.zeros(1), np.zeros_like(every), np.zeros(9)

    def move(self, positions):
        """Ghosts follow their owners; LAMMPS does this in its own time, so here it is not timed."""
        self.positions = positions[self.owner] + self.offset

    def __call__(self, positions):
        self.lib.DP_DeepPotComputeNList(
            self.potential, len(self.types), address(self.positions), address(self.types), address(self.cell),
            len(self.types) - self.n, self.list, self.ago, address(self.energy), address(self.forces),
            address(self.virial), None, None,
        )  # fmt: skip
        self._check()
        self.ago += 1
        return float(self.energy[0]), self.forces

    def fold(self, forces):
        """The forces on the atoms of the cell, with those on their images."""
        return np.stack([np.bincount(self.owner, forces[:, c], minlength=self.n) for c in range(3)], axis=1)


def address(array):
    return ctypes.c_void_p(array.ctypes.data)


def images(positions, cell, reach):
    """The atoms of an orthorhombic cell, then their images within `reach` of it: owners and offsets (A)."""
    lengths = np.diag(cell)
    n = len(positions)
    owner, offset = [np.arange(n)], [np.zeros((n, 3))]
    for shift in itertools.product(*(range(-k, k + 1) for k in np.ceil(reach / lengths).astype(int))):
        if any(shift):
            moved = positions + np.array(shift) * lengths
            near = np.flatnonzero(((moved > -reach) & (moved < lengths + reach)).all(axis=1))
            owner.append(near)
            offset.append(np.broadcast_to(np.array(shift) * lengths, (len(near), 3)))
    return np.concatenate(owner), np.concatenate(offset)


def full_list(positions, n, reach):
    """Numbers of neighbours of the first n atoms within `reach`, and the neighbours, atom after atom, int32."""
    from scipy.spatial import cKDTree

    pairs = cKDTree(positions).query_pairs(reach, output_type="ndarray").astype(np.int32)
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    pairs = pairs[pairs[:, 0] < n]
    order = np.argsort(pairs[:, 0], kind="stable")
    return np.bincount(pairs[:, 0], minlength=n), np.ascontiguousarray(pairs[order, 1])


PROGRAMS = {"dpsim": Dpsim, "deepmd-python": DeepmdPython, "deepmd-library": DeepmdLibrary}


class Timed:
    """A program on one structure."""

    def __init__(self, program, structure):
        self.program, self.positions = program, structure["positions"]
        self.types, self.cell = structure["types"], structure["cell"]
        self.turn = 0
        program.prepare(self.types, self.positions, self.cell)

    def call(self, positions):
        """One call: energy, forces of the atoms (before folding), ms."""
        if hasattr(self.program, "move"):
            self.program.move(positions)
        begin = time.perf_counter()
        energy, forces = self.program(positions)
        return energy, forces, 1000 * (time.perf_counter() - begin)

    def steps(self, n):
        """ms of each of n calls on one list."""
        ms = []
        for _step in range(n):
            self.turn += 1
            ms.append(self.call(self.positions + MOVE[self.turn % 2])[2])
        return ms

    def build(self, n):
        """ms of each of n calls that build a list, because the skin is a new one."""
        ms = []
        for _step in range(n):
            self.program.skin *= 1 + 1e-9
            before = self.program.n_rebuilds()
            ms.append(self.call(self.positions)[2])
            if self.program.n_rebuilds() != before + 1:
                raise RuntimeError("no list was built where one had to be")
        return ms

    def dynamics(self, n, timestep, temperature):
        """Velocity Verlet at constant energy, fs and K: steps per list."""
        masses = MASSES[self.types][:, None]
        spread = np.sqrt(BOLTZMANN * temperature / masses) * VELOCITY_UNIT
        v = np.random.default_rng(0).normal(size=self.positions.shape) * spread
        x, (_energy, forces, _ms) = self.positions.copy(), self.call(self.positions)
        kick = 0.5 * timestep * VELOCITY_UNIT**2 / masses
        before = self.program.n_rebuilds()
        for _step in range(n):
            v += kick * forces
            x += timestep * v
            forces = self.call(x)[1]
            v += kick * forces
        return n / max(1, self.program.n_rebuilds() - before)

    def evaluate(self):
        """Energy and forces (n, 3)."""
        energy, forces, _ms = self.call(self.positions)
        return energy, self.program.fold(forces) if hasattr(self.program, "fold") else forces


def reset_peak():
    """Let the peak of resident memory start anew, and say where: MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_MiB()["VmRSS"]


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    program = PROGRAMS[spec["program"]](spec)
    Timed(program, np.load(spec["small"])).steps(3)  # compiles what has to be, starts threads
    timed = Timed(program, np.load(spec["structure"]))
    start = reset_peak()
    first = timed.steps(2)[-1]
    say(
        {
            "versions": versions(*program.packages),
            "n_atoms": len(timed.types),
            "first_ms": first,
        }
    )
    while (message := hear())["do"] != "quit":
        match message["do"]:
            case "steps":
                say({"ms": timed.steps(message["steps"])})
            case "build":
                say({"ms": timed.build(message["steps"])})
            case "dynamics":
                say({"steps_per_list": timed.dynamics(message["steps"], message["timestep"], message["temperature"])})
            case "evaluate":
                frames = [Timed(program, np.load(file)).evaluate() for file in message["files"]]
                np.savez(message["output"], **{f"energy_{k}": e for k, (e, _f) in enumerate(frames)},
                         **{f"forces_{k}": f for k, (_e, f) in enumerate(frames)})  # fmt: skip
                timed = Timed(program, np.load(spec["structure"]))
                say({"done": True})
    peak = memory_MiB()["VmHWM"]
    say({"bytes_per_atom": (peak - start) * 2**20 / len(timed.types)})


if __name__ == "__main__":
    main()
