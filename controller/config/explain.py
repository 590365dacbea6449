"""What is wrong with a document, in one line: the key, the value, and what is allowed there.

pydantic finds the faults; here they become words for who wrote the file, who knows YAML and not the models behind it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

FAULTS_MAX = 5  # shown; more than that is another kind of file
VALUE_CHARS_MAX = 60
KEY_NEARNESS = 0.7  # of difflib: `charge_megawat` is near `charge_megawatt`, `id` is not near `grid`
NAME_NEARNESS = 0.6  # of values and shipped names, which are fewer and less alike
# pydantic's words name Python's types.
ALLOWED = {
    **dict.fromkeys(("tuple_type", "list_type"), "a list is allowed"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "keys and values are allowed"),
    **dict.fromkeys(("float_type", "float_parsing"), "a plain number is allowed"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number is allowed"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false is allowed"),
    "string_type": "text is allowed",
    "finite_number": "a finite number is allowed",
    "string_too_short": "text that is not empty is allowed",
}
# And its patterns are a programmer's.
PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "letters, digits and . _ - are allowed, a letter or digit first",
    r"^[a-z0-9][a-z0-9-]*$": "small letters, digits and - are allowed, a letter or digit first",
    r"^[a-z0-9-]+$": "small letters, digits and - are allowed",
    r"^\d{4}(-\d{2}(-\d{2})?)?$": "a date as in 2026, 2026-09 or 2026-09-03 is allowed",
    r"^https?://[^\s?#]+$": "a URL as in https://vtn.example/openadr3 is allowed, without ? and #",
    r"^[^#+\x00]+$": "a topic without # and + is allowed",
}
BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}

Loc = tuple[int | str, ...]


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """All faults that `model` found in a document: `key: value: what is allowed`, at most five."""
    faults: list[Any] = error.errors(include_url=False)
    own = [fault for fault in faults if not _follows(fault, faults)]
    more = len(own) - FAULTS_MAX
    parts: list[str] = []
    for fault in own[:FAULTS_MAX]:
        words = _words(fault, model)
        known = words.find("; allowed: ")
        is_told = known >= 0 and any(part.endswith(words[known:]) for part in parts)  # a section's keys once
        parts.append(words[:known] if is_told else words)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _follows(fault: Any, faults: Sequence[Any]) -> bool:
    """A list is short only because its entries were refused: nothing that anybody wrote."""
    loc: Loc = fault["loc"]
    return fault["type"] == "too_short" and any(f["loc"][: len(loc)] == loc != f["loc"] for f in faults)


def _words(fault: Any, model: type[BaseModel]) -> str:
    loc: Loc = fault["loc"]
    key = ".".join(_printable(str(step)) for step in _written(model, loc)) or "document"
    if fault["type"] == "missing":
        return f"{key}: required, not given"
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key{_instead(str(loc[-1]), _keys(model, loc[:-1]))}"
    if fault["type"] == "union_tag_invalid":
        names, tag = _quoted(fault["ctx"]["expected_tags"]), fault["ctx"]["tag"]
        return f"{key}.{_quoted(fault['ctx']['discriminator'])[0]}: {tag!r}: {_one_of(tag, names)}"
    message = _allowed(fault)
    if not loc:
        return message
    shown = repr(fault["input"])
    if len(shown) > VALUE_CHARS_MAX:
        is_section = isinstance(fault["input"], dict | list)
        return f"{key}: {message}" if is_section else f"{key}: {shown[: VALUE_CHARS_MAX - 3]}...: {message}"
    return f"{key}: {shown}: {message}"


def _allowed(fault: Any) -> str:
    """What may stand there, for the kinds of fault that people make."""
    kind, context, given = fault["type"], fault.get("ctx", {}), fault["input"]
    if kind in BOUNDS:
        words, name = BOUNDS[kind]
        bound = context[name]
        return f"{words} {int(bound) if float(bound).is_integer() else bound} is allowed"
    if kind in ("literal_error", "enum"):
        return _one_of(given, _quoted(context["expected"]))
    if kind in ("tuple_type", "list_type") and isinstance(given, str) and len(given) <= VALUE_CHARS_MAX:
        return f"{ALLOWED[kind]}, as in [{_printable(given)}]"
    if kind == "string_pattern_mismatch" and context["pattern"] in PATTERNS:
        return PATTERNS[context["pattern"]]
    return ALLOWED.get(kind, str(fault["msg"]).removeprefix("Value error, "))


def _one_of(given: object, names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]} is allowed{did_you_mean(str(given).lower(), names)}"


def did_you_mean(given: str, names: Sequence[str], *, nearness: float = NAME_NEARNESS) -> str:
    """The end of a sentence that names the nearest of `names`; nothing where none is near."""
    near = difflib.get_close_matches(given, names, n=1, cutoff=nearness)
    return f"; did you mean {near[0]}?" if near else ""


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text) or [text]


def _written(model: type[BaseModel], loc: Loc) -> list[int | str]:
    """`loc` as the file has it: without the words by which pydantic names the member of a union (`kind: drop`)."""
    here, steps = {model}, list[int | str]()
    for step in loc:
        is_key = any(step in (name, field.alias) for kind in here for name, field in kind.model_fields.items())
        tagged = set() if is_key else {kind for kind in here if _has_tag(kind, step)}
        if not tagged:
            steps.append(step)
        here = {m for kind in here for m in _below(kind, step)} or tagged or here
    return steps


def _instead(key: str, known: Sequence[str]) -> str:
    hint = did_you_mean(key, known, nearness=KEY_NEARNESS)
    return hint or (f"; allowed: {', '.join(known)}" if known else "")


def _keys(model: type[BaseModel], loc: Loc) -> list[str]:
    """The keys that may stand at `loc` of a document of this model, sorted."""
    here = {model}
    for step in loc:
        below = {m for kind in here for m in _below(kind, step)}
        here = below or {kind for kind in here if _has_tag(kind, step)} or here
    return sorted({field.alias or name for kind in here for name, field in kind.model_fields.items()})


def _below(model: type[BaseModel], step: int | str) -> set[type[BaseModel]]:
    fields = (field for name, field in model.model_fields.items() if step in (name, field.alias))
    return {m for field in fields for m in _models(field.annotation)}


def _models(annotation: object) -> set[type[BaseModel]]:
    """All models inside an annotation, however nested in lists, unions and mappings."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {m for part in get_args(annotation) for m in _models(part)}


def _has_tag(model: type[BaseModel], step: int | str) -> bool:
    """Whether `step` is the word that chose this model among others (`kind: drop`)."""
    kinds = (field.annotation for field in model.model_fields.values())
    return any(get_origin(kind) is Literal and step in get_args(kind) for kind in kinds)


def _printable(text: str) -> str:
    """A key as it may stand in one line, however it was written."""
    return text if text.isprintable() else repr(text)
