# SPDX-License-Identifier: Apache-2.0
"""References in the settings of a stage: `${env:NAME}`, `${env:NAME:-default}`, `${secrets:NAME}`, `${matrix:NAME}`.

They stay as they are written in everything that is recorded, and are filled in where the stage is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from open_autoglm.errors import ConfigurationError
from open_autoglm.pipeline.secrets import SecretStore
from open_autoglm.spelling import did_you_mean

KINDS: Final = ("env", "secrets", "matrix")
_REFERENCE: Final = re.compile(r"\$(\$)?\{([^{}]*)\}")

Place = tuple[str | int, ...]
Lookup = Callable[[str], Any]


@dataclass(frozen=True)
class Reference:
    """One reference, and where in the settings it is."""

    place: Place
    kind: str
    name: str


def references_in(value: Any, place: Place = ()) -> Iterator[Reference]:
    """All references in a JSON value."""
    if isinstance(value, str):
        for escaped, body in _REFERENCE.findall(value):
            if not escaped:
                kind, _, name = body.partition(":")
                yield Reference(place, kind, name)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from references_in(item, (*place, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from references_in(item, (*place, index))


def fill(value: Any, sources: Mapping[str, Lookup], *, last: bool = False) -> Any:
    """The JSON value with the references of these kinds filled in, and others left as they are.

    A text that is one reference and nothing else becomes what it refers to, whatever its type. last: unescape `$${`.
    """
    if isinstance(value, str):
        whole = _REFERENCE.fullmatch(value)
        if whole and not whole.group(1):
            kind, _, name = whole.group(2).partition(":")
            if kind in sources:
                return sources[kind](name)
        return _REFERENCE.sub(lambda found: _replace(found, sources, last), value)
    if isinstance(value, Mapping):
        return {key: fill(item, sources, last=last) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [fill(item, sources, last=last) for item in value]
    return value


def _replace(found: re.Match[str], sources: Mapping[str, Lookup], last: bool) -> str:
    if found.group(1):
        return found.group(0)[1:] if last else found.group(0)
    kind, _, name = found.group(2).partition(":")
    return str(sources[kind](name)) if kind in sources else found.group(0)


def outside_sources(environment: Mapping[str, str], secrets: SecretStore) -> dict[str, Lookup]:
    """The kinds of references whose values come from outside the file."""

    def variable(name: str) -> str:
        name, given, default = name.partition(":-")
        value = environment.get(name, default if given else None)
        if value is None:
            raise ConfigurationError(
                f"the environment variable {name} is not set; set it, or write ${{env:{name}:-default}}"
            )
        secrets.redactor.hide_password(value)
        return value

    return {"env": variable, "secrets": secrets.get}


def unknown_kind(reference: Reference) -> str | None:
    """What is wrong with a reference of no known kind."""
    if reference.kind in KINDS:
        return None
    return f"${{{reference.kind}:...}} is no reference" + did_you_mean(reference.kind, KINDS)
