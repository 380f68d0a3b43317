# SPDX-License-Identifier: Apache-2.0
"""The process in which a plugin is tried: the request on stdin, the answer on the descriptor that it is given."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from open_autoglm.plugins.conformance import check_behaviour, check_interface
from open_autoglm.plugins.discovery import Plugin
from open_autoglm.plugins.loading import DirectLoader


def main(arguments: list[str]) -> int:
    """Try the plugin that stdin describes; whatever happens is the answer. DESCRIPTOR is where it goes."""
    descriptor = int(arguments[0])
    os.set_inheritable(descriptor, False)
    request = json.loads(sys.stdin.read())
    sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 - for as long as we live
    answer: dict[str, Any]
    try:
        plugin = Plugin(
            **{**request["plugin"], "folder": request["plugin"]["folder"] and Path(request["plugin"]["folder"])}
        )
        made = check_interface(plugin.kind, DirectLoader().load(plugin))
        tried = check_behaviour(plugin.kind, made, request["check_config"]) if request["behaviour"] else []
        suffixes = list(made.suffixes) if plugin.kind == "reader" else []
        answer = {"tried": tried, "fault": None, "suffixes": suffixes}
    except BaseException as error:  # noqa: BLE001 - SystemExit in a plugin is a fault like any other
        from open_autoglm.errors import OpenAutoGLMError

        known = isinstance(error, OpenAutoGLMError)
        answer = {"tried": [], "suffixes": [], "fault": str(error) if known else f"{type(error).__name__}: {error}"}
    os.write(descriptor, json.dumps(answer).encode())
    sys.stdout.flush()
    os._exit(0)  # a thread that the plugin left behind must not hold us


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
