"""`dpsim doctor`: what is installed, which kernels and engines are usable, and how to get what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

State = Literal["ok", "missing", "broken"]  # missing: optional, and not here
STYLES = {"ok": "green", "missing": "yellow", "broken": "bold red"}

REQUIRED = ("torch", "numpy", "scipy", "pydantic", "safetensors", "vesin", "ase", "MDAnalysis", "h5py", "matplotlib")
ENGINES = {"ase": "ase", "openmm": "openmm", "lammps": "lammps", "ipi": "ipi"}  # extra -> import name


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    group: str
    name: str
    state: State
    detail: str


def diagnose() -> list[Check]:
    """Look at everything; never raises for something that is absent or broken."""
    return [*_versions(), *_native(), *_devices(), *_engines(), *_pair_style(), *_models(), *_extras()]


def show_diagnosis(checks: list[Check], console: Console) -> None:
    """Print the table and one closing line."""
    table = Table("", "", "state", title="dpsim doctor", title_justify="left", show_edge=False)
    table.add_column("", overflow="fold")
    group = None
    for check in checks:
        if group is not None and check.group != group:
            table.add_section()
        heading = check.group if check.group != group else ""
        state = Text(check.state, style=STYLES[check.state])
        table.add_row(Text(heading, style="bold"), Text(check.name), state, Text(check.detail))  # Text: [] is no markup
        group = check.group
    console.print(table)
    broken = [check.name for check in checks if check.state == "broken"]
    console.print(
        f"broken: {', '.join(broken)}" if broken else "everything needed works", style="red" if broken else "green"
    )


def _versions() -> list[Check]:
    checks = [
        Check("versions", "dpsim", *_version("dpsim")),
        Check("versions", "Python", "ok", platform.python_version()),
    ]
    return checks + [Check("versions", name, *_version(name)) for name in REQUIRED]


def _version(package: str) -> tuple[State, str]:
    try:
        return "ok", importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package == "dpsim":
            return "missing", "run from its source, not installed; pip install ."
        return "broken", f"not installed; pip install {package}"


def _native() -> list[Check]:
    from dpsim.kernels.native import capabilities

    found = capabilities()
    if found.path is None:
        fix = "slower PyTorch code runs instead; reinstall dpsim with a C++ compiler"
        return [Check("native kernels", "library", "missing", f"{found.problem}; {fix}")]
    cuda = "built; no usable device here" if found.cuda else "not built; reinstall with nvcc on PATH"
    if found.cuda_devices:
        cuda = f"built; {found.cuda_devices} device(s)"
    openmp = "built" if found.openmp else "not built; large systems use one thread. Install libomp"
    return [
        Check("native kernels", "library", "ok", f"{found.version} at {found.path}"),
        Check("native kernels", "instruction set", "ok", found.isa),
        Check("native kernels", "OpenMP", "ok" if found.openmp else "missing", openmp),
        Check("native kernels", "CUDA", "ok" if found.cuda_devices else "missing", cuda),
        Check("native kernels", "students", "ok", f"CPU, {found.isa}" + (", CUDA" if found.cuda_devices else "")),
    ]


def _devices() -> list[Check]:
    try:
        import torch
    except Exception as error:
        return [Check("torch devices", "torch", "broken", f"cannot be imported: {error}")]
    checks = [Check("torch devices", "cpu", "ok", f"{torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        checks.append(Check("torch devices", "cuda", "ok", ", ".join(names)))
    else:
        why = "no usable device" if torch.version.cuda else "this torch is built for CPUs"
        checks.append(Check("torch devices", "cuda", "missing", why))
    return checks


def _engines() -> list[Check]:
    checks = []
    for extra, module in ENGINES.items():
        installed = importlib.util.find_spec(module) is not None
        state, detail = _version(extra) if installed else ("missing", f"pip install 'dpsim[{extra}]'")
        if importlib.util.find_spec(f"dpsim.engines.{extra}_engine") is None:
            present = f"{detail} installed, but " if installed else ""
            state, detail = "missing", f"{present}this version of dpsim has no adapter for it"
        checks.append(Check("engines", extra, "broken" if extra == "ase" and state != "ok" else state, detail))
    return checks


def _pair_style() -> list[Check]:
    """The plugin for LAMMPS, compiled now if it has not been."""
    from dpsim.calculators.lammps_pair import plugin
    from dpsim.errors import DpsimError, MissingDependencyError

    try:
        return [Check("engines", "pair_style dpsim", "ok", str(plugin()))]
    except MissingDependencyError:
        return []
    except DpsimError as error:
        return [Check("engines", "pair_style dpsim", "missing", str(error))]


def _models() -> list[Check]:
    from dpsim.errors import DpsimError
    from dpsim.models.checkpoint import bundled_models, read_header

    checks = []
    for name in bundled_models():
        try:
            header = read_header(name)
            checks.append(Check("models", name, "ok", f"{' '.join(header['type_map'])}, cutoff {header['rcut']:g} A"))
        except (DpsimError, KeyError) as error:
            checks.append(Check("models", name, "broken", str(error)))
    return checks or [Check("models", "bundled", "missing", "none in this installation; name a .dpsim file instead")]


def _extras() -> list[Check]:
    return [
        _extra("tensorboard", "tensorboard"),
        _extra("dask", "workers"),
        _extra("dask-jobqueue", "workers"),
        _slurm(),
    ]


def _extra(package: str, extra: str) -> Check:
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        return Check("extras", package, "missing", f"pip install 'dpsim[{extra}]'")
    return Check("extras", package, *_version(package))


def _slurm() -> Check:
    path = shutil.which("sbatch")
    if path is None:
        return Check("extras", "Slurm", "missing", "no sbatch on PATH; `workers: {local: n}` uses this machine")
    return Check("extras", "Slurm", "ok", path)
