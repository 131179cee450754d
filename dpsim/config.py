"""Strict configuration: the pydantic base, quantities with units, and YAML whose errors name file, line and value.

A field of type `Time`, `Temperature`, ... takes text with a unit ("0.5 fs", "330 K") and holds a float:

    Time          fs        Temperature   K         Pressure      bar       Length        A (Angstrom)
    Energy        eV        Mass          amu       Force         eV/A      Rate          1/fs
    Compressibility 1/bar   EnergyDrift   meV/atom/ps         EnergyPerAtom meV/atom
    Frequency     THz       Density       g/cm^3    Diffusivity   cm^2/s    Viscosity     mPa s
    WallTime      us        Memory        GB

Defaults are written in these units: `timestep: Time = 0.5` is 0.5 fs. Written out again they are text with a unit.
"""

from __future__ import annotations

import inspect
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic.functional_validators import AfterValidator
from pydantic.json_schema import DEFAULT_REF_TEMPLATE, GenerateJsonSchema, JsonSchemaMode
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema
from pydantic_core.core_schema import ValidationInfo

from dpsim.errors import ConfigError, did_you_mean
from dpsim.units import format_quantity, parse_quantity

UNIT_KEY = "x-unit"  # in a JSON Schema: the unit in which dpsim keeps the quantity


class _SchemaGenerator(GenerateJsonSchema):
    """JSON Schema in which the defaults of quantities are text with a unit, as one writes them."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        result = super().default_schema(schema)
        if UNIT_KEY in result and isinstance(result.get("default"), int | float):
            result["default"] = format_quantity(result["default"], result[UNIT_KEY])
        return result


class StrictModel(BaseModel):
    """Base of every configuration: unknown keys are errors, objects do not change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def model_json_schema(
        cls,
        by_alias: bool | None = True,
        ref_template: str = DEFAULT_REF_TEMPLATE,
        schema_generator: type[GenerateJsonSchema] = _SchemaGenerator,
        mode: JsonSchemaMode = "validation",
        **options: Any,
    ) -> dict[str, Any]:
        """JSON Schema of this configuration, for editors and the docs."""
        return super().model_json_schema(bool(by_alias), ref_template, schema_generator, mode, **options)


def schema_of_any(models: Sequence[type[StrictModel]]) -> dict[str, Any]:
    """JSON Schema of a file that is any one of these configurations."""
    union: Any = typing.Union[tuple(models)]  # noqa: UP007  # of a list that is known at run time only
    return TypeAdapter(union).json_schema(schema_generator=_SchemaGenerator)


