"""LAMMPS in this process, for the LAMMPS engine: one system, in arrays ordered as the engine's.

LAMMPS wants a right-handed cell with a along x and b in the xy plane, so it sees the system rotated: with the cell's
rows H = L Q, L lower triangular and Q orthogonal, its coordinates are x Q^T. Units are `metal`.

Forces come from `pair_style dpsim` for a student, else from a callback (`fix external`) to an ASE calculator.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsim.calculators.lammps_pair import import_lammps, plugin
from dpsim.engines.base import Array, State
from dpsim.errors import SimulationError
from dpsim.units import BOLTZMANN_EV_PER_K, EV_PER_A3_IN_BAR

Snapshot = dict[str, NDArray[Any]]
SKIN_A = 1.0
_ORDER = np.array([[0, 3, 4], [3, 1, 5], [4, 5, 2]])  # of LAMMPS's xx yy zz xy xz yz in a symmetric 3 x 3


class Lammps:
    """A LAMMPS instance holding the atoms of a State; serial (lammps_ranks.py: with MPI).

    Args: state: positions, momenta and cell to begin with; triclinic: whether the cell may shear; snapshot: instead
    of positions, momenta and cell, exactly what `snapshot` returned of an instance with the same atoms; keep_order:
    never sort the atoms, so that results depend on nothing that was there before.
    """

    def __init__(self, state: State, triclinic: bool, snapshot: Snapshot | None = None, keep_order: bool = False):
        module = import_lammps()
        self._folder = tempfile.TemporaryDirectory(prefix="dpsim-lammps-")  # for what LAMMPS reads from files
        self.state, self.n = state, state.n_atoms
        self._whole, self._seen = True, state.positions  # whether LAMMPS's atoms can be read; their last positions
        self.lmp = module.lammps(cmdargs=["-screen", "none", "-log", "none", "-nocite"])
        if not self.lmp.has_style("pair", "dpsim"):  # dpsim is run from its source: no entry point says where it is
            self.command(f'plugin load "{plugin()}"')
        self.library = ctypes.CDLL(str(plugin()))  # finds LAMMPS's symbols in the library loaded above
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self.library.dpsim_fix_state.argtypes = [pointer, ctypes.c_char_p, pointer, size]
        self.library.dpsim_fix_state.restype = size
        self.library.dpsim_fix_restore.argtypes = [pointer, ctypes.c_char_p, pointer]
        self._global_vector = module.LMP_STYLE_GLOBAL, module.LMP_TYPE_VECTOR
        self.command("units metal")
        self._speed = float(np.sqrt(self.lmp.extract_global("mvv2e")))  # 1 A/ps in (eV/amu)^1/2, to LAMMPS
        self.command("atom_style atomic")
        self.command(f"atom_modify map array{' sort 0 0.0' if keep_order else ''}")
        self._create(snapshot or _first_snapshot(state, self._speed), triclinic)
        self.command("compute virial all pressure NULL virial")
        self.command("thermo_style custom step pe c_virial[1] c_virial[2] c_virial[3]")

    def close(self) -> None:
        """End this LAMMPS; the object is of no use afterwards."""
        self.lmp.close()
        self._folder.cleanup()

    def command(self, text: str) -> None:
        """One command of LAMMPS's input language. Raises SimulationError with LAMMPS's words."""
        try:
            self.lmp.command(text)
        except Exception as error:  # of no other type
            said = " ".join(str(error).partition("Last input line")[0].split())
            raise SimulationError(f"LAMMPS stopped at `{text.split()[0]}`: {said}") from error

    def _create(self, begin: Snapshot, triclinic: bool) -> None:
        """Box, atoms and masses; then positions and velocities exactly, because LAMMPS rounds what it is given."""
        state = self.state
        self.rotation = begin["rotation"]
        self._images: NDArray[np.int64] = begin["images"].copy()
        kinds, types = np.unique(np.stack([state.numbers, state.masses]), axis=1, return_inverse=True)
        self.numbers_of_types = kinds[0].astype(int)
        low, high, tilt = begin["low"], begin["high"], begin["tilt"]
        boundary = " ".join("p" if p else "s" for p in state.pbc)
        bounds = " ".join(f"{_text(a)} {_text(b)}" for a, b in zip(low, high, strict=True))
        sheared = triclinic or bool(tilt.any())
        shape = f"prism {bounds} {' '.join(map(_text, tilt))}" if sheared else f"block {bounds}"
        for line in (
            *([f"processors {' '.join(map(str, begin['ranks']))}"] if "ranks" in begin else []),
            f"boundary {boundary}",
            "box tilt large",
            f"region cell {shape} units box",
            f"create_box {kinds.shape[1]} cell",
            *(f"mass {k + 1} {_text(mass)}" for k, mass in enumerate(kinds[1])),
            f"neighbor {SKIN_A} bin",
            "neigh_modify every 1 delay 0 check yes",
        ):
            self.command(line)
        self._types = types.reshape(-1) + 1
        self._give_atoms(begin)

    def _give_atoms(self, begin: Snapshot) -> None:
        """The atoms of a snapshot, in its order."""
        order = begin["tags"]
        kind = self._types[order - 1]
        x = begin["x"].ravel().tolist()
        created = self.lmp.create_atoms(self.n, order.tolist(), kind.tolist(), x, shrinkexceed=True)
        if created != self.n:
            raise SimulationError(f"LAMMPS took {created} of {self.n} atoms; expected all. Check cell and positions.")
        where = np.argsort(order)[self._array("id") - 1]
        self._array("x")[:] = begin["x"][where]
        self._array("v")[:] = begin["v"][where]
        self._array("image")[:] = self._zero_image()

    # ---- forces ----------------------------------------------------------------------------------------------------

    def use_student(self, file: bytes, elements: list[str], threads: int) -> None:
        """`pair_style dpsim` with the bytes of a student's file; elements: symbol of each of `numbers_of_types`."""
        path = Path(self._folder.name, "student.dpsim")
        path.write_bytes(file)
        self.command(f'pair_style dpsim "{path}" threads {threads}')
        self.command(f"pair_coeff * * {' '.join(elements)}")

    def use_callback(self, evaluate: Callable[[int], tuple[float, Array, Array]]) -> None:
        """Forces from `evaluate(step)` -> energy eV, forces (n, 3) eV/A, virial (3, 3) eV, of the present positions.

        What it raises is kept in `raised` (LAMMPS's library swallows it) and raised by `run`.
        """
        self.command("pair_style zero 1.0 nocoeff")
        self.command("pair_coeff * *")
        self.command("fix model all external pf/callback 1 1")
        self.command("fix_modify model energy yes virial yes")

        def call(_: Any, step: int, n: int, tags: Any, x: Any, forces: Any) -> None:
            forces[:] = 0.0
            if self.raised is not None:
                return
            try:
                energy, found, virial = evaluate(step)
            except BaseException as error:
                self.raised = error
                self.lmp.lib.lammps_force_timeout(self.lmp.lmp)
                return
            forces[:] = (found @ self.rotation.T)[tags - 1]
            turned = self.rotation @ virial @ self.rotation.T
            self.lmp.fix_external_set_energy_global("model", energy)
            self.lmp.fix_external_set_virial_global("model", [float(turned[a, b]) for a, b in _PAIRS])

        self.lmp.set_fix_external_callback("model", call)

    raised: BaseException | None = None

    # ---- integration -----------------------------------------------------------------------------------------------

    def friction_file(self, per_ps: float) -> Path:
        """The file that fix gle reads its matrix from."""
        path = Path(self._folder.name, "friction.txt")
        path.write_text(f"{per_ps!r}\n")
        return path

    def run(self, n_steps: int, begin: bool) -> None:
        """n steps; `begin`: LAMMPS's setup first: atoms wrapped, lists built, forces of the present positions."""
        try:
            self.command(f"run {n_steps} pre {'yes' if begin else 'no'} post no")
        except SimulationError:
            self._whole = False
            raise
        if self.raised is not None:
            error, self.raised = self.raised, None
            raise error

    def temperature(self, kelvin: float) -> str:
        """A temperature for LAMMPS's commands, whose Boltzmann constant is older: k_B T is what must agree."""
        return _text(kelvin * BOLTZMANN_EV_PER_K / self.lmp.extract_global("boltz"))

    def pressure(self, bar: float) -> str:
        """A pressure for LAMMPS's commands, likewise."""
        return _text(bar / EV_PER_A3_IN_BAR * self.lmp.extract_global("nktv2p"))

    def has_fix(self, name: str) -> bool:
        """Whether there is a fix of this name."""
        return bool(self.lmp.has_id("fix", name))

    def coupled_energy(self) -> float:
        """Energy that thermostats and barostats have taken since they were made, eV."""
        return float(self.lmp.get_thermo("ecouple"))

    def fix_value(self, name: str, index: int) -> float:
        """An element of the vector of a fix."""
        return float(self.lmp.extract_fix(name, *self._global_vector, index))

    def fix_state(self, name: str) -> NDArray[np.uint8]:
        """The state of a fix, as bytes."""
        size = self.library.dpsim_fix_state(self.lmp.lmp, name.encode(), None, 0)
        out = np.zeros(size, dtype=np.uint8)
        self.library.dpsim_fix_state(self.lmp.lmp, name.encode(), out.ctypes.data, size)
        return out

    def restore_fix(self, name: str, state: NDArray[np.uint8]) -> None:
        """Give a fix the state that `fix_state` returned."""
        self.library.dpsim_fix_restore(self.lmp.lmp, name.encode(), np.ascontiguousarray(state).ctypes.data)

    # ---- the present -----------------------------------------------------------------------------------------------

    def positions(self) -> Array:
        """(n, 3) A, unwrapped, in the frame of the state; after a run that failed, those asked for before it."""
        if self._whole:
            images = self._images + self._decoded_images()
            self._seen = (self._by_tag("x") + images @ self._box()) @ self.rotation
        return self._seen

    def momenta(self) -> Array:
        """(n, 3) amu A per ASE time, such that p^2/2m is the kinetic energy that LAMMPS counts."""
        return self.state.masses[:, None] * (self._by_tag("v") * self._speed) @ self.rotation

    def forces(self) -> Array:
        """(n, 3) eV/A."""
        return self._by_tag("f") @ self.rotation

    def cell(self) -> Array:
        """(3, 3) A; in open directions what the state had."""
        cell = self._box() @ self.rotation
        return np.where(self.state.pbc[:, None], cell, self.state.cell)

    def potential_energy(self) -> float:
        """eV, after a run."""
        return float(self.lmp.get_thermo("pe"))

    def virial(self) -> Array:
        """(3, 3) eV, after a run."""
        pressure = self.lmp.extract_compute("virial", *self._global_vector)
        volume = abs(float(np.linalg.det(self._box())))
        found = np.array([pressure[k] for k in range(6)]) * volume / self.lmp.extract_global("nktv2p")
        return self.rotation.T @ found[_ORDER] @ self.rotation

    def snapshot(self) -> Snapshot:
        """All that positions and velocities will depend on from the next setup on, to the last bit."""
        # LAMMPS counts crossings of the cell in 10 bits: they are moved to where they cannot overflow
        self._images += self._decoded_images()
        self._array("image")[:] = self._zero_image()
        low, high, xy, yz, xz, *_ = self.lmp.extract_box()
        return {
            **self._atoms(),
            "images": self._images.copy(),
            "low": np.array(low),
            "high": np.array(high),
            "tilt": np.array([xy, xz, yz]),
            "rotation": self.rotation,
        }

    def _atoms(self) -> Snapshot:
        """Numbers, positions and velocities of the atoms, in LAMMPS's order."""
        return {"tags": self._array("id").copy(), "x": self._array("x").copy(), "v": self._array("v").copy()}

    def place(self, positions: Array) -> None:
        """Put the atoms at (n, 3) A, in the frame of the state."""
        x, self._images = self._fold(positions)
        self._array("x")[self._order()] = x
        self._array("image")[:] = self._zero_image()

    def _fold(self, positions: Array) -> tuple[Array, NDArray[np.int64]]:
        """(n, 3) A in the frame of the state, as LAMMPS wants them: in its own, in the box; and how far they were."""
        return _folded(positions @ self.rotation.T, self._box(), np.array(self.lmp.extract_box()[0]), self.state.pbc)

    def _box(self) -> Array:
        """LAMMPS's lattice vectors, rows (3, 3)."""
        low, high, xy, yz, xz, *_ = self.lmp.extract_box()
        x, y, z = (b - a for a, b in zip(low, high, strict=True))
        return np.array([[x, 0.0, 0.0], [xy, y, 0.0], [xz, yz, z]])

    def _array(self, name: str) -> NDArray[Any]:
        """LAMMPS's own memory of a property of the atoms, in its order. Raises SimulationError after a failed run."""
        if not self._whole:
            raise SimulationError("LAMMPS's run failed, and it may have lost atoms: they cannot be read.")
        array: NDArray[Any] = self.lmp.numpy.extract_atom(name, nelem=self.lmp.extract_setting("nlocal"))
        return array

    def _order(self) -> NDArray[np.int64]:
        """Where LAMMPS keeps each atom."""
        where = np.empty(self.n, dtype=np.int64)
        where[self._array("id") - 1] = np.arange(self.n)
        return where

    def _by_tag(self, name: str) -> Array:
        """A property of the atoms, in the order of the state."""
        return np.asarray(self._array(name))[self._order()]

    def _zero_image(self) -> int:
        return int(self.lmp.encode_image_flags(0, 0, 0))

    def _decoded_images(self) -> NDArray[np.int64]:
        """(n, 3): how many cells each atom has left behind since the images were last moved."""
        packed = self._by_tag("image").astype(np.int64)
        bits = 10 if self._array("image").dtype.itemsize == 4 else 21
        mask, half = (1 << bits) - 1, 1 << (bits - 1)
        return np.stack([(packed & mask) - half, ((packed >> bits) & mask) - half, (packed >> 2 * bits) - half], axis=1)


