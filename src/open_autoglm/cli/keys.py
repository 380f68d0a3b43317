# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm keys`: make, list and revoke the API keys of a server."""

from __future__ import annotations

import datetime
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from open_autoglm.cli.output import print_json, print_line, print_table
from open_autoglm.serve.guards.api_keys import (
    DEFAULT_SCOPES,
    SCOPES,
    ApiKey,
    KeyLimits,
    create_key,
    edit_keys,
    read_keys,
    revoke_key,
)

_DEFAULT_FILE: Final = Path("api-keys.json")
_File = Annotated[Path, typer.Option("--file", help="The key file that `serve --api-keys` is given.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    keys = typer.Typer(
        help="Make, list and revoke the API keys of a server.",
        no_args_is_help=True,
        epilog="Example: `open-autoglm keys create alice --days 90`, then `serve ... --api-keys api-keys.json`",
    )
    keys.command(name="create")(create_command)
    keys.command(name="list")(list_command)
    keys.command(name="revoke")(revoke_command)
    app.add_typer(keys, name="keys")


def create_command(
    name: Annotated[str, typer.Argument(help="Who or what the key is for.")],
    file: _File = _DEFAULT_FILE,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help=f"What it is good for: {', '.join(SCOPES)}; again for more. Without: all but the last three."
        ),
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model that it may use; again for more.")] = None,
    days: Annotated[float | None, typer.Option(min=0.001, help="Until it expires; never if not given.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Its own limit.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Its own limit.")] = None,
    requests_per_day: Annotated[int | None, typer.Option(min=1, help="Its own quota.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(min=1, help="Its own quota.")] = None,
    as_json: _Json = False,
) -> None:
    """Make a key for NAME and print it, this once: the file keeps a digest only. A running server takes it at once."""
    made: list[tuple[str, ApiKey]] = []

    def add(keys: tuple[ApiKey, ...]) -> list[ApiKey]:
        made.append(
            create_key(
                keys,
                name,
                time.time(),
                scopes=scope or DEFAULT_SCOPES,
                models=model,
                days=days,
                limits=KeyLimits(requests_per_minute, tokens_per_minute, requests_per_day, tokens_per_day),
            )
        )
        return [*keys, made[0][1]]

    edit_keys(file, add)
    secret, key = made[0]
    if as_json:
        print_json({"key": secret, **_shown(key)})
    else:
        print_line(f"{secret}\nThis is the key {key.id} of {key.name}. It is shown this once and kept nowhere.")


def list_command(file: _File = _DEFAULT_FILE, as_json: _Json = False) -> None:
    """List the keys of a file; the keys themselves are not in it."""
    keys = read_keys(file)
    if as_json:
        print_json({"keys": [_shown(key) for key in keys]})
        return
    now = time.time()
    rows = [
        [
            key.id,
            key.name,
            " ".join(key.scopes),
            "all" if key.models is None else " ".join(key.models),
            ("" if key.is_valid_at(now) else "expired ") + _date(key.expires),
            ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in asdict(key.limits).items() if value),
        ]
        for key in keys
    ]
    print_table(str(file), ["id", "name", "scopes", "models", "expires", "limits"], rows)


def revoke_command(
    key: Annotated[str, typer.Argument(help="The key's id, or its name.")],
    file: _File = _DEFAULT_FILE,
    as_json: _Json = False,
) -> None:
    """Take KEY out of the file. A running server refuses it within a second."""
    gone: list[ApiKey] = []

    def remove(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        rest, found = revoke_key(keys, key)
        gone.append(found)
        return rest

    edit_keys(file, remove)
    if as_json:
        print_json({"revoked": _shown(gone[0])})
    else:
        print_line(f"the key {gone[0].id} of {gone[0].name} is revoked")


def _shown(key: ApiKey) -> dict[str, Any]:
    """A key without its digest, which is of no use to anybody."""
    return {name: value for name, value in asdict(key).items() if name != "sha256"}


def _date(seconds: int | None) -> str:
    if seconds is None:
        return "never"
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