@dataclass(frozen=True)
class Quantity:
    """Makes a float field take text with a unit; the float counts `unit`. Bare numbers are refused."""

    unit: str
    example: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(
            self.read,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(
                self.write, when_used="json-unless-none", return_schema=core_schema.str_schema()
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        text = f'a number and its unit, as in "{self.example}"'
        return {"type": "string", "description": text, UNIT_KEY: self.unit}

    def read(self, value: Any) -> float:
        """Text with a unit as a number of `unit`."""
        if not isinstance(value, str):
            message = '{value} has no unit; expected text with a unit. Write for example "{example}".'
            raise PydanticCustomError("quantity", message, {"value": repr(value), "example": self.example})
        try:
            return parse_quantity(value, self.unit, self.example)
        except ConfigError as error:
            raise PydanticCustomError("quantity", "{reason}", {"reason": str(error)}) from None

    def write(self, value: float) -> str:
        """The float as text with its unit."""
        return format_quantity(value, self.unit)


Time = Annotated[float, Quantity("fs", "0.5 fs")]
Temperature = Annotated[float, Quantity("K", "330 K")]
Pressure = Annotated[float, Quantity("bar", "1 bar")]
Length = Annotated[float, Quantity("A", "6 A")]
Energy = Annotated[float, Quantity("eV", "0.1 eV")]
Mass = Annotated[float, Quantity("amu", "2.014 amu")]
Force = Annotated[float, Quantity("eV/A", "0.01 eV/A")]
Rate = Annotated[float, Quantity("1/fs", "1 1/ps")]
Compressibility = Annotated[float, Quantity("1/bar", "4.6e-5 1/bar")]
EnergyPerAtom = Annotated[float, Quantity("meV/atom", "1 meV/atom")]
EnergyDrift = Annotated[float, Quantity("meV/atom/ps", "0.1 meV/atom/ps")]
Frequency = Annotated[float, Quantity("THz", "1 THz")]
Density = Annotated[float, Quantity("g/cm^3", "0.997 g/cm^3")]
Diffusivity = Annotated[float, Quantity("cm^2/s", "2.3e-5 cm^2/s")]
Viscosity = Annotated[float, Quantity("mPa s", "0.89 mPa s")]
WallTime = Annotated[float, Quantity("us", "5 us")]
Memory = Annotated[float, Quantity("GB", "16 GB")]


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder") or Path()
    return Path(os.path.abspath(folder / path.expanduser()))


FilePath = Annotated[Path, AfterValidator(_beside_the_file)]
"""A path, made absolute; a relative one in a YAML file counts from the folder of that file."""

_MODEL_FILES = (".dpsim", ".dp", ".yaml", ".yml", ".json", ".pt")


def _model_beside_the_file(name: str, info: ValidationInfo) -> str:
    if "," in name:  # several: a committee
        return ", ".join(_model_beside_the_file(one.strip(), info) for one in name.split(","))
    folder = (info.context or {}).get("folder")
    path, colon, head = name.partition(":")
    if folder is None or not (path.endswith(_MODEL_FILES) or "/" in path):
        return name
    return str((folder / Path(path).expanduser()).resolve()) + colon + head


ModelName = Annotated[str, AfterValidator(_model_beside_the_file)]
"""A model: the name of a bundled one, or a file (`file`, `file:head`), made absolute as a `FilePath` is."""

Model = TypeVar("Model", bound=BaseModel)


def load_yaml(path: str | Path, model: type[Model]) -> Model:
    """Read a YAML file into a configuration.

    Raises: ConfigError naming file, line, value and what was expected, for every mistake found.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"`{path}` does not exist; expected a YAML file. Check the path.") from None
    except IsADirectoryError:
        raise ConfigError(f"`{path}` is a folder; expected a YAML file. Name the file in it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` cannot be read ({error}); expected a YAML file in UTF-8.") from None
    return parse_yaml(text, model, source=str(path), folder=path.parent)


def parse_yaml(text: str, model: type[Model], source: str = "<text>", folder: Path | None = None) -> Model:
    """Read YAML text; as `load_yaml`. `source` is its name in errors, `folder` where relative paths start."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = _Loader("").construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: not valid YAML: {error.problem or error.context}.") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {error}.") from None
    if not isinstance(data, dict):
        got = "empty" if data is None else type(data).__name__
        raise ConfigError(f"{source} is {got}; expected keys such as {', '.join(list(model.model_fields)[:4])}.")
    return validate(data, model, source=source, node=node, folder=folder)


def validate(
    data: Mapping[str, Any],
    model: type[Model],
    source: str = "",
    node: yaml.Node | None = None,
    folder: Path | None = None,
) -> Model:
    """Make a configuration of plain data, with readable errors. Raises ConfigError."""
    try:
        return model.model_validate(data, context={"folder": folder})
    except ValidationError as error:
        messages = []
        for details in error.errors(include_url=False):
            message = _message(details, model)
            line = _line_of(node, details["loc"])
            where = source + (f" line {line}" if line else "")
            messages.append(f"{where}: {message}" if where else message)
        raise ConfigError("\n".join(dict.fromkeys(messages))) from None


def dump_yaml(config: BaseModel) -> str:
    """A configuration as YAML that reads back to the same; quantities carry their units."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


class _Loader(yaml.SafeLoader):
    """YAML as version 1.2 reads it: 1e-3 is a number, `No` is nobelium, 12:30 is text, a repeated key is an error."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # filled below, before first use

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"`{key.value}` is given twice", problem_mark=key.start_mark)
            seen.add(getattr(key, "value", None) if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep=deep)


