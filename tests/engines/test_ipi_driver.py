"""The i-PI driver: its conversation over a socket, and the PES file and i-PI itself where it is installed."""

from __future__ import annotations

import json
import os
import runpy
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from typer.testing import CliRunner

from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.calculators.ipi_driver import (
    PES_PATH,
    Address,
    BeadPotential,
    ProtocolError,
    ServerLost,
    Session,
    read_template,
    run_driver,
)
from dpsim.cli import app
from dpsim.errors import ConfigError, DataError, ElementError
from dpsim.models.checkpoint import save_model
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.protocols.structures import water_box

ROOT = Path(__file__).parents[2]
BOHR, HARTREE = 0.529177210903, 27.211386245988  # CODATA 2018: A, eV


def small_model() -> EnergyModel:
    descriptor = {"type": "se_e2_a", "sel": [20, 40], "rcut": 4.0, "rcut_smth": 0.5, "neuron": [4, 8], "axis_neuron": 4}
    config = {"type_map": ["O", "H"], "descriptor": descriptor, "fitting": {"neuron": [8, 8]}, "precision": "float64"}
    return EnergyModel(ModelConfig.model_validate(config), seed=1)


def beads(n: int, tilted: bool = False) -> list[Atoms]:
    """Copies of a water box, each moved a little."""
    atoms = water_box(4)
    if tilted:
        atoms.set_cell(np.array([[1.0, 0, 0], [0.2, 1.0, 0], [-0.1, 0.3, 1.0]]) @ atoms.cell.array, scale_atoms=True)
    random = np.random.default_rng(0)
    copies = [atoms.copy() for _ in range(n)]
    for copy in copies:
        copy.positions += random.normal(0.0, 0.03, copy.positions.shape)
    return copies


