# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm plugin`: list, switch, begin and check plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from open_autoglm.cli.output import print_json, print_line, print_table
from open_autoglm.cli.pipeline_options import JsonOption
from open_autoglm.errors import ConfigurationError
from open_autoglm.plugins.interfaces import KINDS

NameArgument = Annotated[str, typer.Argument(help="A plugin's name, or kind.name where two have it.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    plugin = typer.Typer(
        name="plugin",
        help="List, enable, disable, make and check plugins.",
        no_args_is_help=True,
        epilog="Example: `open-autoglm plugin new cleaner tidy`, then `open-autoglm plugin enable tidy`",
    )
    plugin.command(name="list")(list_command)
    plugin.command(name="enable")(enable_command)
    plugin.command(name="disable")(disable_command)
    plugin.command(name="new")(new_command)
    plugin.command(name="check")(check_command)
    app.add_typer(plugin)


def list_command(as_json: JsonOption = False) -> None:
    """List every plugin that is found: name, kind, version, path and state."""
    from open_autoglm.plugins.registry import PluginRegistry

    rows: list[dict[str, Any]] = [
        {
            "name": one.plugin.name,
            "kind": one.plugin.kind,
            "version": one.plugin.version,
            "path": one.plugin.origin,
            "state": one.state,
            "reason": one.reason,
        }
        for one in PluginRegistry().statuses()
    ]
    if as_json:
        print_json({"plugins": rows})
        return
    if not rows:
        from open_autoglm.plugins.discovery import plugin_folders

        places = " or ".join(map(str, plugin_folders()))
        print_line(f"There are no plugins: no installed package has any, and none are in {places}.")
        print_line("Begin one with: open-autoglm plugin new KIND NAME")
        return
    print_table(
        "Plugins",
        ("name", "kind", "version", "path", "state", "reason"),
        [tuple(str(value or "") for value in row.values()) for row in rows],
    )


def enable_command(name: NameArgument) -> None:
    """Switch a plugin on; it is tried first. Its code then runs with all your rights."""
    from open_autoglm.plugins.registry import PluginRegistry

    status = PluginRegistry().enable(name)
    print_line(f"{status.plugin.kind} {status.plugin.name}: enabled ({status.plugin.origin})")


def disable_command(name: NameArgument) -> None:
    """Switch a plugin off."""
    from open_autoglm.plugins.registry import PluginRegistry

    status = PluginRegistry().disable(name)
    print_line(f"{status.plugin.kind} {status.plugin.name}: disabled")


def new_command(
    kind: Annotated[
        str,
        typer.Argument(help=f"One of {', '.join(KINDS)}."),
    ],
    name: Annotated[str, typer.Argument(help="Its name: small letters, digits and '_'.")],
    folder: Annotated[Path, typer.Option(help="Where its folder goes.")] = Path("plugins"),
) -> None:
    """Begin a plugin: a folder with a manifest, code that works, and a test that passes."""
    from open_autoglm.plugins.scaffold import scaffold

    print_line(str(scaffold(kind, name, folder)))


def check_command(
    path: Annotated[Path, typer.Argument(help="A plugin's folder.")],
    seconds: Annotated[float, typer.Option(min=0.1, help="How long it may take.")] = 20.0,
    as_json: JsonOption = False,
) -> None:
    """Check a plugin's manifest, its interface and what it does, in a process of its own."""
    from open_autoglm.plugins.discovery import plugin_in
    from open_autoglm.plugins.probe import probe

    plugin = plugin_in(path)
    result = probe(plugin, behaviour=True, seconds=seconds)
    if as_json:
        print_json({"name": plugin.name, "kind": plugin.kind, "fault": result.fault, "tried": list(result.tried)})
    if result.fault is not None:
        raise ConfigurationError(f"{plugin.kind} '{plugin.name}' in {plugin.origin}: {result.fault}")
    if not as_json:
        tried = "; ".join(result.tried) or "its interface only"
        print_line(f"{plugin.kind} {plugin.name}: good: {tried}")