def _add_resolvers() -> None:
    for tag, pattern, first in (
        ("bool", r"(true|True|TRUE|false|False|FALSE)$", "tTfF"),
        ("null", r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
        ("int", r"[-+]?[0-9]+$", "-+0123456789"),
        ("float", r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
         "-+.0123456789"),
    ):  # fmt: skip
        _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value)  # 010 is ten, as in YAML 1.2


_add_resolvers()
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _message(details: ErrorDetails, model: type[BaseModel]) -> str:
    """One error of pydantic in the project's words."""
    loc, text, value = details["loc"], details["msg"], details["input"]
    name = ".".join(str(part) for part in _without_tags(loc, model))
    if details["type"] == "extra_forbidden":
        known = sorted(_known_keys(loc, model))
        hint = did_you_mean(str(loc[-1]), known)
        return f"`{name}` is unknown; expected {_listing(known)}.{hint or ' Remove it.'}"
    if details["type"] == "missing":
        return f"`{name}` is missing; expected a value. Add it."
    if details["type"] in ("quantity", "value_error"):
        text = text.removeprefix("Value error, ")
        return text if text.startswith("`") or not name else f"`{name}`: {text}"
    text = text.removeprefix("Input should be ")
    return f"`{name or 'configuration'}` is {_short(value)}; expected {text[:1].lower() + text[1:]}. Correct the value."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _listing(names: list[str]) -> str:
    return "one of " + ", ".join(names) if names else "nothing here"


def _without_tags(loc: tuple[int | str, ...], model: type[BaseModel]) -> Iterator[int | str]:
    """The parts of a pydantic location that are keys or indices of the data (it also names branches of unions)."""
    classes = {model}
    for k, part in enumerate(loc):
        known = [c for c in classes if isinstance(part, str) and part in c.model_fields]
        branch = isinstance(part, str) and not known and k < len(loc) - 1 and bool(classes)
        if isinstance(part, int) or known or (k == len(loc) - 1 and _is_key(part)):
            yield part
        if known:
            classes = {m for c in known for m in _models_in(c.model_fields[str(part)].annotation)}
        elif branch:
            classes = {c for c in classes if _tagged(c, str(part))} or classes


def _is_key(part: int | str) -> bool:
    """Whether a last part is a key of the data: branches of unions look like `float` or `literal['auto']`."""
    return isinstance(part, int) or (part.isidentifier() and part not in ("int", "float", "str", "bool"))


def _known_keys(loc: tuple[int | str, ...], model: type[BaseModel]) -> set[str]:
    """The keys allowed where `loc` points."""
    classes = {model}
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        known = [c for c in classes if part in c.model_fields]
        if known:
            classes = {m for c in known for m in _models_in(c.model_fields[part].annotation)}
        else:
            classes = {c for c in classes if _tagged(c, part)} or classes
    return {key for c in classes for key in c.model_fields}


def _tagged(model: type[BaseModel], tag: str) -> bool:
    return model.__name__ == tag or any(
        tag in typing.get_args(f.annotation) for f in model.model_fields.values() if f.annotation is not None
    )


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    """Every configuration class inside a type such as list[A | B]."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return {annotation}
    return {m for arg in typing.get_args(annotation) for m in _models_in(arg)}


def _line_of(node: yaml.Node | None, loc: tuple[int | str, ...]) -> int | None:
    """The line (from 1) where a location is written, or the nearest thing around it."""
    if node is None:
        return None
    line = node.start_mark.line + 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if found is None:
                continue  # the name of a union's branch, or a missing key
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
