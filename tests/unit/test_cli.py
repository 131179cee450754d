"""The commands: what they print, what they refuse, exit codes, and the log of an error."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from dpsim import cli
from dpsim.filekinds import KINDS, Kind
from dpsim.models.checkpoint import save_model
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel


@pytest.fixture
def dpsim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Calls the command line in an empty folder: returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dpsim", *arguments])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_help_names_every_command(dpsim):
    code, out, _ = dpsim("--help")
    assert code == 0
    names = "run compare train test evaluate deviation verify convert compress show schema template validate doctor"
    for name in names.split():
        assert name in out
        assert dpsim(name, "--help")[0] == 0


def test_template_is_a_protocol_that_its_schema_describes(dpsim, tmp_path: Path):
    _, out, _ = dpsim("template", "nve")
    keys = yaml.safe_load(out)
    _, schema, _ = dpsim("schema")
    assert set(keys) <= set(json.loads(schema)["$defs"]["Protocol"]["properties"])
    assert dpsim("template", "nve", "-o", "new.yaml")[0] == 0
    assert (tmp_path / "new.yaml").read_text() == out
    code, _, err = dpsim("template", "nve", "-o", "new.yaml")
    assert code == cli.MISTAKE and "exists" in err


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.key)
def test_every_kind_of_file_has_a_schema_with_the_keys_that_tell_it(dpsim, kind: Kind):
    code, out, _ = dpsim("schema", kind.key)
    found = json.loads(out)
    described = [found, *found["$defs"].values()]  # a protocol's keys depend on which one it is
    assert code == 0
    assert kind.any | kind.all <= {key for one in described for key in one.get("properties", {})}
    assert kind.key in dpsim("schema", "--help")[1]


def test_kinds_of_files_without_a_schema_are_refused(dpsim):
    code, _, err = dpsim("schema", "distil")
    assert code == cli.MISTAKE and "accept (an acceptance test)" in err and "Did you mean `distill`?" in err


def test_a_mistake_is_one_message_with_the_traceback_in_a_file(dpsim, tmp_path: Path):
    code, out, err = dpsim("template", "nva")
    assert code == cli.MISTAKE and out == ""
    assert "nva" in err and "did you mean `nv" in err.lower() and "Traceback" not in err
    log = (tmp_path / cli.LOG).read_text()
    assert "Traceback" in log and "dpsim template nva" in log


def test_an_unexpected_error_has_another_exit_code(dpsim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def burst() -> None:
        raise ZeroDivisionError("by [nobody]")

    monkeypatch.setattr("dpsim.doctor.diagnose", burst)
    code, _, err = dpsim("doctor")
    assert code == cli.UNEXPECTED and "ZeroDivisionError: by [nobody]" in err
    assert "Traceback" in (tmp_path / cli.LOG).read_text()


def test_a_folder_that_cannot_be_written_does_not_hide_the_message(dpsim, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "write_text", refuse)
    code, _, err = dpsim("template", "nva")
    assert code == cli.MISTAKE and "nva" in err


@pytest.mark.parametrize("command", ["run", "train", "validate"])
def test_files_that_do_not_exist_are_named(dpsim, command: str):
    code, _, err = dpsim(command, "nowhere.yaml")
    assert code == cli.MISTAKE and "nowhere.yaml" in err


@pytest.mark.parametrize("arguments", [("show", "water-pbe9"), ("test", "water-pbe9", "data")])
def test_unknown_models_are_named(dpsim, arguments: tuple[str, ...]):
    code, _, err = dpsim(*arguments)
    assert code == cli.MISTAKE and "water-pbe9" in err


def test_validate_tells_training_files_from_protocols(dpsim, tmp_path: Path):
    (tmp_path / "train.yaml").write_text("model: {}\ndata: {train: [nowhere]}\n")
    code, _, err = dpsim("validate", "train.yaml")
    assert code == cli.MISTAKE and "train.yaml" in err and "type_map" in err
    (tmp_path / "run.yaml").write_text("model: water\nstages: []\n")
    code, _, err = dpsim("validate", "run.yaml")
    assert code == cli.MISTAKE and "run.yaml" in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sets: [{data: data/validation, model: water-pbe0ts}]", "He"),
        ("model: water-pbe0ts\nsets: [{data: water.extxyz}]", "a table of sets, ready for `dpsim test --table`"),
        (
            "structures: [water.extxyz]\nconditions: [{temperature: 300 K}]",
            "an acceptance test, ready for `dpsim accept`",
        ),
        ("structures: [water.extxyz]", "`conditions` of the acceptance test are missing"),
        ("train: {data: {train: [x]}}\nsizes: [2]", "`test` is missing"),
        ("teacher: water-pbe0ts\nstudent: {}", "`name` is missing"),
        ("structure: water.extxyz", "`name` is missing"),
        (
            "modle: x\nstage: []",
            r"tell no kind of file.*a protocol (`dpsim run`) has `protocol` or `stages` or `structure`",
        ),
        ("modle: x\nstage: []", "Did you mean `stages`?"),
    ],
)
def test_validate_knows_every_kind_of_file(dpsim, tmp_path: Path, lj_data: Path, content: str, said: str):
    (tmp_path / "data").symlink_to(lj_data)
    (tmp_path / "water.extxyz").write_text(
        '3\nLattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=1 pbc="T T T"\n'
        "O 0 0 0.12 0 0 0\nH 0 0.76 -0.48 0 0 0\nH 0 -0.76 -0.48 0 0 0\n"
    )
    (tmp_path / "file.yaml").write_text(content)
    code, out, err = dpsim("validate", "file.yaml")
    text = " ".join((out + err).split())
    assert all(part in text for part in said.split(".*")), text
    assert code == (0 if "ready for" in said else cli.MISTAKE)


def test_train_show_and_test_a_model(dpsim, tmp_path: Path, train_settings: dict, lj_data: Path):
    (tmp_path / "lj.yaml").write_text(yaml.safe_dump(train_settings | {"steps": 4}))
    assert dpsim("validate", "lj.yaml")[0] == 0
    code, _, err = dpsim("train", "lj.yaml")
    assert code == 0, err
    assert dpsim("train", "lj.yaml")[0] == cli.MISTAKE  # the folder holds a run
    assert dpsim("train", "lj.yaml", "--resume")[0] == 0
    code, out, _ = dpsim("show", "lj/model-last.dpsim")
    assert code == 0 and "type_map" in out and "He" in out
    code, out, _ = dpsim("show", "lj/model-last.dpsim", "--json")
    assert json.loads(out)["type_map"] == ["He", "Ne"]
    code, out, err = dpsim("test", "lj/model-last.dpsim", str(lj_data / "validation"), "-o", "errors")
    assert code == 0 and "RMSE" in out, err
    assert (tmp_path / "errors" / "test.json").is_file()


def test_evaluate_adds_predictions(dpsim, tmp_path: Path):
    (tmp_path / "w.xyz").write_text("3\nREF_energy=1\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n")
    code, out, err = dpsim("evaluate", "water-pbe0ts", "w.xyz", "-o", "p.xyz")
    assert code == 0 and "1 structures written to p.xyz" in out, err
    assert "REF_energy=1 dpsim_energy=" in (tmp_path / "p.xyz").read_text()
    code, _, err = dpsim("evaluate", "water-pbe0ts", "w.xyz", "-o", "w.xyz")
    assert code == cli.MISTAKE and "`output` is w.xyz" in err


def test_compress_and_test_a_student(dpsim, tmp_path: Path, lj_data: Path):
    model = {"type": "se_e2_a", "rcut": 4.0, "sel": [8, 8], "neuron": [4, 8], "axis_neuron": 2}
    config = ModelConfig.model_validate({"type_map": ["He", "Ne"], "descriptor": model, "fitting": {"neuron": [8]}})
    save_model(tmp_path / "m.dpsim", EnergyModel(config), {"name": "noble"})
    data = str(lj_data / "validation")
    code, out, err = dpsim("compress", "m.dpsim", "-o", "s.dpsim", "--data", data, "--frames", "2", "--rank", "auto")
    assert code == 0 and "Student of noble" in out and "2 frames" in out, err
    assert "student" in dpsim("show", "s.dpsim")[1]
    code, _, err = dpsim("test", "s.dpsim", data)
    assert code == 0, err
    for arguments, message in (
        (("s.dpsim",), "is a student already"),
        (("m.dpsim", "--rank", "some"), "`rank` is 'some'"),
        (("nowhere.dp",), "nowhere.dp"),
        (("m.dpsim", "--data", "nowhere"), "nowhere"),
    ):
        code, _, err = dpsim("compress", *arguments, "-o", "t.dpsim")
        assert code == cli.MISTAKE and message in err
    assert not (tmp_path / "t.dpsim").exists()
    training = {
        "model": {"type_map": ["He", "Ne"], "descriptor": model, "fitting": {"neuron": [8]}},
        "data": {"train": [str(lj_data / "train")]},
        "init_from": "s.dpsim",
        "steps": 1,
    }
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(training))
    code, _, err = dpsim("train", "t.yaml")
    assert code == cli.MISTAKE and "is a student already" in err and "`noble`" in err
