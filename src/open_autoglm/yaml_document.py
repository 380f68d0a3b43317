# SPDX-License-Identifier: Apache-2.0
"""YAML as plain values that know their lines and columns, so that a message can say where a setting is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from open_autoglm.errors import ConfigurationError

_MAX_BYTES: Final = 1024 * 1024
_MAX_DEPTH: Final = 32
_PLAIN_TAGS: Final = ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")

Place = tuple[str | int, ...]
"""The keys and list indices that lead to a value."""


@dataclass(frozen=True)
class YamlDocument:
    """value: dictionaries with text keys, lists and scalars. lines, columns: of each value, counted from 1.

    A value of a mapping is where its key is.
    """

    path: Path
    value: Any
    lines: dict[Place, int]
    columns: dict[Place, int] = field(default_factory=dict)

    def fault(self, place: Place, message: str) -> ConfigurationError:
        """The error that says the file, the line and the field."""
        known = self.known(place)
        name = ".".join(str(part) for part in place)
        return ConfigurationError(f"{self.path}, line {self.lines[known]}: {f'{name}: ' if name else ''}{message}")

    def known(self, loc: Place) -> Place:
        """The deepest value that a path leads to, parts that are no key of the file passed over."""
        place: Place = ()
        for part in loc:
            if (*place, part) in self.lines:
                place = (*place, part)
        return place

    def position(self, loc: Place) -> tuple[int, int]:
        """Line and column of the deepest value that a path leads to."""
        known = self.known(loc)
        return self.lines[known], self.columns.get(known, 1)


class YamlSyntaxError(ConfigurationError):
    """A file that cannot be read as YAML. line, column: counted from 1, None where that has no sense."""

    def __init__(self, path: Path, line: int | None, column: int | None, reason: str) -> None:
        where = "" if line is None else f", line {line}"
        super().__init__(f"{path}{where}: {reason}")
        self.path, self.line, self.column, self.reason = path, line, column, reason


def read_yaml(path: Path) -> YamlDocument:
    """Read a file of at most 1 MiB. Nothing in it is executed.

    Raises ConfigurationError, with the line, for what is not YAML, for a key that comes twice or is no text, and for
    anchors and aliases, by which a small file grows without bound.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    if len(data) > _MAX_BYTES:
        raise ConfigurationError(f"{path} has more than {_MAX_BYTES} bytes, more than a file of settings has")
    return parse_yaml(data, path)


def parse_yaml(data: bytes | str, path: Path) -> YamlDocument:
    """`read_yaml` of what is in memory already. path: what to call it in an error."""
    try:
        fault = find_unbounded(data)
        if fault is not None:
            mark, what = fault
            reason = "this is nested too deep" if what == "depth" else "anchors and aliases are not taken"
            raise _marked(path, mark, reason)
        loader = yaml.SafeLoader(data)
        try:
            node = loader.get_single_node()
            document = YamlDocument(path, None, {(): 1}, {(): 1})
            value = None if node is None else _value(loader, node, (), document)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or "this is not YAML"
        raise (YamlSyntaxError(path, None, None, reason) if mark is None else _marked(path, mark, reason)) from None
    except (UnicodeDecodeError, ValueError) as error:
        raise ConfigurationError(f"{path} is not YAML: {error}") from None
    return YamlDocument(path, value, document.lines, document.columns)


def find_unbounded(data: bytes | str) -> tuple[yaml.Mark, Literal["depth", "alias"]] | None:
    """Where a text first nests too deep or repeats a part by its name, by which a small file grows without bound.

    To be asked before anything is made of the text: PyYAML's time grows with the square of the depth.
    Raises yaml.YAMLError for what is not YAML up to there.
    """
    depth = 0
    for event in yaml.parse(data, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            return event.start_mark, "depth"
        if isinstance(event, yaml.AliasEvent):
            return event.start_mark, "alias"
    return None


def _marked(path: Path, mark: yaml.Mark, reason: str) -> YamlSyntaxError:
    return YamlSyntaxError(path, mark.line + 1, mark.column + 1, reason)


def _value(loader: yaml.SafeLoader, node: yaml.Node, place: Place, document: YamlDocument) -> Any:
    document.lines[place] = node.start_mark.line + 1
    document.columns[place] = node.start_mark.column + 1
    if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN_TAGS:
        raise _marked(document.path, node.start_mark, f"the tag {node.tag[:80]} is not taken")
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*place, index), document) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise _marked(document.path, key_node.start_mark, "a name must be text; put it in quotes")
        if key in values:
            raise _marked(document.path, key_node.start_mark, f"'{key}' comes twice")
        values[key] = _value(loader, value_node, (*place, key), document)
        document.lines[(*place, key)] = key_node.start_mark.line + 1
        document.columns[(*place, key)] = key_node.start_mark.column + 1
    return values