_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))  # LAMMPS's order of a symmetric tensor


def _first_snapshot(state: State, speed: float) -> Snapshot:
    """The snapshot of a State as it comes: tags in order."""
    lower, rotation = _lower_triangular(_completed(state.cell, state.pbc))
    lower = np.where(np.outer(state.pbc, state.pbc) | np.eye(3, dtype=bool), lower, 0.0)  # no tilt of open directions
    x, images = _folded(state.positions @ rotation.T, lower, np.zeros(3), state.pbc)
    low, high = np.zeros(3), np.diag(lower).copy()
    for k in np.flatnonzero(~state.pbc):  # LAMMPS shrinks open directions around the atoms
        low[k], high[k] = x[:, k].min() - 1.0, x[:, k].max() + 1.0
    return {
        "tags": np.arange(1, state.n_atoms + 1, dtype=np.int32),
        "x": x,
        "v": state.momenta / state.masses[:, None] / speed @ rotation.T,
        "images": images,
        "low": low,
        "high": high,
        "tilt": np.array([lower[1, 0], lower[2, 0], lower[2, 1]]),
        "rotation": rotation,
    }


def _folded(x: Array, box: Array, low: Array, pbc: NDArray[np.bool_]) -> tuple[Array, NDArray[np.int64]]:
    """Positions in the box, and how many cells (n, 3) they were away: LAMMPS wraps by one and loses the others."""
    away = np.where(pbc, np.floor((x - low) @ np.linalg.inv(box)), 0.0)
    return x - away @ box, away.astype(np.int64)


def _completed(cell: Array, pbc: NDArray[np.bool_]) -> Array:
    """The cell with vectors of open directions replaced by unit vectors orthogonal to all others."""
    full = np.array(cell, dtype=np.float64)
    known = [k for k in range(3) if pbc[k]]
    for k in np.flatnonzero(~pbc):
        others = full[known]
        basis = np.linalg.svd(others)[2] if known else np.eye(3)
        candidates = basis[len(known) :]
        best = candidates[np.argmax(np.abs(candidates[:, k]))]
        full[k] = best * (1.0 if best[k] >= 0 else -1.0)
        known.append(int(k))
    return full


def _lower_triangular(cell: Array) -> tuple[Array, Array]:
    """L and Q of cell = L Q, L lower triangular with a positive diagonal; where cell is such, Q is exactly 1."""
    if not np.triu(cell, 1).any() and (np.diag(cell) > 0).all():
        return cell, np.eye(3)
    q, r = np.linalg.qr(cell.T)
    sign = np.where(np.diag(r) < 0, -1.0, 1.0)
    return np.tril(r.T * sign), (q * sign).T


def _text(value: float) -> str:
    """The shortest text that reads back as the same number."""
    return repr(float(value))
