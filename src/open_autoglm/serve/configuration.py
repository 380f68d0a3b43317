# SPDX-License-Identifier: Apache-2.0
"""The settings of a server from a YAML file, the environment and flags, each stronger than the one before."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, get_type_hints
from urllib.parse import urlsplit, urlunsplit

import yaml

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.option_fields import Option, options_of
from open_autoglm.serve.settings import API_KEY_VARIABLE, VARIABLE_PREFIX, ServeSettings
from open_autoglm.storage import explained
from open_autoglm.yaml_document import find_unbounded

DEFAULT_ORIGIN: Final = "default"
_MAX_FILE: Final = 1024 * 1024
_BOOLEANS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_NULLS: Final = ("", "null", "none")
_HIDDEN: Final = "***"


@dataclass(frozen=True)
class _Given:
    """A value as somebody wrote it, and where."""

    value: Any
    where: str


@dataclass(frozen=True)
class Configuration:
    """Settings, and for each by its path where it comes from: a file's line, a variable, a flag, or the default."""

    settings: ServeSettings
    origins: Mapping[tuple[str, ...], str] = field(default_factory=dict)

    def as_yaml(self) -> str:
        """The settings as a file for `--config`, each with where it comes from; secrets are not shown.

        Its first line says which routes ask for no key.
        """
        from open_autoglm.serve.guards.authentication import (
            METRICS_ROUTE,
            PUBLIC_ROUTES,  # these load much that a command line need not
        )
        from open_autoglm.serve.pipelines.pipelines_page import PAGE_PATH
        from open_autoglm.serve.routes.playground_route import PLAYGROUND_PREFIX

        rows: list[tuple[str, str]] = []
        section: tuple[str, ...] = ()
        for item in options_of(ServeSettings):
            if item.path[:-1] != section:
                section = item.path[:-1]
                rows.append((f"{'.'.join(section)}:", ""))
            text = f"{'  ' * len(section)}{item.name}: {_shown(item, item.of(self.settings))}"
            rows.append((text, f"# {self.origins.get(item.path, DEFAULT_ORIGIN)}"))
        width = max(len(text) for text, origin in rows if origin)
        public = [route for route in PUBLIC_ROUTES if not route.startswith((PLAYGROUND_PREFIX, PAGE_PATH))]
        public.append(PLAYGROUND_PREFIX + "*")
        if self.settings.pipelines.pipelines is not None:
            public += [PAGE_PATH, f"{PAGE_PATH}/*"]
        if self.settings.watching.metrics_public:
            public.append(METRICS_ROUTE)
        head = f"# without a key answer, to GET and HEAD: {' '.join(public)}"
        return "\n".join((head, *(f"{text:<{width}}  {origin}".rstrip() for text, origin in rows))) + "\n"


def configure(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any] | None = None
) -> Configuration:
    """Put settings together.

    file: YAML, its keys the names of the settings within their sections. environment: where names that begin with
    `OPEN_AUTOGLM_SERVE_` are settings. flags: by name, only those that were given.
    Raises ConfigurationError that says what is wrong, where, and what may have been meant.
    """
    options = list(options_of(ServeSettings))
    given: dict[tuple[str, ...], _Given] = {}
    if file is not None:
        given |= _read_file(file, options)
    given |= _read_environment(environment, options)
    by_name = {item.name: item for item in options}
    for name, value in (flags or {}).items():
        given[by_name[name].path] = _Given(value, by_name[name].flag)
    values: dict[tuple[str, ...], Any] = {
        item.path: _convert(item, given[item.path]) for item in options if item.path in given
    }
    settings = _build(ServeSettings, (), values)
    return Configuration(settings, {path: item.where for path, item in given.items()})


def _build(kind: type[Any], path: tuple[str, ...], values: Mapping[tuple[str, ...], Any]) -> Any:
    """The dataclass with the values that lie below the path."""
    arguments: dict[str, Any] = {}
    for name, hint in _sections(kind).items():
        if any(key[: len(path) + 1] == (*path, name) for key in values):
            arguments[name] = _build(hint, (*path, name), values)
    arguments |= {key[-1]: value for key, value in values.items() if key[:-1] == path}
    return kind(**arguments)


def _sections(kind: type[Any]) -> dict[str, type[Any]]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind) if is_dataclass(hints[item.name])}


