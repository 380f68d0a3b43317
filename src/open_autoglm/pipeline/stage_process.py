# SPDX-License-Identifier: Apache-2.0
"""The process of one stage attempt, under its guard.

It is told what to do by `request.json` in the stage's folder, and answers with `output.json` or `failure.json`, each
written whole or not at all.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import PipelineError, StorageError
from open_autoglm.pipeline.context import FAILURE_NAME, OUTPUT_NAME, REQUEST_NAME, StageContext
from open_autoglm.pipeline.events import EventLog
from open_autoglm.pipeline.guard import run_guarded
from open_autoglm.pipeline.invocation import AttemptLog, describe_error, restore_environment
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stage import load_target, make_stage, packets_of
from open_autoglm.storage import read_json, write_json

_LINGER_SECONDS: Final = 10.0


def main(arguments: list[str]) -> int:
    """Run one attempt: MODULE:ATTRIBUTE, the stage's folder, and the numbers of the life pipe and the exit pipe.

    Returns the exit code of this process, which is the worker's or 128 + the signal that ended it.
    """
    target, folder, life, exits = arguments[0], Path(arguments[1]), int(arguments[2]), int(arguments[3])
    return run_guarded(lambda: _work(target, folder), life, exits)


def _work(target: str, folder: Path) -> int:
    request = read_json(folder / REQUEST_NAME)
    restore_environment(request["environment"])
    log = AttemptLog(request["stage"], folder / f"attempt-{request['attempt']}.log")
    try:
        packet = Packet.from_dict(request["packet"])
        run_folder = Path(request["folder"])
        context = StageContext(
            folder=run_folder,
            stage=request["stage"],
            config=request["config"],
            attempt=request["attempt"],
            idempotency_key=request["idempotency_key"],
            deadline=request["deadline"],
            log=log,
            events=EventLog(run_folder),
        )
        stage = make_stage(_loaded(target), request["config"])
        results = list(packets_of(stage.invoke(packet, context), packet, context.stage))
        if len(results) != 1:
            raise PipelineError(f"stage '{context.stage}' returned {len(results)} packets; here it must be one")
        content = {"idempotency_key": context.idempotency_key, "packet": results[0].to_dict()}
        write_json(folder / OUTPUT_NAME, content)
    except Exception as error:  # noqa: BLE001 - whatever it is, the runner decides what becomes of it
        log.error("the attempt failed\n%s", traceback.format_exc())
        _end_soon()
        try:
            write_json(folder / FAILURE_NAME, {"attempt": request["attempt"], **describe_error(error)})
        except StorageError:
            return StorageError.exit_code  # all that can be said on a full disk
        return 1
    _end_soon()
    return 0


def _loaded(target: str) -> Any:
    """The code of the stage. What its import makes stays as long as this process.

    So the garbage collector is kept from going over it, which takes a fifth of the time of importing PyTorch.
    """
    gc.disable()
    try:
        return load_target(target)
    finally:
        gc.freeze()
        gc.enable()


def _end_soon() -> None:
    """The result is safe on disk: a thread or exit handler of the stage that hangs must not hold the run."""

    def end() -> None:
        time.sleep(_LINGER_SECONDS)
        os._exit(0)

    threading.Thread(target=end, name="end-soon", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
