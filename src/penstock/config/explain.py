"""What a setting means, for `penstock config --explain section.key` and for error messages."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from penstock.config.errors import ConfigError, nearest
from penstock.config.load import walk_settings

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def allowed_range(field: Any) -> str:
    """The allowed values of a field in words, such as 'number, above 0.0, at most 10.0'."""
    return _range(field.annotation, field.metadata)


def _range(kind: Any, metadata: list[Any]) -> str:
    if get_origin(kind) is Literal:
        values = get_args(kind)
        return ("one of " if len(values) > 1 else "") + ", ".join(repr(value) for value in values)
    if get_origin(kind) in (Union, UnionType):
        return ", or ".join(_range(member, metadata) for member in get_args(kind))
    if get_origin(kind) is Annotated:
        return _range(kind.__origin__, [*kind.__metadata__, *metadata])
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    words = [names.get(kind, getattr(kind, "__name__", str(kind)))]
    for rule in _flat(metadata):
        words += [f"{phrase} {getattr(rule, bound)}" for bound, phrase in _BOUNDS.items() if getattr(rule, bound, None) is not None]
        if getattr(rule, "pattern", None):
            words.append(f"matching {rule.pattern}")
    return ", ".join(words)


def explain(key: str) -> str:
    """Documentation of one setting, or of all settings of a section; raises `ConfigError` if unknown."""
    settings = dict(walk_settings())
    chosen = {name: field for name, field in settings.items() if name == key or name.startswith(key + ".")}
    if not chosen:
        raise ConfigError(f"unknown setting '{key}'{nearest(key, settings)}; `penstock config` lists all settings")
    return "\n\n".join(_entry(name, field) for name, field in chosen.items())


def _entry(name: str, field: Any) -> str:
    return f"{name}\n  {field.description}\n  Allowed: {allowed_range(field)}.  Default: {field.default!r}."


def _flat(metadata: list[Any]) -> list[Any]:
    found: list[Any] = []
    for item in metadata:
        found.extend(getattr(item, "metadata", [item]))
    return found
