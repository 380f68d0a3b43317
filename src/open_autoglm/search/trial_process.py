# SPDX-License-Identifier: Apache-2.0
"""A process that runs trials: orders come in on one pipe, what becomes of them goes out on another, as lines of JSON.

It dies with the process that started it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1
_STEP_SECONDS: Final = 0.5


def main(arguments: list[str]) -> int:
    """MODULE:FUNCTION of the bench, and the numbers of the pipes for orders and for events."""
    target, orders, events = arguments[0], int(arguments[1]), int(arguments[2])
    _die_with_parent()
    for descriptor in (orders, events):
        os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started us decides
    lines = _lines(orders)
    module, _, function = target.partition(":")
    from open_autoglm.errors import OpenAutoGLMError
    from open_autoglm.search.trial import Rung, TrialOrder, run_trial

    bench: Any = getattr(importlib.import_module(module), function)(json.loads(next(lines)))

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(events, data) :]

    def ask(rung: Rung) -> bool:
        send({"rung": rung.to_dict()})
        return bool(json.loads(next(lines)))

    marks = [0.0]

    def note(step: int, steps: int, seconds: float) -> None:
        if time.monotonic() - marks[0] >= _STEP_SECONDS:
            marks[0] = time.monotonic()
            send({"step": [step, steps, seconds]})

    try:
        for line in lines:
            order = json.loads(line)
            if "measure" in order:
                send({"rate": bench.measure(order["measure"])})
            else:
                send({"record": run_trial(bench, TrialOrder(**order), ask, note).to_dict()})
    except (BrokenPipeError, StopIteration):
        return 1  # nobody listens any more
    except OpenAutoGLMError as error:
        send({"fault": [type(error).__name__, str(error)]})
        return error.exit_code
    return 0


def _lines(descriptor: int) -> Iterator[str]:
    with os.fdopen(descriptor, encoding="utf-8") as file:
        yield from file


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