def in_atomic_units(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """h with vectors as columns, and positions."""
    return atoms.cell.array.T / BOHR, atoms.positions / BOHR


def expected(atoms: Atoms, model: EnergyModel) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces and virial, atomic units, by way of ASE."""
    atoms.calc = DPCalculator(model)
    virial = -atoms.get_volume() * atoms.get_stress(voigt=False)
    return atoms.get_potential_energy() / HARTREE, atoms.get_forces() * BOHR / HARTREE, virial / HARTREE


class Server:
    """i-PI's end of a connection."""

    def __init__(self, connection: socket.socket):
        self.connection = connection

    def say(self, header: str, *parts: bytes) -> None:
        self.connection.sendall(header.ljust(12).encode() + b"".join(parts))

    def init(self, text: str = " ") -> None:
        self.say("INIT", struct.pack("<ii", 0, len(text)), text.encode())

    def positions(self, structures: list[Atoms]) -> None:
        data = [in_atomic_units(a) for a in structures]
        cells = b"".join(h.tobytes() + np.linalg.inv(h).tobytes() for h, _ in data)
        count = struct.pack("<i", len(structures[0]))
        bodies = b"".join(x.tobytes() for _, x in data)
        self.say("POSDATA", *([cells, count, bodies] if len(data) == 1 else [count, cells, bodies]))

    def status(self) -> str:
        self.say("STATUS")
        return self.header()

    def header(self) -> str:
        return self.receive(12).decode().strip()

    def receive(self, count: int) -> bytes:
        return self.connection.recv(count, socket.MSG_WAITALL)

    def forces(self, n_beads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.say("GETFORCE")
        assert self.header() == "FORCEREADY"
        energies = np.frombuffer(self.receive(8 * n_beads))
        (n,) = struct.unpack("<i", self.receive(4))
        forces = np.frombuffer(self.receive(24 * n * n_beads)).reshape(n_beads, n, 3)
        virials = np.frombuffer(self.receive(72 * n_beads)).reshape(n_beads, 3, 3)
        assert self.receive(4 * n_beads) == bytes(4 * n_beads)
        return energies, forces, virials


class Conversation:
    """A session of the driver in a thread, and the server it talks to. `error`: how the session ended."""

    def __init__(self, potential: BeadPotential):
        ours, theirs = socket.socketpair()
        self.server = Server(ours)
        self.session = Session(theirs, potential)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self.session.serve()
        except BaseException as error:
            self.error = error

    def wait(self) -> BaseException | None:
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()
        return self.error


@pytest.fixture
def model() -> EnergyModel:
    return small_model()


@pytest.fixture
def talk(model: EnergyModel) -> Iterator[Conversation]:
    conversation = Conversation(BeadPotential(water_box(4), model))
    yield conversation
    conversation.server.connection.close()


@pytest.mark.parametrize("n_beads", [1, 3])
def test_the_numbers_are_those_of_ase(n_beads: int, talk: Conversation, model: EnergyModel) -> None:
    server = talk.server
    assert server.status() == "NEEDINIT"
    server.init(" " if n_beads == 1 else f"mode : none, batch_size:{n_beads}")
    for _ in range(2):  # steps
        assert server.status() == "READY"
        structures = beads(n_beads, tilted=True)
        server.positions(structures)
        assert server.status() == "HAVEDATA"
        answers = zip(*server.forces(n_beads), strict=True)
        for (energy, forces, virial), atoms in zip(answers, structures, strict=True):
            e, f, w = expected(atoms, model)
            assert energy == pytest.approx(e, rel=1e-12)
            np.testing.assert_allclose(forces, f, atol=1e-12)
            np.testing.assert_allclose(virial, w, atol=1e-12)
    assert server.status() == "READY"
    server.say("EXIT")
    assert talk.wait() is None
    assert talk.session.n_answers == 2 * n_beads


def test_messages_may_come_in_pieces(talk: Conversation) -> None:
    for byte in b"STATUS      ":
        talk.server.connection.sendall(bytes([byte]))
    assert talk.server.header() == "NEEDINIT"


def test_a_lost_server_ends_the_session(talk: Conversation) -> None:
    talk.server.init()
    talk.server.connection.sendall(b"POSDATA     " + bytes(17))
    talk.server.connection.close()
    assert isinstance(talk.wait(), ServerLost)


def test_what_is_not_the_protocol_is_refused(talk: Conversation) -> None:
    talk.server.say("HELLO")
    error = talk.wait()
    assert isinstance(error, ProtocolError)
    assert "the server sent 'HELLO'; expected one of" in str(error)


def test_forces_before_positions_are_refused(talk: Conversation) -> None:
    talk.server.say("GETFORCE")
    assert "before any positions" in str(talk.wait())


def test_another_number_of_atoms_is_refused(talk: Conversation) -> None:
    talk.server.init()
    talk.server.positions([water_box(3)])
    error = talk.wait()
    assert isinstance(error, DataError)
    assert "shape (9, 3); expected (12, 3)" in str(error)


def test_elements_that_the_model_does_not_know_are_refused(model: EnergyModel) -> None:
    with pytest.raises(ElementError, match=r"\['C', 'N'\].*it knows \['O', 'H'\]"):
        BeadPotential(Atoms("CNO"), model)


def test_a_molecule_needs_no_cell(model: EnergyModel) -> None:
    """Open directions are those of the template; the cell that i-PI sends all the same is not used."""
    atoms = water_box(2)
    atoms.pbc = False
    (answer,) = BeadPotential(atoms, model).compute([np.zeros((3, 3))], [atoms.positions / BOHR])
    atoms.calc = DPCalculator(model)
    np.testing.assert_allclose(answer[1], atoms.get_forces() * BOHR / HARTREE, atol=1e-12)


def test_addresses() -> None:
    assert str(Address.unix("water")) == "/tmp/ipi_water"
    assert str(Address.unix("/run/my/socket")) == "/run/my/socket"
    assert Address.inet("localhost:31415") == Address(host="localhost", port=31415)
    assert Address.inet("[::1]:31415").host == "::1"
    for text in ("localhost", "localhost:", ":31415", "localhost:70000", "localhost:http"):
        with pytest.raises(ConfigError, match="expected HOST:PORT"):
            Address.inet(text)


def test_without_a_server_it_says_so(tmp_path: Path, model: EnergyModel) -> None:
    with pytest.raises(ConfigError, match="cannot be reached .*Start i-PI first, or wait for it with --rejoin"):
        run_driver(Address.unix(str(tmp_path / "nobody")), BeadPotential(water_box(4), model))


class Enough(Exception):
    """Ends a driver that would wait for ever."""


def test_a_restarted_server_is_rejoined(tmp_path: Path, model: EnergyModel) -> None:
    """Waits for the first, serves it until it is lost, serves the second until it says EXIT, waits for the third."""
    path = str(tmp_path / "socket")
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if sum(line.startswith("waiting") for line in said) == 3:
            raise Enough
        if text.startswith("waiting"):
            threading.Thread(target=serve_once, args=(len(said) > 1,), daemon=True).start()

    def serve_once(friendly: bool) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        connection, _ = listener.accept()
        os.unlink(path)
        listener.close()
        server = Server(connection)
        assert server.status() == "NEEDINIT"
        if friendly:
            server.say("EXIT")
        connection.close()

    with pytest.raises(Enough):
        run_driver(Address.unix(path), BeadPotential(water_box(4), model), rejoin=True, say=say)
    text = "\n".join(said)
    assert "i-PI was lost (it closed the connection), after 0 structures" in text
    assert "i-PI has finished, after 0 structures" in text


def test_the_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["ipi-driver", "--pes-path"])
    assert result.output.strip() == str(PES_PATH)
    assert PES_PATH.is_file()
    result = CliRunner().invoke(app, ["ipi-driver", "model.dpsim", "water.xyz"])
    assert "`--unix` and `--inet` are both or neither given" in str(result.exception)


def test_templates_as_ipi_writes_them_are_periodic(tmp_path: Path) -> None:
    path = tmp_path / "init.xyz"
    path.write_text("1\n# CELL(abcABC): 9 9 9 90 90 90  positions{angstrom} cell{angstrom}\nO 0 0 0\n")
    assert read_template(path).pbc.all()
    path.write_text("1\nsome atom\nO 0 0 0\n")
    assert not read_template(path).pbc.any()
    path.write_text("nothing")
    with pytest.raises(DataError, match="cannot be read as a structure"):
        read_template(path)


# ---- with i-PI itself ------------------------------------------------------------------------------------------------

INPUT = """
<simulation verbosity='quiet'>
  <output prefix='out'>
    <properties filename="energies"> [step, potential{{electronvolt}}, pressure_cv{{megapascal}}] </properties>
  </output>
  <total_steps>3</total_steps>
  <prng><seed>1</seed></prng>
  {forcefield}
  <system>
    <initialize nbeads='2'>
      <file mode='xyz'>init.xyz</file> <velocities mode='thermal' units='kelvin'>300</velocities>
    </initialize>
    <forces><force forcefield='dpsim'/></forces>
    <ensemble><temperature units='kelvin'>300</temperature></ensemble>
    <motion mode='dynamics'><dynamics mode='nve'><timestep units='femtosecond'>0.25</timestep></dynamics></motion>
  </system>
</simulation>
"""
DIRECT = """<ffdirect name='dpsim'> <pes>custom</pes> <pes_path>{pes}</pes_path> <batch_size>2</batch_size>
    <parameters>{{template: init.xyz, model: model.dpsim}}</parameters> </ffdirect>"""
SOCKET = "<ffsocket name='dpsim' mode='unix'> <address>{name}</address> {more} </ffsocket>"


@pytest.mark.slow
def test_ipi_gets_the_same_energies_in_every_way(tmp_path: Path) -> None:
    """From the PES file inside i-PI, in a batch; from it in i-PI's own driver; from `dpsim ipi-driver`, in a batch."""
    pytest.importorskip("ipi", reason="i-PI is not installed: pip install 'dpsim[ipi]'")
    name = f"dpsim_test_{os.getpid()}"
    direct = ipi_run(tmp_path, DIRECT.format(pes=PES_PATH), None, name)
    python = ipi_run(tmp_path, SOCKET.format(name=name, more=""), python_driver(name), name)
    ours = ipi_run(tmp_path, SOCKET.format(name=name, more="<batch_size>2</batch_size>"), our_driver(name), name)
    assert direct.shape == (4, 3)
    assert np.isfinite(direct).all()
    np.testing.assert_allclose(python, direct, rtol=1e-9)
    np.testing.assert_allclose(ours, direct, rtol=1e-9)


def test_the_path_integral_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipi", reason="i-PI is not installed: pip install 'dpsim[ipi]'")
    program("i-pi")
    write(tmp_path / "water.extxyz", water_box(8))
    options = ["--beads", "2", "--duration", "0.06", "--skip", "0", "--structure", "water.extxyz"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "argv", ["pimd.py", *options])
    runpy.run_path(str(ROOT / "examples" / "ipi" / "pimd.py"), run_name="__main__")
    results = json.loads((tmp_path / "pimd" / "results.json").read_text())["2"]
    classical = 38.78  # meV
    assert classical < results["kinetic_O_meV"][0] < results["kinetic_H_meV"][0] < 3.0 * classical
    assert 0.9 < results["peak_A"][0] < 1.1
    assert (tmp_path / "pimd" / "g_OH.png").exists()


def our_driver(name: str) -> list[str]:
    code = "from dpsim.cli import main; main()"
    return [sys.executable, "-c", code, "ipi-driver", "--unix", name, "--rejoin", "model.dpsim", "init.xyz"]


def python_driver(name: str) -> list[str]:
    options = "template=init.xyz,model=model.dpsim"
    return [*program("i-pi-py_driver"), "-u", "-a", name, "-m", "custom", "-P", str(PES_PATH), "-o", options]


def program(name: str) -> list[str]:
    """A script of i-PI, installed beside Python."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"{name} is not installed beside {sys.executable}")
    return [sys.executable, str(path)]


def ipi_run(folder: Path, forcefield: str, driver: list[str] | None, name: str) -> np.ndarray:
    """The rows of the properties that an i-PI with this forcefield writes."""
    save_model(folder / "model.dpsim", small_model())
    atoms = water_box(4)
    edges = " ".join(f"{x:.8f}" for x in atoms.cell.lengths())
    write(folder / "init.xyz", atoms, format="xyz", comment=f"# CELL(abcABC): {edges} 90 90 90 positions{{angstrom}} "
          "cell{angstrom}")  # fmt: skip
    (folder / "input.xml").write_text(INPUT.format(forcefield=forcefield))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = {"cwd": folder, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    server = subprocess.Popen([*program("i-pi"), "input.xml"], **run)  # type: ignore[call-overload]
    client = None
    try:
        if driver is not None:
            while not Path(f"/tmp/ipi_{name}").exists() and server.poll() is None:
                time.sleep(0.02)
            client = subprocess.Popen(driver, **run)  # type: ignore[call-overload]
        output, _ = server.communicate(timeout=120)
        assert server.returncode == 0, output.decode()
    finally:
        for process in (client, server):
            if process is not None:
                process.kill()
                process.wait()
    return np.loadtxt(folder / "out.energies")
