# SPDX-License-Identifier: Apache-2.0
"""Which names protocols can have: the first part of their paths, which must not be one of the server's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from open_autoglm.errors import ConfigurationError

OWN_PATHS: Final = frozenset(
    (
        *("v1", "health", "ready", "metrics", "docs", "openapi", "tokenize", "detokenize", "playground", "pipelines"),
        *("hooks", "v2", "admin", "static", "favicon"),
    )
)
"""First parts of paths that the server answers itself, or may some day."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


def check_protocol_names(names: Sequence[str]) -> None:
    """Raise ConfigurationError for a name that no protocol can have, and for one that is given twice."""
    for number, name in enumerate(names):
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"--protocol {name[:100]!r} cannot name a plugin: those have small letters, digits and '_'"
            )
        if name in OWN_PATHS:
            raise ConfigurationError(
                f"--protocol {name} would cover the server's own path /{name}; give the plugin another name"
            )
        if name in names[:number]:
            raise ConfigurationError(f"--protocol {name} is given twice")


def protocol_of(path: str) -> str:
    """The first part of a request's path, which is the protocol's name if it is one's."""
    return path[1:].partition("/")[0]
