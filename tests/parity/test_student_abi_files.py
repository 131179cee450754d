"""Files of students, given to the C interface: what it refuses to open."""

import struct
from ctypes import byref, c_void_p
from pathlib import Path

import numpy as np
import pytest
from student_abi import INVALID, LIB, OK, PARTS, Info, error, needs_library, open_bytes
from student_files import Part, random_student, write_student

from dpsim.models.checkpoint import BUNDLED

pytestmark = needs_library


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_student(
        tmp_path_factory.mktemp("student") / "student.dpsim", *random_student(PARTS, core_distance=0.8)
    )


@pytest.fixture
def changed(tmp_path):
    """A function that opens a student whose header and tensors were changed before it was written, and signed."""

    def open_changed(change):
        header, tensors = random_student((Part(n_intervals=20, width=4),), hidden=(4, 4))
        change(header["config"], tensors, header)
        return open_bytes(write_student(tmp_path / "changed.dpsim", header, tensors).read_bytes())[0]

    return open_changed


def test_a_student_says_what_it_is(path):
    student, info = c_void_p(), Info()
    for precision, expected in ((0, 64), (32, 32), (64, 64)):
        assert LIB.dpsim_student_open(str(path).encode(), precision, byref(student)) == OK
        assert LIB.dpsim_student_info(student, byref(info)) == OK
        assert (info.n_types, info.precision, info.rcut, info.r_min) == (2, expected, 4.0, 0.6)
        assert [LIB.dpsim_student_type_name(student, t) for t in (-1, 0, 1, 2)] == [None, b"O", b"H", None]
        LIB.dpsim_student_close(student)
    assert LIB.dpsim_student_open(str(path).encode(), 16, byref(student)) == INVALID and "16" in error()


def test_truncated_files_are_refused(path):
    content = path.read_bytes()
    head = 8 + struct.unpack("<Q", content[:8])[0]
    for size in (0, 1, 7, 8, 9, 100, head - 1, head, head + 1, len(content) - 8, len(content) - 1):
        assert open_bytes(content[:size])[0] == INVALID
        assert "Get the file again" in error()
    assert open_bytes(content + b"\0")[0] == INVALID


def test_no_flipped_bit_goes_unseen(path):
    content, random = path.read_bytes(), np.random.default_rng(0)
    head = 8 + struct.unpack("<Q", content[:8])[0]
    for k in range(300):
        damaged = bytearray(content)
        damaged[random.integers(0, head if k % 2 else len(content))] ^= 1 << random.integers(0, 8)
        status, student = open_bytes(bytes(damaged))
        assert status == INVALID and not student and error()


@pytest.mark.parametrize(
    "index", [b"", b"{", b"{}", b"[1]", b'{"__metadata__": 3}', b"[" * 5000, b"\xff\xfe", b'"\\u12"']
)
def test_broken_indices_are_refused(index):
    assert open_bytes(struct.pack("<Q", len(index)) + index)[0] == INVALID and error()
    assert open_bytes(struct.pack("<Q", 2**63) + index)[0] == INVALID and error()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format_version", 2),
        ("kind", "ensemble"),
        ("config.type_map", []),
        ("config.type_map", ["O", "O"]),
        ("config.type_map", ["O", "H", "Cu"]),
        ("config.type_map", ["O", "\0H"]),
        ("config.precision", "float16"),
        ("config.r_min", -1.0),
        ("config.r_min", 0.7),
        ("config.r_min", "0.6"),
        ("config.surprise", 1),
        ("config.parts", []),
        ("config.parts.0.kind", "spherical"),
        ("config.parts.0.rcut", 1e400),
        ("config.parts.0.rcut", 4.5),
        ("config.parts.0.rcut_smth", 4.0),
        ("config.parts.0.step", 0.0),
        ("config.parts.0.n_intervals", 10**6),
        ("config.parts.0.n_intervals", 10**15),
        ("config.parts.0.n_intervals", -1),
        ("config.parts.0.n_intervals", 20.5),
        ("config.parts.0.width", 10**6),
        ("config.parts.0.width", 0),
        ("config.parts.0.channels", 3),
        ("config.parts.0.channels", 10**6),
        ("config.parts.0.axis", 5),
        ("config.parts.0.axis", 0),
        ("config.parts.0.channel_offset", [0, 1]),
        ("config.parts.0.channel_offset", [0]),
        ("config.parts.0.slots", "per_type"),
        ("config.parts.0.excluded", [[0, 2]]),
        ("config.parts.0.excluded_counted", 1),
        ("config.parts.0.surprise", 1),
        ("config.fitting.0.n_in", 11),
        ("config.fitting.1.n_out", 10**6),
        ("config.fitting.1.residual", 2),
        ("config.fitting.0.activation", "swish"),
        ("config.fitting.0.bias", False),
        ("config.core_distances", [[1.0]]),
        ("config.core_distances", [[1.0, 2.0], [3.0, 1.0]]),
        ("config.atom_exclude_types", [2]),
        ("config.pair_exclude_types", [[0, -1]]),
    ],
)
def test_configs_that_do_not_fit_are_refused(changed, key, value):
    def change(config, tensors, header):
        *parents, last = key.split(".")
        target = header
        for name in parents:
            target = target[int(name) if isinstance(target, list) else name]
        if isinstance(target, list):
            last = int(last)
        target[last] = 1e308 if value == 1e400 else value  # the largest JSON allows

    assert changed(change) == INVALID
    assert "expected" in error() or "version" in error() or "tensor" in error()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("parts.0.table", lambda t: t * np.nan, "NaN"),
        ("parts.0.davg", lambda t: t + np.inf, "infinity"),
        ("parts.0.table", lambda t: np.full_like(t, 1e308) * np.sign(t), "too large"),
        ("parts.0.table", lambda t: t.astype(np.float32), "F32"),
        ("parts.0.table", lambda t: t[:, :, 1:], "(2, 2, 21, 3, 4)"),
        ("fitting.1.0.weight", lambda t: t.T.copy(), "shape"),
        ("fitting.1.out.bias", lambda t: None, "missing"),
        ("extra", lambda t: np.zeros(3), "belongs to nothing"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changed, name, value, message):
    def change(config, tensors, header):
        new = value(tensors.get(name))
        tensors.pop(name, None)
        if new is not None:
            tensors[name] = new

    assert changed(change) == INVALID
    assert message in error()


def test_other_files_are_refused_with_what_to_do(tmp_path):
    student = c_void_p()
    ordinary = BUNDLED / "water-pbe0ts.dpsim"
    assert LIB.dpsim_student_open(str(ordinary).encode(), 0, byref(student)) == INVALID
    assert error() == f"`{ordinary}` is an ordinary model; compress it first: dpsim compress"
    (tmp_path / "text").write_text("hello, this is no model")
    for other in (tmp_path / "text", tmp_path / "nothing", tmp_path, Path("/dev/zero"), Path("/dev/null")):
        assert LIB.dpsim_student_open(str(other).encode(), 0, byref(student)) == INVALID and str(other) in error()


def test_names_with_escapes_keep_the_digest_right(tmp_path):
    header, tensors = random_student((Part(n_intervals=20, width=4),))
    header["provenance"] = {"ü": '\u00e9 \U0001f600 \\ " / \x07', "b": [1, 2.5e-7, None, True, {}], "a": []}
    assert open_bytes(write_student(tmp_path / "s.dpsim", header, tensors).read_bytes())[0] == OK, error()
