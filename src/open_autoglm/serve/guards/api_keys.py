# SPDX-License-Identifier: Apache-2.0
"""The file of API keys: who each key is for and what it may do, with a digest in place of the key itself."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import ConfigurationError
from open_autoglm.storage import explained, write_private

SCOPES: Final = ("chat", "embed", "classify", "tokenize", "models", "metrics", "pipelines", "admin")
"""What a key can be good for; `admin` is every route that has no scope of its own."""
DEFAULT_SCOPES: Final = ("chat", "embed", "classify", "tokenize", "models")
KEY_PREFIX: Final = "oag-"
"""What a key of ours begins with, so that a leaked one is recognised by those who scan for such things."""
_SECRET_BYTES: Final = 32
_MAX_FILE: Final = 16 * 1024 * 1024
_VERSION: Final = 1


@dataclass(frozen=True)
class KeyLimits:
    """A key's own limits; none leaves the server's."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_day: int | None = None


@dataclass(frozen=True)
class ApiKey:
    """One key. sha256: of the key, in hexadecimal digits. models: none means all. expires: seconds since 1970."""

    id: str
    name: str
    sha256: str
    created: int
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    models: tuple[str, ...] | None = None
    expires: int | None = None
    limits: KeyLimits = KeyLimits()

    def is_valid_at(self, now: float) -> bool:
        """Whether the key has not expired."""
        return self.expires is None or now < self.expires


def digest_of_key(key: str) -> str:
    """What is kept of a key.

    One SHA-256 is enough: the keys are 256 random bits made by us, so there is nothing to guess from the digest, and
    the slow, salted hashes that passwords need would only cost each request milliseconds.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys in a file.

    Raises ConfigurationError for a file that others may read or change, or that is not a key file, with the entry and
    field at fault; StorageError when it cannot be read.
    """
    with explained(path, "read"), path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"--api-keys: {path} is not a file")
        if status.st_mode & 0o077:
            raise ConfigurationError(f"--api-keys: others can read {path}; protect it with: chmod 600 {path}")
        content = file.read(_MAX_FILE + 1)
    if len(content) > _MAX_FILE:
        raise ConfigurationError(f"--api-keys: {path} is larger than {_MAX_FILE} bytes")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise ConfigurationError(
            f"--api-keys: {path} is not valid JSON; `open-autoglm keys` writes such files"
        ) from None
    if not isinstance(value, dict) or value.get("version") != _VERSION or not isinstance(value.get("keys"), list):
        raise ConfigurationError(f"--api-keys: {path} is not a key file; `open-autoglm keys` writes such files")
    keys = tuple(_parse(entry, f"--api-keys: {path}: key {index}") for index, entry in enumerate(value["keys"], 1))
    for field in ("id", "sha256"):
        if len({getattr(key, field) for key in keys}) != len(keys):
            raise ConfigurationError(f"--api-keys: {path}: two keys have the same {field}")
    return keys


