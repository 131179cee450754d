"""`dpsim doctor` says what there is, and is not fooled by what is absent or damaged."""

import importlib.metadata

import pytest
from rich.console import Console

from dpsim import doctor
from dpsim.kernels import native
from dpsim.models import checkpoint


def find(name: str) -> doctor.Check:
    return next(c for c in doctor.diagnose() if c.name == name)


def test_a_working_installation_has_nothing_broken():
    checks = doctor.diagnose()
    assert not [c for c in checks if c.state == "broken"]
    assert {c.group for c in checks} >= {"versions", "native kernels", "torch devices", "engines", "models"}


def test_the_table_names_everything_and_ends_with_a_conclusion(capsys: pytest.CaptureFixture[str]):
    checks = [*doctor.diagnose(), doctor.Check("extras", "x", "missing", "pip install 'dpsim[x]'")]
    doctor.show_diagnosis(checks, Console(width=200))
    text = capsys.readouterr().out
    assert all(c.name in text for c in checks)
    assert all(c.detail in text for c in checks if len(c.detail) < 100)
    assert text.rstrip().endswith("everything needed works")


def test_a_missing_library_is_reported_with_the_way_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "capabilities", lambda: native.Capabilities(problem="libdpsim.so does not exist"))
    check = find("library")
    assert check.state == "missing" and "does not exist" in check.detail and "reinstall" in check.detail


def test_a_missing_required_package_is_broken(monkeypatch: pytest.MonkeyPatch):
    real = importlib.metadata.version

    def version(package: str) -> str:
        if package == "vesin":
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert find("vesin").state == "broken" and "pip install vesin" in find("vesin").detail


def test_a_damaged_bundled_model_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path):
    (tmp_path / "odd.dpsim").write_bytes(b"not a model")
    monkeypatch.setattr(checkpoint, "BUNDLED", tmp_path)
    assert find("odd").state == "broken"


def test_an_engine_without_adapter_is_not_called_usable():
    for name in ("openmm", "lammps", "ipi"):
        check = find(name)
        assert check.state == "ok" or "adapter" in check.detail or "pip install" in check.detail
    assert find("ase").state == "ok"


def test_workers_are_named_with_what_brings_them(monkeypatch: pytest.MonkeyPatch):
    assert find("dask").state == find("dask-jobqueue").state == "ok"
    assert find("Slurm").state == "ok" or "local" in find("Slurm").detail
    real = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == "dask" else real(name))
    assert find("dask").state == "missing" and "dpsim[workers]" in find("dask").detail
