# SPDX-License-Identifier: Apache-2.0
"""What a running stage knows about itself: its folder, its settings, its attempt, and how much time is left."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from open_autoglm.errors import ConfigurationError
from open_autoglm.pipeline.packet import json_object

REQUEST_NAME: Final = "request.json"
OUTPUT_NAME: Final = "output.json"
FAILURE_NAME: Final = "failure.json"


class EventSink(Protocol):
    """Where a stage's events go."""

    def append(self, stage: str | None, event: Mapping[str, Any]) -> dict[str, Any]:
        """Write the event with its time; returns all of it."""
        ...


def no_secret(name: str) -> str:
    """The secrets of a stage that was given none."""
    raise ConfigurationError(f"there is no secret '{name}'")


def never() -> bool:
    """The answer to `cancelled` where nobody can cancel."""
    return False


@dataclass(frozen=True)
class StageContext:
    """The second argument of every stage: `invoke(packet, context) -> Packet`.

    folder: the run's folder, where the stage keeps its checkpoints and results.
    stage: its name. config: its settings from the specification, `${env:...}` and `${secrets:...}` filled in.
    attempt: how often it has been started in this run, from 1. More than 1 means that an earlier attempt failed or
        was cut off: go on from the stage's own checkpoint.
    idempotency_key: the same for every attempt at this packet in this stage of this run, and for no other; hand it to
        whatever must not be done twice.
    deadline: the value of `time.monotonic()` at which the attempt is stopped, None for no limit.
    log: goes to the attempt's log file in `stage_folder`, never to the terminal.
    trace_id: 32 hexadecimal digits, the same for all stages of the run.
    """

    folder: Path
    stage: str
    config: dict[str, Any]
    attempt: int
    idempotency_key: str
    deadline: float | None
    log: logging.Logger = field(repr=False)
    events: EventSink = field(repr=False)
    trace_id: str = ""
    find_secret: Callable[[str], str] = field(default=no_secret, repr=False)
    is_cancelled: Callable[[], bool] = field(default=never, repr=False)
    cursors: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def stage_folder(self) -> Path:
        """RUN/stages/NAME: where the pipeline keeps this stage's input, output and logs."""
        return stage_folder(self.folder, self.stage)

    @property
    def cursor(self) -> Any:
        """How far this stage of this pipeline had come when the last run was done: a JSON value, None at first.

        Set it with `set_cursor`; the next run sees it, and only once all of this run is done, so that nothing is
        passed over when a later stage fails.
        """
        return self.cursors.get("next", self.cursors.get("before"))

    def set_cursor(self, value: Any) -> None:
        """Remember how far the stage came. It is kept with the output: a failed attempt leaves no trace.

        Raises PipelineError if it is not JSON.
        """
        self.cursors["next"] = json_object({"cursor": value}, "the cursor")["cursor"]

    def secret(self, name: str) -> str:
        """The secret of that name, as `${secrets:NAME}` has it. Whatever is recorded later shows it as `***`.

        Raises ConfigurationError if there is none.
        """
        return self.find_secret(name)

    def cancelled(self) -> bool:
        """Whether the stage should end soon: somebody cancelled the run, or its time is over.

        A stage that asks has a few seconds to end by itself from when the answer is True, and what it returns then
        counts; one that never asks is ended at once.
        """
        return self.is_cancelled()

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
