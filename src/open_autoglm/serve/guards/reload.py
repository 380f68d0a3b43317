# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: a running server reads its settings again."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Final

from open_autoglm.errors import OpenAutoGLMError
from open_autoglm.serve.guards.guard_chain import Guards
from open_autoglm.serve.guards.transport_security import ServerContext
from open_autoglm.serve.settings import ServeSettings

_NOTHING: Final = "nothing changed"

_log = logging.getLogger("open_autoglm.serve.server")


def reload_on_hangup(
    guards: Guards,
    context: ServerContext | None,
    reread: Callable[[], ServeSettings],
    reload_models: Callable[[], Awaitable[str]] | None = None,
) -> None:
    """From now on SIGHUP reads the settings again, within the running event loop.

    What cannot be used is told in the log, and the settings stay as they were. context: of TLS, whose certificate is
    read again too. reload_models: takes the models anew, and gives a line that says what came of it. Does nothing
    outside the main thread, where signals do not arrive.
    """
    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()

        async def models() -> None:
            if reload_models is not None:
                _say(await reload_models())

        def hung_up() -> None:
            _say(reload(guards, context, reread))
            task = loop.create_task(models())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        loop.add_signal_handler(signal.SIGHUP, hung_up)


def reload(guards: Guards, context: ServerContext | None, reread: Callable[[], ServeSettings]) -> str:
    """Read the settings again and take what can be taken. Returns a line that says what came of it."""
    try:
        settings = reread()
        if context is not None:
            context.load_again()
        changed, waiting = guards.reload(settings)
    except OpenAutoGLMError as error:
        return f"reload: the settings stay as they were: {error}"
    told = f"changed: {', '.join(changed)}" if changed else _NOTHING
    if waiting:
        told += f"; needs a restart: {', '.join(waiting)}"
    return f"reload: {told}; the keys and certificates were read again"


def _say(line: str) -> None:
    _log.info("%s", line)