def _convert(item: Option, given: _Given) -> Any:
    """A value in the setting's type, from a type of YAML's, from text, or already right."""
    value, where = given.value, given.where
    if value is None or (isinstance(value, str) and item.kind is not str and value.lower() in _NULLS):
        if item.optional:
            return None
        raise ConfigurationError(f"{where}: {item.name} needs a value")
    if item.kind is tuple:
        found: Any = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(found, list | tuple) or not all(isinstance(part, str) for part in found):
            raise ConfigurationError(f"{where}: {item.name} must be a list of texts; put them in quotes")
        return tuple(part for part in found if part)
    if item.kind is bool:
        found = _BOOLEANS.get(value.lower()) if isinstance(value, str) else value
        if isinstance(found, bool):
            return found
        raise ConfigurationError(f"{where}: {item.name} must be true or false, not {_short(value)}")
    if item.kind is str:
        if isinstance(value, str):
            return value
        raise ConfigurationError(f"{where}: {item.name} must be text; put {_short(value)} in quotes")
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        if item.kind is int:
            number: int | float = int(value)
            is_exact = isinstance(value, str) or number == value
        else:
            number = float(value)
            is_exact = not math.isnan(number)
        if not is_exact:
            raise ValueError
    except (ValueError, OverflowError):
        what = "a whole number" if item.kind is int else "a number"
        raise ConfigurationError(f"{where}: {item.name} must be {what}, not {_short(value)}") from None
    return number


def _read_environment(environment: Mapping[str, str], options: Sequence[Option]) -> dict[tuple[str, ...], _Given]:
    by_variable = {VARIABLE_PREFIX + item.name.upper(): item for item in options}
    by_variable[API_KEY_VARIABLE] = next(item for item in options if item.name == "api_key")
    found: dict[tuple[str, ...], _Given] = {}
    for name, value in sorted(environment.items()):
        item = by_variable.get(name)
        if item is not None:
            found[item.path] = _Given(value, name)
        elif name.startswith(VARIABLE_PREFIX):
            raise ConfigurationError(f"there is no setting {name}{_meant(name, by_variable)}")
    return found


def _read_file(path: Path, options: Sequence[Option]) -> dict[tuple[str, ...], _Given]:
    with explained(path, "read"), path.open("rb") as file:
        content = file.read(_MAX_FILE + 1)
    if len(content) > _MAX_FILE:
        raise ConfigurationError(f"{path} is larger than {_MAX_FILE} bytes, which is no configuration")
    try:
        text = content.decode("utf-8-sig")
        fault = find_unbounded(text)
        if fault is not None:
            mark, what = fault
            raise ConfigurationError(
                f"{path}:{mark.line + 1}: this is no YAML of settings: it is nested too deep"
                if what == "depth"
                else f"{path}: anchors and aliases (& and *) are not taken here; write the values out"
            )
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise ConfigurationError(f"{path}{line}: this is not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not valid YAML: {_short(str(error))}") from None
    found: dict[tuple[str, ...], _Given] = {}
    if root is not None:
        _read_section(path, root, (), {item.path: item for item in options}, found)
    return found


def _read_section(
    path: Path,
    node: yaml.Node,
    section: tuple[str, ...],
    options: Mapping[tuple[str, ...], Option],
    found: dict[tuple[str, ...], _Given],
) -> None:
    where = f"{path}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
        return
    if not isinstance(node, yaml.MappingNode):
        name = f"the section {section[-1]}" if section else "the file"
        raise ConfigurationError(f"{where}: {name} must be lines of NAME: VALUE")
    names = {key[len(section)] for key in options if key[: len(section)] == section}
    seen: set[str] = set()
    for key_node, value_node in node.value:
        where = f"{path}:{key_node.start_mark.line + 1}"
        name = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
        if name in seen:
            raise ConfigurationError(f"{where}: {name} is given twice")
        seen.add(name)
        key = (*section, name)
        if key in options:
            found[key] = _Given(_plain(value_node, options[key], where), where)
        elif name in names:
            _read_section(path, value_node, key, options, found)
        else:
            elsewhere = [".".join(item) for item in options if item[-1] == name]
            hint = f"; it belongs to {elsewhere[0]}" if elsewhere else _meant(name, names)
            raise ConfigurationError(f"{where}: there is no setting {_short('.'.join(key))}{hint}")


def _plain(node: yaml.Node, item: Option, where: str) -> Any:
    """A scalar, or a list of them, in YAML's own types."""
    if isinstance(node, yaml.SequenceNode) and item.kind is tuple:
        return [_plain(inner, item, where) for inner in node.value]
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigurationError(f"{where}: {item.name} takes {'a list' if item.kind is tuple else 'one value'}")
    loader = yaml.SafeLoader("")
    try:
        value = loader.construct_object(node)
    except (yaml.YAMLError, ValueError):
        raise ConfigurationError(f"{where}: {item.name}: {_short(node.value)} is not a value") from None
    finally:
        loader.dispose()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ConfigurationError(f"{where}: {item.name} takes text or a number; put {_short(node.value)} in quotes")


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(known))}"


def _shown(item: Option, value: Any) -> str:
    if item.secret and value is not None:
        return json.dumps(_HIDDEN)
    if isinstance(value, tuple):
        return json.dumps(list(value), ensure_ascii=False)
    if isinstance(value, str):
        return json.dumps(_without_password(value), ensure_ascii=False)
    return json.dumps(value)


def _without_password(value: str) -> str:
    """A URL without what its user must know; any other text as it is."""
    if not re.match(r"[a-z]+://", value):
        return value
    parts = urlsplit(value)
    if parts.password is None and parts.username is None:
        return value
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{_HIDDEN}@{host}"))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
