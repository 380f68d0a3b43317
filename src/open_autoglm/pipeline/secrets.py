# SPDX-License-Identifier: Apache-2.0
"""Secrets by name, and the guard that keeps their values out of everything that is written."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from open_autoglm.errors import ConfigurationError

VARIABLE_PREFIX: Final = "OPEN_AUTOGLM_SECRET_"
FOLDER_VARIABLE: Final = "OPEN_AUTOGLM_SECRETS_FOLDER"
HIDDEN: Final = "***"
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_SHORTEST: Final = 4
"""A value shorter than this is hidden only where it stands alone: hiding every `a` would hide everything."""


class SecretStore:
    """Where secrets come from: the variable OPEN_AUTOGLM_SECRET_NAME, or the file NAME in a folder of secrets.

    The folder is named by OPEN_AUTOGLM_SECRETS_FOLDER, as Docker and Kubernetes mount secrets; only the owner may be
    able to write what is in it, and nobody else to read it. Values are looked up when they are needed, and kept
    nowhere but in `redactor`.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.redactor = Redactor()

    def get(self, name: str) -> str:
        """The secret's value, which `redactor` hides from then on.

        Raises ConfigurationError when there is none, or when others can read its file.
        """
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{name!r} cannot name a secret: use letters, digits and '_'")
        value = self._environment.get(VARIABLE_PREFIX + name)
        folder = self._environment.get(FOLDER_VARIABLE)
        if value is None and folder:
            value = _read(Path(folder) / name)
        if value is None:
            raise ConfigurationError(
                f"there is no secret '{name}'; set {VARIABLE_PREFIX}{name}, or put it into a file of that name in the "
                f"folder that {FOLDER_VARIABLE} names"
            )
        self.redactor.hide(value)
        return value


class Redactor:
    """Replaces what must not be seen by `***` in texts and in JSON values."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values: set[str] = set()
        for value in values:
            self.hide(value)

    def hide(self, value: str) -> None:
        """Hide this value from now on, also as a part of longer texts, and line by line if it has several."""
        self._values.update(part for part in (value, *value.splitlines()) if part.strip())

    def hide_password(self, value: str) -> None:
        """Hide the password of a URL, if the value is one that has a password."""
        try:
            password = urlsplit(value).password
        except ValueError:
            return
        if password:
            self._values.update((password, unquote(password)))

    def text(self, text: str) -> str:
        """The text without any hidden value."""
        if text in self._values:
            return HIDDEN
        for value in sorted(self._values, key=len, reverse=True):
            if len(value) >= _SHORTEST:
                text = text.replace(value, HIDDEN)
        return text

    def json(self, value: Any) -> Any:
        """The JSON value without any hidden value, in keys neither."""
        if not self._values:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list | tuple):
            return [self.json(item) for item in value]
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.json(item) for key, item in value.items()}
        return value


def _read(path: Path) -> str | None:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            return None
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            raise ConfigurationError(f"the secret {path} can be read or written by everybody; run chmod 600 on it")
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"the secret {path} cannot be read: {reason}") from None
