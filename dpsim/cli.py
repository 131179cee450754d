"""The command line: one short function per command, each importing the room that does the work when it is called."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from dpsim.errors import DpsimError

app = typer.Typer(
    help="From first-principles data to a trained Deep Potential, molecular dynamics, and a verdict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

LOG = "dpsim-error.log"
MISTAKE, UNEXPECTED, WAITING, INTERRUPTED = 2, 1, 3, 130  # exit codes

ProtocolFile = Annotated[Path, typer.Argument(help="A protocol, e.g. from `dpsim template nve`.")]
ModelName = Annotated[
    str,
    typer.Argument(
        help="A model file: .dpsim, DeePMD-kit's .dp, .yaml, .json, .pt; file:head where it has several; or a bundled "
        "model's name."
    ),
]


@app.command()
def run(
    protocol: ProtocolFile,
    directory: Annotated[Path | None, typer.Option("--directory", "-d", help="Default: the protocol's name.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show the plan with its time and disk.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only where the report is.")] = False,
) -> None:
    """Simulate, analyse and judge. The same command continues after an interruption."""
    from dpsim.protocols import registry
    from dpsim.protocols.plan import plan_table
    from dpsim.protocols.progress import ProgressDisplay

    loaded = registry.load_protocol(protocol)
    if dry_run:
        Console(highlight=False).print(plan_table(registry.plan(loaded)))
        return
    display = ProgressDisplay(Console(quiet=True)) if quiet else ProgressDisplay()
    outcome = registry.run(loaded, directory or Path(loaded.name), display)
    if quiet:
        typer.echo(outcome.message)
    if outcome.stopped:
        raise typer.Exit(INTERRUPTED)


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(help="Folders of runs, or files like their results.json (a reference); `label=path` names one."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for report.html and results.json.")] = Path(
        "comparison"
    ),
) -> None:
    """Lay runs over each other: other models, engines, references. Which differences are more than chance?"""
    from dpsim.protocols.compare import compare_runs

    compare_runs(runs, output, Console(highlight=False))


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="What to train, e.g. examples/water/train/train.yaml.")],
    directory: Annotated[
        Path | None, typer.Option("--directory", "-d", help="Default: a folder named like the file.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in that folder, bit by bit.")] = False,
) -> None:
    """Train a model on first-principles data."""
    from dpsim.config import load_yaml
    from dpsim.train.config import TrainConfig
    from dpsim.train.trainer import train as train_model

    result = train_model(load_yaml(config, TrainConfig), directory or Path(config.stem), resume=resume)
    if not result.finished:
        raise typer.Exit(INTERRUPTED)


@app.command()
def test(
    model: Annotated[
        str | None, typer.Argument(help="A model file, file:head, or the name of a bundled model.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Argument(help="Folders (DeePMD npy), HDF5 or extxyz files: one set each.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Instead of both: a file of sets with a model or head and a weight each.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write test.json and parity.png here.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="At most this many frames of each set.")] = None,
    energy_bias: Annotated[
        list[Path] | None, typer.Option(help="Fit the energy bias to these frames first (zero-shot); may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Errors of a model on labelled data: energy per atom, forces, virial."""
    from dpsim.config import load_yaml
    from dpsim.train.testing import SetsConfig, check_model, check_sets

    if table is not None:
        if model is not None or energy_bias:
            raise DpsimError("`--table` is given with a model or `--energy-bias`; expected it alone. Name them in it.")
        config = load_yaml(table, SetsConfig)
        check_sets(config if frames is None else config.model_copy(update={"frames": frames}), output, device=device)
        return
    if model is None or not data:
        raise DpsimError("`model` or `data` is absent; expected `dpsim test model data...`, or `--table sets.yaml`.")
    check_model(model, data, output, max_frames=frames, energy_bias=energy_bias or [], device=device)


@app.command("learning-curve")
def learning_curve(
    config: Annotated[Path, typer.Argument(help="Which runs at which sizes; see docs/fine-tuning.md.")],
    directory: Annotated[
        Path | None, typer.Option("--directory", "-d", help="Default: a folder named like the file.")
    ] = None,
) -> None:
    """Train from scratch and fine-tuned at growing numbers of frames, and draw what that saves in data.

    The same command continues after an interruption.
    """
    from dpsim.config import load_yaml
    from dpsim.train.learning_curve import CurveConfig
    from dpsim.train.learning_curve import learning_curve as draw

    draw(load_yaml(config, CurveConfig), directory or Path(config.stem))


