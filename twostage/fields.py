"""Every field of the configuration by its full name, with type, default and meaning: for completion and reference."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object

from twostage.config import Config


@dataclass(frozen=True)
class Field:
    """One field that a file or the command line can set."""

    name: str
    """with its sections: `train.optimizer.lr`"""
    kind: str
    """what it takes, in words"""
    default: str | None
    """as it stands in a YAML file; None: it must be given"""
    meaning: str
    choices: tuple[str, ...]
    """the only values, where there are few"""
    is_path: bool


@dataclass(frozen=True)
class Section:
    """A section of the configuration, with the fields that lie in it directly."""

    name: str
    meaning: str
    fields: tuple[Field, ...]


def sections() -> Iterator[Section]:
    """All sections, in the order of config.py; sections within sections come after the one that they lie in."""
    return _sections(Config, "", None)


def _sections(kind: type[Any], prefix: str, defaults: Any) -> Iterator[Section]:
    hints, meanings = get_type_hints(kind), _meanings(kind)
    fields, inner = [], []
    for entry in dataclasses.fields(kind):
        value = _default(entry) if defaults is None else getattr(defaults, entry.name)
        if dataclasses.is_dataclass(hints[entry.name]):
            inner.append((hints[entry.name], f"{prefix}{entry.name}.", None if value is ... else value))
        else:
            hint = hints[entry.name]
            default = None if value is ... else _as_yaml(value)
            name, meaning = prefix + entry.name, meanings[entry.name]
            fields.append(Field(name, _kind(hint), default, meaning, _choices(hint), hint is Path))
    if prefix:
        yield Section(prefix.removesuffix("."), " ".join((kind.__doc__ or "").split()), tuple(fields))
    for section, name, value in inner:
        yield from _sections(section, name, value)


def _default(entry: dataclasses.Field[Any]) -> Any:
    """The default value; `...` where there is none."""
    if entry.default is not dataclasses.MISSING:
        return entry.default
    return ... if entry.default_factory is dataclasses.MISSING else entry.default_factory()


def _meanings(kind: type[Any]) -> dict[str, str]:
    """The strings under the fields, those of the parent classes included."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if dataclasses.is_dataclass(parent):
            parsed = parse_from_object(parent)
            found |= {part.arg_name: " ".join((part.description or "").split()) for part in parsed.params}
    return found


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _kind(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        return " | ".join(map(_kind, parts))
    if origin is list:
        return f"list of {_kind(parts[0])}" if get_origin(parts[0]) is None else f"list of: {_kind(parts[0])}"
    names = {bool: "true | false", int: "integer", float: "number", str: "text", Path: "path", type(None): "null"}
    return names[hint]


def _choices(hint: Any) -> tuple[str, ...]:
    if get_origin(hint) is Literal:
        return tuple(map(str, get_args(hint)))
    return ("true", "false") if hint is bool else ()