def write_keys(path: Path, keys: Sequence[ApiKey]) -> None:
    """Replace the file, readable by its owner only; a folder that has to be made is the owner's only too.

    Raises StorageError when the disk refuses.
    """
    value = {"version": _VERSION, "keys": [asdict(key) for key in keys]}
    write_private(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def create_key(
    keys: Sequence[ApiKey],
    name: str,
    now: float,
    *,
    scopes: Sequence[str] = DEFAULT_SCOPES,
    models: Sequence[str] | None = None,
    days: float | None = None,
    limits: KeyLimits | None = None,
) -> tuple[str, ApiKey]:
    """Make a key. Returns the key itself, which is kept nowhere, and what a file keeps of it.

    days: until it expires. Raises ConfigurationError for a name, scope or limit that cannot be.
    """
    secret = KEY_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    taken = {key.id for key in keys}
    identity = next(item for item in iter(lambda: secrets.token_hex(4), None) if item not in taken)
    entry: dict[str, Any] = {
        "id": identity,
        "name": name,
        "sha256": digest_of_key(secret),
        "created": int(now),
        "scopes": list(dict.fromkeys(scopes)),
        "models": None if models is None else list(dict.fromkeys(models)),
        "expires": None if days is None else int(now + days * 86_400),
        "limits": asdict(limits or KeyLimits()),
    }
    return secret, _parse(entry, "the key")


def revoke_key(keys: Sequence[ApiKey], which: str) -> tuple[tuple[ApiKey, ...], ApiKey]:
    """The keys without one, which is named by its id or its name, and that one.

    Raises ConfigurationError when none or several are meant.
    """
    found = [key for key in keys if key.id == which] or [key for key in keys if key.name == which]
    if not found:
        raise ConfigurationError(f"there is no key with the id or name '{which}'; `open-autoglm keys list` shows them")
    if len(found) > 1:
        ids = ", ".join(key.id for key in found)
        raise ConfigurationError(f"{len(found)} keys are named '{which}'; give the id of one: {ids}")
    return tuple(key for key in keys if key is not found[0]), found[0]


def limits_over(own: KeyLimits, general: KeyLimits) -> KeyLimits:
    """A key's limits, with the server's where it has none."""
    return KeyLimits(
        *(
            general_limit if own_limit is None else own_limit
            for own_limit, general_limit in (
                (own.requests_per_minute, general.requests_per_minute),
                (own.tokens_per_minute, general.tokens_per_minute),
                (own.requests_per_day, general.requests_per_day),
                (own.tokens_per_day, general.tokens_per_day),
            )
        )
    )


def _parse(entry: Any, where: str) -> ApiKey:
    if not isinstance(entry, dict):
        raise ConfigurationError(f"{where} is not an object")
    unknown = sorted(set(entry) - set(ApiKey.__dataclass_fields__))
    if unknown:
        raise ConfigurationError(f"{where} has the unknown field '{unknown[0]}'")
    for field in ("id", "name"):
        value = entry.get(field)
        if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 200:
            raise ConfigurationError(f"{where}: {field} must be printable text of 1 to 200 characters")
    digest = entry.get("sha256")
    if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ConfigurationError(f"{where}: sha256 must be 64 hexadecimal digits")
    scopes = _texts(entry.get("scopes", list(DEFAULT_SCOPES)), f"{where}: scopes")
    for scope in scopes:
        if scope not in SCOPES:
            raise ConfigurationError(f"{where}: there is no scope '{scope}'; scopes are {', '.join(SCOPES)}")
    models = entry.get("models")
    expires = entry.get("expires")
    try:
        if expires is not None:
            datetime.datetime.fromtimestamp(_number(expires, f"{where}: expires"), datetime.UTC)
    except (OverflowError, OSError, ValueError):
        raise ConfigurationError(f"{where}: expires is further away than dates go") from None
    return ApiKey(
        id=entry["id"],
        name=entry["name"],
        sha256=digest,
        created=_number(entry.get("created"), f"{where}: created"),
        scopes=scopes,
        models=None if models is None else _texts(models, f"{where}: models"),
        expires=expires,
        limits=_limits(entry.get("limits", {}), f"{where}: limits"),
    )


def _limits(value: Any, where: str) -> KeyLimits:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where} must be an object")
    unknown = sorted(set(value) - set(KeyLimits.__dataclass_fields__))
    if unknown:
        raise ConfigurationError(f"{where}: there is no limit '{unknown[0]}'")
    for name, limit in value.items():
        if limit is not None and _number(limit, f"{where}: {name}") < 1:
            raise ConfigurationError(f"{where}: {name} would refuse everything; give 1 or more")
    return KeyLimits(**value)


def _number(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"{where} must be a whole number that is not negative")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value) or not value:
        raise ConfigurationError(f"{where} must be a list of names that is not empty")
    return tuple(value)


def edit_keys(path: Path, change: Callable[[tuple[ApiKey, ...]], Sequence[ApiKey]]) -> None:
    """Change the file while no other process does; a file that is not there yet is one without keys.

    Raises what `read_keys`, `write_keys` and `change` raise; the file is then as it was.
    """
    lock = path.with_name(f".{path.name}.lock")
    with explained(path, "write"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        write_keys(path, change(read_keys(path) if path.exists() else ()))
    finally:
        os.close(descriptor)
