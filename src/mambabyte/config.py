"""Configurations are data: frozen keyword-only dataclasses that turn into plain dicts and back.

A dict may come from TOML, JSON or the command line, so `from_dict` checks every key and every value: an unknown key is
an error that lists the known ones, a wrong type one that names the key. A base class with several kinds (the layers) is
read by its "kind" key.
"""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_KINDS: dict[type, dict[str, type]] = {}


def kind(base: type, name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: `from_dict(base, {"kind": name, ...})` builds the decorated class."""

    def register(cls: type[T]) -> type[T]:
        _KINDS.setdefault(base, {})[name] = cls
        return cls

    return register


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dict of JSON values; registered kinds carry their "kind" first."""
    tags = [name for kinds in _KINDS.values() for name, cls in kinds.items() if cls is type(config)]
    plain: dict[str, Any] = {"kind": tags[0]} if tags else {}
    return plain | {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "config") -> T:
    """Build `cls` from a nested dict; `where` names the source in errors. Raises ValueError."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected a table of keys, got {data!r}")
    data = dict(data)
    target: type = cls
    if cls in _KINDS:
        name = data.pop("kind", None)
        if name not in _KINDS[cls]:
            raise ValueError(f"{where}: kind={name!r} is not one of {', '.join(sorted(_KINDS[cls]))}")
        target = _KINDS[cls][name]
    fields = {field.name: field for field in dataclasses.fields(target)}
    for key in data:
        if key not in fields:
            raise ValueError(unknown(f"{where}: key", key, fields))
    for name, field in fields.items():
        if name not in data and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: key {name!r} is missing")
    hints = typing.get_type_hints(target)
    values = {key: _value(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    try:
        return typing.cast(T, target(**values))
    except ValueError as error:  # what the class itself checks does not know where the values come from
        raise ValueError(f"{where}: {error}") from error


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that does not exist: the nearest known name, and all of them."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{what} {name!r} does not exist; {hint}known: {', '.join(known)}"


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of(args, value, where)
    if origin is typing.Literal:
        if value not in args:
            raise ValueError(f"{where}={value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        return tuple(_value(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected a table, got {value!r}")
        return {key: _value(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint) or hint in _KINDS:
        return value if isinstance(value, typing.cast(type, hint)) else from_dict(typing.cast(type, hint), value, where)
    return _scalar(hint, value, where)


def _one_of(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in hints:
        return None
    rest = [hint for hint in hints if hint is not type(None)]
    assert len(rest) == 1, "a config field is a type or that type or None"
    return _value(rest[0], value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def load_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ValueError, naming the file and the place, if it is not valid TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a valid TOML file: {error}") from error


def load_json(path: Path, limit: int = 1 << 20) -> dict[str, Any]:
    """The object in a JSON file of at most `limit` bytes. Raises ValueError naming the file otherwise."""
    try:
        if path.stat().st_size > limit:
            raise ValueError(f"{path}: larger than {limit} bytes, which no config of ours is")
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        data = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, or an integer of thousands of digits
        raise ValueError(f"{path}: not a valid JSON file: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(data).__name__}")
    return data
