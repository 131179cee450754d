"""A Deep Potential for i-PI: `dpsim ipi-driver` speaks its socket protocol, `ipi_pes.py` runs inside i-PI.

i-PI works in atomic units, keeps lattice vectors as columns, and calls virial what dpsim does: -dE/d(strain), without
kinetic part. It asks, this process answers; headers are 12 bytes, numbers little-endian:

    i-PI sends                                          answered by
    STATUS                                              NEEDINIT, READY, or HAVEDATA once forces are there
    INIT      bead, length, text                        - (batch_size:B in the text: B beads in every message below)
    POSDATA   B (cell, inverse cell), n, B positions    -
    GETFORCE                                            FORCEREADY, B energies, n, B forces, B virials, B extras
    EXIT                                                - (the end)

with n sent before the cells where B > 1. Source: V. Kapil et al., Comput. Phys. Commun. 236, 214 (2019); the driver
`i-pi-py_driver` of i-PI 3.3.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpsim.calculators.evaluator import Memory, StudentEvaluator
from dpsim.calculators.members import models_name, open_calculator
from dpsim.calculators.selection import Precision, types_of
from dpsim.calculators.student import StudentCalculator
from dpsim.data.frame import Frame, Prediction
from dpsim.errors import ConfigError, DataError, DpsimError
from dpsim.units import factor

if TYPE_CHECKING:
    from ase import Atoms

    from dpsim.calculators.members import Models

Array = NDArray[np.float64]
Answer = tuple[float, Array, Array]  # energy, forces (n, 3), virial (3, 3), atomic units

BOHR = float(factor("bohr", "A"))
HARTREE = float(factor("hartree", "eV"))
UNIX_PREFIX = "/tmp/ipi_"  # where i-PI puts its sockets
PES_PATH = Path(__file__).with_name("ipi_pes.py")

_HEADER = 12  # bytes
_SKIN = 1.0  # A; as DPCalculator
_RETRY_SECONDS = 0.5


class ProtocolError(DpsimError, RuntimeError):
    """The server does not speak i-PI's protocol, or another version of it."""


class ServerLost(Exception):
    """The connection ended without EXIT."""


class BeadPotential:
    """Energies, forces and virials of several copies (beads) of the atoms of a template, in atomic units.

    Args:
        template: the atoms in i-PI's order: their elements and periodic directions count, their positions do not.
        model: name of a bundled model, path of a .dpsim file, or a model or student; of several, a committee, the mean.
        precision: "float32" or "float64"; None keeps the model's own.
        device: "cpu", "cuda", ...

    Raises: ElementError for elements that the model does not know.
    """

    def __init__(
        self,
        template: Atoms,
        model: Models = "water-pbe0ts",
        precision: Precision | None = None,
        device: str = "cpu",
    ):
        self._calculator = open_calculator(model, precision, device, who="i-PI")
        self.n_atoms = len(template)
        self._types = types_of(template.get_chemical_symbols(), self._calculator.type_map, models_name(model))
        self._pbc = np.array(template.pbc, dtype=bool)
        self._evaluators: list[StudentEvaluator] = []  # one per bead: each has a neighbour list

    def compute(self, cells: Sequence[Array], positions: Sequence[Array]) -> list[Answer]:
        """One answer for each cell (3, 3), vectors as columns, and positions (n_atoms, 3); bohr in, hartree out."""
        for x in positions:
            if np.shape(x) != (self.n_atoms, 3):
                raise DataError(
                    f"i-PI sent positions of shape {np.shape(x)}; expected {(self.n_atoms, 3)}, the atoms of the "
                    "template. Give a structure with the atoms of i-PI's input, in its order."
                )
        frames = [self._frame(h, x) for h, x in zip(cells, positions, strict=True)]
        if isinstance(self._calculator, StudentCalculator):
            found = [
                e.evaluate(f.types, f.positions, f.cell, f.pbc)
                for e, f in zip(self._evaluators_of(len(frames)), frames, strict=False)
            ]
        else:
            found = list(self._calculator.compute_frames(frames))
        return [_in_atomic_units(p) for p in found]

    def memory(self) -> Memory:
        """As documented in engines.base.Remembers: that of each bead's neighbour list, if they have some."""
        return {f"{k}.{name}": v for k, e in enumerate(self._evaluators) for name, v in e.memory().items()}

    def recall(self, memory: Memory) -> None:
        """As documented in engines.base.Remembers."""
        n_beads = 1 + max((int(name.partition(".")[0]) for name in memory), default=-1)
        self._evaluators_of(n_beads)
        for k, evaluator in enumerate(self._evaluators):
            own = f"{k}."
            evaluator.recall({name.removeprefix(own): v for name, v in memory.items() if name.startswith(own)})

    def _evaluators_of(self, n_beads: int) -> list[StudentEvaluator]:
        """A student's, at least so many."""
        while isinstance(self._calculator, StudentCalculator) and len(self._evaluators) < n_beads:
            self._evaluators.append(StudentEvaluator(copy(self._calculator), _SKIN))  # they share its tables
        return self._evaluators

    def _frame(self, h: Array, x: Array) -> Frame:
        cell = np.ascontiguousarray(np.reshape(h, (3, 3)).T) * BOHR if self._pbc.any() else np.zeros((3, 3))
        return Frame(np.asarray(x, dtype=np.float64) * BOHR, self._types, self._calculator.type_map, cell, self._pbc)