@app.command()
def evaluate(
    model: ModelName,
    structures: Annotated[Path, typer.Argument(help="An extxyz file, of any number of structures.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The extxyz file to write, with dpsim_* added.")],
    precision: Annotated[Literal["float32", "float64"] | None, typer.Option(help="Default: the model's own.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Energies, forces and virials of many structures, written beside what the file holds."""
    from dpsim.calculators.predictions import predict_file

    count = predict_file(model, structures, output, precision=precision, device=device)
    typer.echo(f"{count} structures written to {output}")


@app.command()
def deviation(
    models: Annotated[
        list[str], typer.Argument(help="Two or more models: files, file:head, names of bundled ones. A comma does too.")
    ],
    structures: Annotated[
        Path, typer.Argument(help="extxyz, DeePMD npy, HDF5; or the folder of a stage of `dpsim run`.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The csv to write: a row per structure.")
    ] = None,
    relative: Annotated[float | None, typer.Option(help="eV/A: divide devi_f by |<F>| + this.")] = None,
    relative_v: Annotated[float | None, typer.Option(help="eV/atom: divide devi_v by |<W>|/N + this.")] = None,
    label: Annotated[bool, typer.Option("--label", help="Distance from the labels, not from the mean.")] = False,
    precision: Annotated[Literal["float32", "float64"] | None, typer.Option(help="Default: the models' own.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """How far models disagree about structures: the model deviation of forces, virial and energy."""
    from dpsim.protocols.deviation_file import deviation_file

    deviation_file(
        models,
        structures,
        output,
        relative=relative,
        relative_v=relative_v,
        label=label,
        precision=precision,
        device=device,
        console=Console(highlight=False),
    )
    if output is not None:
        typer.echo(f"written to {output}")


@app.command()
def verify(
    model: ModelName,
    structure: Annotated[Path, typer.Argument(help="A structure in any format that ASE reads; its last frame.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write verify.json into this folder.")] = None,
) -> None:
    """Whether every engine and precision gives the same energy, forces and virial. Exit code 1: no."""
    from dpsim.protocols.verify import verify_file

    if not verify_file(model, structure, output):
        raise typer.Exit(1)


@app.command()
def convert(
    source: ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write: .dpsim, or .dp, .yaml.")],
    head: Annotated[str | None, typer.Option(help="Of a checkpoint with several; `dpsim show` lists them.")] = None,
) -> None:
    """Convert a model of DeePMD-kit into a dpsim file, or any model into DeePMD-kit's portable form."""
    from dpsim.models.checkpoint import convert_model

    for line in convert_model(source, output, head):
        typer.echo(line)


@app.command()
def compress(
    model: Annotated[
        str, typer.Argument(help="A model file: .dpsim, DeePMD-kit's .dp, .yaml, .json, .pt; or a bundled name.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The student to write (.dpsim).")],
    data: Annotated[list[Path] | None, typer.Option(help="Frames to measure errors on; may be repeated.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="At most this many of them, evenly spread.")] = 20,
    tolerance: Annotated[float, typer.Option(help="Largest error of a force component, eV/A.")] = 1e-5,
    rank: Annotated[str, typer.Option(help="full, auto, or the number of modes of each pair of elements.")] = "full",
    r_min: Annotated[float | None, typer.Option(help="Where the tables begin, A.")] = None,
    precision: Annotated[str, typer.Option(help="What the student computes in: float32 or float64.")] = "float32",
) -> None:
    """Tabulate a model: the same forces within a tolerance, from less arithmetic."""
    from dpsim.distill.compress import compress_file

    compress_file(
        model,
        output,
        data or [],
        max_frames=frames,
        console=Console(highlight=False),
        tolerance=tolerance,
        rank=int(rank) if rank.isdecimal() else rank,
        r_min=r_min,
        precision=precision,
    )
    typer.echo(f"written to {output}")


@app.command()
def distill(
    config: Annotated[Path, typer.Argument(help="What to distil, e.g. examples/distillation/distill.yaml.")],
    directory: Annotated[
        Path | None, typer.Option("--directory", "-d", help="Default: the distillation's name.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan and its cost.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only where the result is.")] = False,
) -> None:
    """Make a small model of a teacher: explore, label, train in rounds; compress; test. Run again, it continues.

    Exit code 1: the student is not accepted; 3: frames wait for labels from outside.
    """
    from dpsim.config import load_yaml
    from dpsim.distill.config import DistillConfig
    from dpsim.distill.loop import distill as run_distillation
    from dpsim.distill.plan import plan_table
    from dpsim.distill.progress import Display

    loaded = load_yaml(config, DistillConfig)
    if dry_run:
        Console(highlight=False).print(plan_table(loaded))
        return
    display = Display(Console(quiet=True) if quiet else None)
    outcome = run_distillation(loaded, directory or Path(loaded.name), display)
    if quiet:
        typer.echo(outcome.message)
    codes = {"stopped": INTERRUPTED, "waiting": WAITING}
    if code := codes.get(outcome.state, 0 if outcome.verdict in (None, "PASS") else 1):
        raise typer.Exit(code)


@app.command()
def accept(
    student: ModelName,
    config: Annotated[Path, typer.Argument(help="What to simulate, and the thresholds.")],
    teacher: Annotated[str, typer.Option(help='A model, or "package.module:factory" of an ASE calculator.')],
    directory: Annotated[
        Path | None, typer.Option("--directory", "-d", help="Default: a folder named like the file.")
    ] = None,
    card: Annotated[bool, typer.Option(help="Write the model card into the student's file.")] = True,
) -> None:
    """Test a student against its teacher in fresh simulations. Run again, it continues. Exit code 1: not accepted."""
    from dpsim.distill.accept import accept_file

    acceptance = accept_file(student, teacher, config, directory or Path(config.stem), write_card=card, say=typer.echo)
    if acceptance.verdict != "PASS":
        raise typer.Exit(1)


def _print_pes_path(asked: bool) -> None:
    """`--pes-path` needs no other argument."""
    if asked:
        from dpsim.calculators.ipi_driver import PES_PATH

        typer.echo(PES_PATH)
        raise typer.Exit


@app.command("ipi-driver")
def ipi_driver(
    model: ModelName,
    structure: Annotated[Path, typer.Argument(help="A file with the atoms of i-PI's input, in its order.")],
    unix: Annotated[str | None, typer.Option(help="The <address> of i-PI's unix ffsocket, or a path.")] = None,
    inet: Annotated[str | None, typer.Option(help="HOST:PORT of i-PI's inet ffsocket.")] = None,
    rejoin: Annotated[bool, typer.Option("--rejoin", help="Wait for i-PI, and for the next one after it.")] = False,
    precision: Annotated[Literal["float32", "float64"] | None, typer.Option(help="Default: the model's own.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    pes_path: Annotated[
        bool, typer.Option("--pes-path", is_eager=True, callback=_print_pes_path, help="Print i-PI's PES file.")
    ] = False,
) -> None:
    """Give i-PI the forces of a model, over its socket."""
    from dpsim.calculators.ipi_driver import Address, serve_structure_file

    if (unix is None) == (inet is None):
        raise DpsimError("`--unix` and `--inet` are both or neither given; expected one. Give the address of i-PI.")
    address = Address.unix(unix) if unix is not None else Address.inet(inet or "")
    serve_structure_file(address, model, structure, precision=precision, device=device, rejoin=rejoin, say=typer.echo)


@app.command()
def show(
    model: ModelName,
    as_json: Annotated[bool, typer.Option("--json", help="The whole header as JSON.")] = False,
) -> None:
    """What a model file says of itself: elements, cutoff, training data, errors, licence."""
    from dpsim.models.checkpoint import read_header

    header = read_header(model)
    if as_json:
        typer.echo(json.dumps(header, indent=2, ensure_ascii=False))
    else:
        console = Console(highlight=False)
        if isinstance(card := header.get("provenance", {}).get("card"), dict):
            from dpsim.distill.card import render_card

            console.print(render_card(card))
            header = {**header, "provenance": {k: v for k, v in header["provenance"].items() if k != "card"}}
        console.print(_as_table(header))


@app.command()
def schema(
    kind: Annotated[
        str,
        typer.Argument(help="The command that reads such files: run, train, test, learning-curve, distill or accept."),
    ] = "run",
) -> None:
    """Print the JSON schema of a protocol, or of another kind of file: editors complete and check YAML with it."""
    from dpsim.filekinds import json_schema

    typer.echo(json.dumps(json_schema(kind), indent=2))


@app.command()
def template(
    name: Annotated[str, typer.Argument(help="nve, rdf, npt, ...: without a name, the list.")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: print it.")] = None,
) -> None:
    """Print a commented protocol to start from: `dpsim template nve > nve.yaml`."""
    from dpsim.protocols.templates import list_templates
    from dpsim.protocols.templates import template as template_text

    text = template_text(name) if name else list_templates()
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise DpsimError(f"`{output}` exists; expected a new file. Choose another name, or remove it.") from None
    typer.echo(f"written to {output}")


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A protocol, a training file, a distillation, or another YAML file.")],
) -> None:
    """Check everything that can be checked without simulating or training."""
    from dpsim.filekinds import check_file

    kind = check_file(file)
    typer.echo(f"{file}: {kind.name}, ready for `{kind.command}`")


@app.command()
def doctor() -> None:
    """What is installed, which kernels and engines are usable, and how to get what is missing."""
    from dpsim.doctor import diagnose, show_diagnosis

    checks = diagnose()
    show_diagnosis(checks, Console(highlight=False))
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)


def main() -> None:
    """Entry point: errors caused by input become one message; every traceback goes to a file."""
    from dpsim.kernels.memory import keep_freed_memory

    keep_freed_memory()
    try:
        app()
    except DpsimError as error:
        sys.exit(_report(str(error), MISTAKE))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(_report(f"unexpected {type(error).__name__}: {error}", UNEXPECTED))


def _report(message: str, code: int) -> int:
    """Print a message in red, write the traceback of the current exception to the log, and give the exit code."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("error:", style="bold red", end=" ")
    console.print(message, style="red", markup=False)
    try:
        Path(LOG).write_text(f"$ {' '.join(sys.argv)}\n\n{traceback.format_exc()}", encoding="utf-8")
        console.print(f"(details in {LOG})", style="dim")
    except OSError:
        console.print("(the traceback could not be written here; run in a folder you can write to)", style="dim")
    return code


def _as_table(header: dict[str, Any]) -> Any:
    """A header as two columns: one row per value, nested keys joined by dots."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, expand=True)
    table.add_column(overflow="fold", ratio=2)
    table.add_column(overflow="fold", ratio=3)

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            table.add_row(Text(prefix, style="bold"), Text(value if isinstance(value, str) else json.dumps(value)))

    add("", header)
    return table
