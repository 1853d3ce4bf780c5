"""Frozen dataclasses as JSON and back, every field checked against its annotation."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from wmfast.errors import UserError

T = TypeVar("T")


def config_to_json(config: Any) -> dict[str, Any]:
    """A dataclass, nested ones included, as JSON values; paths become strings, tuples lists."""
    return {f.name: _to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}


def config_from_json(cls: type[T], data: Mapping[str, Any], source: str) -> T:
    """The inverse of `config_to_json`.

    Args:
        cls: a dataclass of numbers, strings, bools, literals, paths, tuples and such dataclasses.
        data: what JSON gave.
        source: what the error message calls the data (a file name).

    Raises:
        UserError: a field is unknown, missing or of the wrong type; the message names it.
    """
    config: T = _dataclass(cls, data, source, prefix="")
    return config


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return config_to_json(value)
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _dataclass(cls: Any, data: Any, source: str, prefix: str) -> Any:
    if not isinstance(data, Mapping):
        raise UserError(f"{source}: {prefix.rstrip('.') or 'the whole'} is not an object: {data!r}")
    hints = get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cls)}
    for word, odd in (("unknown", set(data) - names), ("missing", names - set(data))):
        if odd:
            fields = ", ".join(prefix + name for name in sorted(odd))
            raise UserError(f"{source}: {word} field {fields} (written by another version?)")
    values = {name: _value(hints[name], data[name], source, prefix + name) for name in names}
    return cls(**values)


def _value(hint: Any, value: Any, source: str, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, source, name + ".")
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        hint = next(arg for arg in args if arg is not type(None))
        return _value(hint, value, source, name)
    if origin is Literal:
        if value in args:
            return value
        raise UserError(f"{source}: {name} is {value!r}, not one of {', '.join(map(repr, args))}")
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if args[1:] == (...,) else args
        if len(kinds) == len(value):
            return tuple(_value(k, v, source, name) for k, v in zip(kinds, value, strict=True))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise UserError(f"{source}: {name} is {value!r}, not {getattr(hint, '__name__', hint)}")