def _in_atomic_units(prediction: Prediction) -> Answer:
    assert prediction.forces is not None
    assert prediction.virial is not None
    forces = prediction.forces.cpu().numpy().astype(np.float64) * (BOHR / HARTREE)
    virial = prediction.virial[0].cpu().numpy().astype(np.float64).T / HARTREE
    return float(prediction.energy[0]) / HARTREE, forces, np.ascontiguousarray(virial)


@dataclass(frozen=True)
class Address:
    """Of a server: the path of a Unix socket, or host and port."""

    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def unix(cls, name: str) -> Address:
        """i-PI's `<address>` of a unix ffsocket; or a path."""
        return cls(path=name if "/" in name else UNIX_PREFIX + name)

    @classmethod
    def inet(cls, text: str) -> Address:
        """HOST:PORT. Raises ConfigError."""
        host, _, port = text.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 65536):
            raise ConfigError(f'`inet` is "{text}"; expected HOST:PORT. Write for example "localhost:31415".')
        return cls(host=host.strip("[]"), port=int(port))

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def connect(self) -> socket.socket:
        """A connection. Raises OSError."""
        if not self.path:
            connection = socket.create_connection((self.host, self.port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # messages are short
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # notice a host that is gone
            return connection
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(self.path)
        except OSError:
            connection.close()
            raise
        return connection


class Session:
    """The conversation over one connection: `serve` answers until the server says EXIT.

    n_answers: structures evaluated so far.
    """

    def __init__(self, connection: socket.socket, potential: BeadPotential):
        self._connection, self._potential = connection, potential
        self._initialised = False
        self._batch = 1
        self._answers: list[Answer] = []
        self.n_answers = 0

    def serve(self) -> None:
        """Answer until EXIT. Raises ServerLost; ProtocolError; whatever evaluating a structure raises."""
        answers = {"STATUS": self._status, "INIT": self._init, "POSDATA": self._positions, "GETFORCE": self._forces}
        try:
            while (header := self._receive(_HEADER).decode("ascii", "replace").strip()) != "EXIT":
                if header not in answers:
                    raise ProtocolError(
                        f"the server sent {header!r}; expected one of {[*answers, 'EXIT']}. Is it an ffsocket of i-PI, "
                        "without shared memory?"
                    )
                answers[header]()
        except OSError as error:
            raise ServerLost(str(error)) from error

    def _status(self) -> None:
        self._send_header("NEEDINIT" if not self._initialised else "HAVEDATA" if self._answers else "READY")

    def _init(self) -> None:
        """Which bead this is for does not matter; how many are sent at a time does."""
        _, length = self._integers(2)
        text = self._receive(length).decode("utf-8", "replace")
        settings = dict(part.partition(":")[::2] for part in text.replace(" ", "").split(","))
        self._batch = int(settings.get("batch_size", "1"))
        self._initialised = True

    def _positions(self) -> None:
        n_atoms = self._integers(1)[0] if self._batch > 1 else None
        cells = self._floats(18 * self._batch).reshape(self._batch, 2, 3, 3)[:, 0]
        if n_atoms is None:
            n_atoms = self._integers(1)[0]
        positions = self._floats(3 * n_atoms * self._batch).reshape(self._batch, n_atoms, 3)
        self._answers = self._potential.compute(list(cells), list(positions))
        self.n_answers += self._batch

    def _forces(self) -> None:
        if not self._answers:
            raise ProtocolError("the server sent GETFORCE before any positions; expected POSDATA first. Restart it.")
        energies, forces, virials = zip(*self._answers, strict=True)
        self._send_header("FORCEREADY")
        self._connection.sendall(
            np.array(energies).tobytes()
            + struct.pack("<i", self._potential.n_atoms)
            + np.array(forces).tobytes()
            + np.array(virials).tobytes()
            + struct.pack("<i", 0) * len(energies)  # no extras
        )
        self._answers = []

    def _send_header(self, text: str) -> None:
        self._connection.sendall(text.ljust(_HEADER).encode())

    def _integers(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}i", self._receive(4 * count))

    def _floats(self, count: int) -> Array:
        return np.frombuffer(self._receive(8 * count), dtype="<f8").copy()

    def _receive(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises ServerLost."""
        parts = []
        while count > 0:
            part = self._connection.recv(min(count, 1 << 20))
            if not part:
                raise ServerLost("it closed the connection")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def run_driver(
    address: Address, potential: BeadPotential, *, rejoin: bool = False, say: Callable[[str], None] = print
) -> None:
    """Serve i-PI at an address until it ends or is lost; with `rejoin`, wait for it and for the next one, for ever.

    Raises: ConfigError where there is no server and `rejoin` is False; DpsimError for what goes wrong with a structure.
    """
    waiting = False
    while True:
        try:
            connection = address.connect()
        except OSError as error:
            if not rejoin:
                raise ConfigError(
                    f"`{address}` cannot be reached ({error}); expected a running i-PI there. Start i-PI first, or "
                    "wait for it with --rejoin."
                ) from error
            if not waiting:
                say(f"waiting for i-PI at {address}; Ctrl-C ends this")
            waiting = True
            time.sleep(_RETRY_SECONDS)
            continue
        waiting = False
        with connection:
            say(f"connected to i-PI at {address}")
            _serve(Session(connection, potential), say)
        if not rejoin:
            return
        time.sleep(_RETRY_SECONDS)


def _serve(session: Session, say: Callable[[str], None]) -> None:
    try:
        session.serve()
        say(f"i-PI has finished, after {session.n_answers} structures")
    except ServerLost as error:
        say(f"i-PI was lost ({error}), after {session.n_answers} structures")


def serve_structure_file(
    address: Address,
    model: str,
    structure: Path,
    *,
    precision: Precision | None = None,
    device: str = "cpu",
    rejoin: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """`dpsim ipi-driver`: serve with a template that ASE reads from a file. Raises DataError if it cannot."""
    potential = BeadPotential(read_template(structure), model, precision, device)
    run_driver(address, potential, rejoin=rejoin, say=say)


def read_template(path: str | PathLike[str]) -> Atoms:
    """The atoms of a file, in order; an xyz file as i-PI writes it counts as periodic. Raises DataError."""
    from ase.io import read

    try:
        template = read(fspath(path))
    except Exception as error:
        raise DataError(
            f"`{path}` cannot be read as a structure ({error}); expected a file that ASE reads, with the atoms of "
            "i-PI's input in its order."
        ) from error
    if isinstance(template, list):
        template = template[0]
    if not template.pbc.any() and "CELL" in Path(path).read_text(errors="replace")[:1000]:
        template.pbc = True  # plain xyz: i-PI's comment holds the cell, which ASE does not read
    return template
