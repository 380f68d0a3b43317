# SPDX-License-Identifier: Apache-2.0
"""What a running stage knows about itself: its folder, its settings, its attempt, and how much time is left."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from open_autoglm.pipeline.events import EventLog

REQUEST_NAME: Final = "request.json"
OUTPUT_NAME: Final = "output.json"
FAILURE_NAME: Final = "failure.json"


@dataclass(frozen=True)
class StageContext:
    """The second argument of every stage: `invoke(packet, context) -> Packet`.

    folder: the run's folder, where the stage keeps its checkpoints and results.
    stage: its name. config: its settings from the specification.
    attempt: how often it has been started in this run, from 1. More than 1 means that an earlier attempt failed or
        was cut off: go on from the stage's own checkpoint.
    idempotency_key: the same for every attempt of this stage of this run, and for no other; hand it to whatever must
        not be done twice.
    deadline: the value of `time.monotonic()` at which the attempt is stopped, None for no limit.
    log: goes to the attempt's log file in `stage_folder`, never to the terminal.
    """

    folder: Path
    stage: str
    config: dict[str, Any]
    attempt: int
    idempotency_key: str
    deadline: float | None
    log: logging.Logger = field(repr=False)
    events: EventLog = field(repr=False)

    @property
    def stage_folder(self) -> Path:
        """RUN/stages/NAME: where the pipeline keeps this stage's input, output and logs."""
        return stage_folder(self.folder, self.stage)

    def emit(self, event: Mapping[str, Any]) -> None:
        """Append a JSON object to RUN/events.jsonl; the time and the stage are added.

        A number that is not finite becomes null: a diverging loss must not end the stage that reports it.
        Raises PipelineError if it is not JSON, StorageError when the disk refuses.
        """
        self.events.append(self.stage, event)

    def seconds_left(self) -> float:
        """Seconds until the deadline, infinite without one; negative once it has passed."""
        return math.inf if self.deadline is None else self.deadline - time.monotonic()


def stage_folder(folder: Path, stage: str) -> Path:
    """Where the run in `folder` keeps one stage's input, output and logs."""
    return folder / "stages" / stage
