"""Reads one YAML document into its pydantic model, or says in one line what is wrong with it.

Every file a person writes comes in through `load_document`; shipped files are found with `data_path` in an installed
wheel and in an editable checkout alike.
"""

from __future__ import annotations

from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from controller.config.explain import did_you_mean, explain
from controller.errors import BadInput
from controller.files import read_file

M = TypeVar("M", bound=BaseModel)

VALUES_MAX = 200_000  # of one document, aliases written out: more than fit a file without them
FILE_BYTES_MAX = 1_048_576  # no document of ours is near it; a larger one is not a document
NAME_CHARS_MAX = 120  # of a name that is shown


class Document(BaseModel):
    """Base of all file models: unknown keys are errors, values are frozen, infinities and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, raw: object) -> object:
        """YAML reads `on` and `yes` as true, and pydantic would read true as 1: as text it is refused by its key."""
        if not isinstance(raw, dict):
            return raw
        return {
            key: str(value).lower() if isinstance(value, bool) and cls._wants_number(key) else value
            for key, value in raw.items()
        }

    @classmethod
    def _wants_number(cls, key: object) -> bool:
        field = cls.model_fields.get(str(key))
        kinds = _kinds(field.annotation) if field is not None else set()
        return bool not in kinds and bool(kinds & {int, float})


def _kinds(annotation: object) -> set[object]:
    """The plain types in an annotation, through unions and `Annotated`; not what a list or a mapping holds."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return set().union(*(_kinds(part) for part in get_args(annotation)))
    return {annotation} if isinstance(annotation, type) else set()


def data_root() -> Path:
    """The folder that holds `configs/` and `systemd/`: inside the wheel, or the checkout of an editable install."""
    packaged = Path(__file__).resolve().parent.parent / "_data"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent.parent


def data_path(kind: str, name_or_file: str) -> Path:
    """Path of a shipped document of `kind` (contracts, devices, gpus, scenarios) by name, or of a file as given.

    Raises BadInput that lists the known names.
    """
    folder = data_root() / "configs" / kind
    names = sorted(p.stem for p in folder.glob("*.yaml"))
    known = ", ".join(names)
    if not name_or_file:
        raise BadInput(f"'': a file is allowed, or one of the shipped {kind}: {known}")
    given, shipped = Path(name_or_file), folder / f"{name_or_file}.yaml"
    try:
        if given.is_file():
            return given
        if shipped.is_file():
            return shipped
        is_other = given.exists()
    except OSError as error:  # a closed folder, or more characters than a name may have
        raise BadInput(f"{name_or_file[:NAME_CHARS_MAX]}: {error.strerror or error}") from None
    if is_other:
        raise BadInput(f"{name_or_file}: not a regular file")
    hint = did_you_mean(given.stem.lower(), names)
    raise BadInput(f"{name_or_file}: no such file, nor one of the shipped {kind}: {known}{hint}")


def read_yaml(path: Path) -> object:
    """The parsed YAML of `path`; BadInput when it cannot be read, is too large or is not YAML."""
    try:
        text = read_file(path, bytes_max=FILE_BYTES_MAX).decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from None
    try:
        return yaml.load(text, _PlainYaml)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadInput(f"{path}:{where}: not valid YAML: {error.problem or 'cannot be parsed'}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None


class _PlainYaml(yaml.SafeLoader):
    """YAML as people write it: no key twice (the last would silently win), and no aliases that nest without end."""

    def compose_document(self) -> yaml.Node | None:
        node: yaml.Node | None = super().compose_document()
        if node is not None and _unfolded(node, {}) > VALUES_MAX:
            raise yaml.MarkedYAMLError(problem=f"more than {VALUES_MAX} values", problem_mark=node.start_mark)
        return node

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node


def _unfolded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values there are with every alias written out."""
    if id(node) not in known:
        known[id(node)] = VALUES_MAX + 1  # what it counts as inside itself
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        children = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in pairs for part in pair]
        known[id(node)] = 1 + sum(_unfolded(child, known) for child in children)
    return known[id(node)]


def _kind(raw: object) -> str:
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "nothing" if raw is None else names.get(type(raw), type(raw).__name__)


def parse_document(raw: object, model: type[M], *, origin: str) -> M:
    """`raw` as `model`; BadInput names `origin`, the key, the value and what is allowed."""
    if not isinstance(raw, dict):
        raise BadInput(f"{origin}: expected keys and values, found {_kind(raw)}")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise BadInput(f"{origin}: {explain(error, model)}") from None


def load_document(path: Path, model: type[M]) -> M:
    """Read and validate `path` as `model`."""
    return parse_document(read_yaml(path), model, origin=str(path))
