"""Reading configurations: TOML files, presets by name, dotted `--set`, and back to TOML.

`load_config("configs/small.toml", ["optim.lr=3e-4"])` is all a caller needs. Unknown keys are refused with
the nearest valid one, wrong values with what is allowed; see `schema.py` for the settings themselves.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from penstock.config.errors import ConfigError, UserError, nearest
from penstock.config.schema import Config
from penstock.config.section import Section


def load_config(path: str | Path | None = None, sets: Iterable[str] = ()) -> Config:
    """Read a TOML file or a preset's name, apply `section.key=value` strings, and check the whole.

    Raises `UserError` for a missing or malformed file and `ConfigError` for a wrong setting.
    """
    tree = read_toml(path) if path is not None else {}
    for assignment in sets:
        apply_set(tree, assignment)
    return parse_config(tree, source=str(path) if path is not None else "--set")


def parse_config(tree: dict[str, Any], source: str = "config") -> Config:
    """Check a nested dictionary against the schema; raise `ConfigError` with the mend."""
    refuse_unknown(tree, Config, source)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(dict.fromkeys(_sentence(e, source) for e in error.errors()))) from None


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """Return a copy of `config` with dotted settings replaced, checked again as a whole."""
    tree = config.tree()
    for key, value in values.items():
        _assign(tree, key, value)
    return parse_config(tree, source="setting")


def read_toml(path: str | Path) -> dict[str, Any]:
    """Parse a TOML file, or the preset of that name shipped with the package."""
    file = Path(path)
    if not file.is_file() and file.parent == Path("."):
        preset = preset_dir() / f"{file.stem}.toml"
        file = preset if preset.is_file() else file
    if file.is_dir():
        raise UserError(f"{path} is a folder, not a TOML file; name the file in it")
    if not file.is_file():
        names = ", ".join(preset_names())
        raise UserError(f"config file {path} does not exist{nearest(file.stem, preset_names())}; give a TOML file or one of the presets: {names}")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def preset_dir() -> Path:
    """Folder of the presets (in a source checkout a link to `configs/`)."""
    return Path(str(resources.files("penstock"))) / "presets"


def preset_names() -> list[str]:
    """Names of the presets, sorted."""
    return sorted(p.stem for p in preset_dir().glob("*.toml"))


def apply_set(tree: dict[str, Any], assignment: str) -> None:
    """Apply one `section.key=value` to a nested dictionary; the value is TOML, or else a plain string."""
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {assignment!r} is not of the form section.key=value")
    _assign(tree, key.strip(), _toml_value(text.strip()))


def parse_sets(sets: Iterable[str]) -> dict[str, Any]:
    """`section.key=value` strings as a flat dictionary of dotted names; unknown names are refused."""
    values: dict[str, Any] = {}
    for assignment in sets:
        tree: dict[str, Any] = {}
        apply_set(tree, assignment)
        refuse_unknown(tree, Config, "--set")
        key, _, text = assignment.partition("=")
        values[key.strip()] = _toml_value(text.strip())
    return values


def refuse_unknown(tree: dict[str, Any], model: type[BaseModel], source: str, prefix: str = "") -> None:
    """Raise `ConfigError` for the first key that the schema does not know, with the nearest valid one."""
    fields = fields_of(model)
    for key, value in tree.items():
        dotted = prefix + key
        if key not in fields:
            raise ConfigError(f"{source}: unknown key '{dotted}'{_suggest(dotted, key, fields, prefix)}; `penstock config` lists all settings")
        section = section_of(fields[key])
        if section is None:
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"{source}: '{dotted}' is a section; write its keys as {dotted}.KEY, such as {dotted}.{next(iter(fields_of(section)))}")
        refuse_unknown(value, section, source, dotted + ".")


def fields_of(model: type[BaseModel]) -> dict[str, Any]:
    """Fields of a section by the name users write."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def section_of(field: Any) -> type[Section] | None:
    """The section class of a field, or None for a plain value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def walk_settings(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, field) for every plain setting of the schema."""
    for name, field in fields_of(model).items():
        section = section_of(field)
        if section is None:
            yield prefix + name, field
        else:
            yield from walk_settings(section, f"{prefix}{name}.")


def flat(config: Config) -> dict[str, Any]:
    """Every setting by its dotted name."""
    tree = config.tree()
    values = {}
    for name, _ in walk_settings():
        node: Any = tree
        for part in name.split("."):
            node = node[part]
        values[name] = node
    return values


def changed_settings(before: Config, after: Config) -> dict[str, list[Any]]:
    """Settings that differ, but for the run's name: before and after."""
    old, new = flat(before), flat(after)
    return {name: [was, new[name]] for name, was in old.items() if was != new[name] and name != "run.name"}


def to_toml(config: Config) -> str:
    """The whole configuration as TOML text that `load_config` reads back to an equal one."""
    lines: list[str] = []
    _write_table(config.tree(), "", lines)
    return "\n".join(lines).strip() + "\n"


def _write_table(tree: dict[str, Any], prefix: str, lines: list[str]) -> None:
    plain = {k: v for k, v in tree.items() if not isinstance(v, dict)}
    if plain:
        if prefix:
            lines.append(f"\n[{prefix}]")
        lines.extend(f"{key} = {_toml_text(value)}" for key, value in plain.items())
    for key, value in tree.items():
        if isinstance(value, dict):
            _write_table(value, f"{prefix}.{key}" if prefix else key, lines)


def _toml_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, leaf = dotted.split(".")
    for section in sections:
        below = tree.setdefault(section, {})
        if not isinstance(below, dict):
            raise ConfigError(f"cannot set '{dotted}': '{section}' is a value, not a section")
        tree = below
    tree[leaf] = value


def _suggest(dotted: str, key: str, fields: dict[str, Any], prefix: str) -> str:
    """The nearest key of the same section, or of any section where its last word fits better."""
    likeness = {prefix + name: _likeness(key, name) + 0.1 for name in fields}
    for name, _ in walk_settings():
        likeness.setdefault(name, max(_likeness(key, name.rpartition(".")[2]), _likeness(dotted, name)))
    best = max(likeness, key=lambda name: likeness[name])
    return f" (did you mean '{best}'?)" if likeness[best] >= 0.6 else ""


def _likeness(a: str, b: str) -> float:
    return SequenceMatcher(None, a, b).ratio()


def _sentence(error: Any, source: str) -> str:
    """Turn one pydantic error into a line with the key, the value and what is allowed."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "value_error" and not key:
        return f"{source}: {error['ctx']['error']}"
    setting = key.rpartition(".")[0]
    if setting in dict(walk_settings()):  # one of several kinds that the setting may be of
        return f"{source}: {setting} = {error['input']!r} is refused{_allowed(setting)}"
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{source}: {key} = {error['input']!r} is refused: {message}{_allowed(key)}"


def _allowed(key: str) -> str:
    from penstock.config.explain import allowed_range

    field = dict(walk_settings()).get(key)
    return f" ({allowed_range(field)})" if field is not None else ""
