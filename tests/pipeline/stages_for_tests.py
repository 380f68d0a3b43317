# SPDX-License-Identifier: Apache-2.0
"""Stages that the pipeline's tests run; imported in the child processes, by the name in MODULES."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from open_autoglm.errors import DataError, TrainingError
from open_autoglm.pipeline import Packet, StageContext

NAMES = (
    "append",
    "boom",
    "change_session",
    "exit_quietly",
    "fail_until",
    "grandchildren",
    "kill_itself",
    "not_a_packet",
    "own_error",
    "print_a_lot",
    "show_context",
    "slow_step",
    "wait_for_file",
    "wait_for_go",
)
MODULES = {name: f"stages_for_tests:{name}" for name in NAMES}


class OwnDataError(DataError):
    """Known to the stage's module only."""


def _record(context: StageContext, what: str) -> None:
    handle = os.open(context.folder / "record.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{what} {context.stage} {context.attempt} {os.getpid()}\n".encode())
    os.close(handle)


def append(packet: Packet, context: StageContext) -> Packet:
    _record(context, "start")
    time.sleep(context.config.get("seconds", 0))
    _record(context, "end")
    return packet.with_payload({**packet.payload, context.stage: context.config.get("value", 1)})


def slow_step(packet: Packet, context: StageContext) -> Packet:
    """Several checkpointed pieces, like a training run: a new attempt goes on after the last whole piece."""
    _record(context, "start")
    done = context.folder / f"{context.stage}.pieces"
    pieces = int(done.read_text()) if done.exists() else 0
    while pieces < context.config["pieces"]:
        time.sleep(context.config["seconds"])
        pieces += 1
        partial = done.with_suffix(".partial")
        partial.write_text(str(pieces))
        partial.replace(done)
        context.emit({"piece": pieces})
    numbers = [*packet.payload.get("numbers", []), pieces * context.config.get("factor", 1)]
    return packet.with_payload({**packet.payload, "numbers": numbers})


def boom(packet: Packet, context: StageContext) -> Packet:
    _record(context, "start")
    raise ValueError("the ceiling fell down")


def own_error(packet: Packet, context: StageContext) -> Packet:
    _record(context, "start")
    if context.config["kind"] == "own":
        raise OwnDataError("line 7 of x.csv has 3 columns, not 4")
    raise TrainingError("the loss is not a number at step 12; lower the learning rate")


def fail_until(packet: Packet, context: StageContext) -> Packet:
    """Fails until the file named in the config exists, or until an attempt."""
    _record(context, "start")
    if "attempt" in context.config and context.attempt < context.config["attempt"]:
        raise ConnectionError(f"nobody answers (attempt {context.attempt})")
    if "file" in context.config and not Path(context.config["file"]).exists():
        raise DataError("the file is not there")
    return packet.with_payload({**packet.payload, context.stage: context.attempt})


def grandchildren(packet: Packet, context: StageContext) -> Packet:
    """Starts a child, one that ignores SIGTERM, and one that leaves the session; then waits for ever."""
    _record(context, "start")
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    )
    processes = [
        subprocess.Popen(["sleep", "600"]),
        subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE),
        subprocess.Popen(["sleep", "600"], start_new_session=True),
    ]
    assert processes[1].stdout is not None
    processes[1].stdout.readline()
    (context.folder / "pids.txt").write_text(" ".join(str(process.pid) for process in processes))
    if context.config.get("then") == "return":
        return packet
    time.sleep(600)
    return packet


def kill_itself(packet: Packet, context: StageContext) -> Packet:
    _record(context, "start")
    os.kill(os.getpid(), getattr(signal, context.config["signal"]))
    time.sleep(60)
    return packet


def exit_quietly(packet: Packet, context: StageContext) -> Packet:
    sys.exit(3)


def not_a_packet(packet: Packet, context: StageContext) -> dict[str, int]:
    return {"a": 1}


def change_session(packet: Packet, context: StageContext) -> Packet:
    return Packet("another", {})


def print_a_lot(packet: Packet, context: StageContext) -> Packet:
    print("this must not be on stdout")
    subprocess.run(["echo", "nor this"], check=True)
    print("progress", file=sys.stderr)
    context.log.info("a line for the log")
    return packet


def show_context(packet: Packet, context: StageContext) -> Packet:
    return packet.with_payload(
        {
            "folder": str(context.folder),
            "stage_folder": str(context.stage_folder),
            "stage": context.stage,
            "config": context.config,
            "attempt": context.attempt,
            "key": context.idempotency_key,
            "left": context.seconds_left() if context.deadline is not None else None,
            "python_path": os.environ.get("PYTHONPATH"),
            "argv0": sys.argv[0],
        },
        seen=True,
    )


def wait_for_file(packet: Packet, context: StageContext) -> Packet:
    """Shows that two stages run at once: each makes its own file and waits for the other's."""
    (context.folder / f"{context.stage}.here").touch()
    while not (context.folder / context.config["file"]).exists():
        time.sleep(0.01)
    return packet.with_payload({"stage": context.stage})


def wait_for_go(packet: Packet, context: StageContext) -> Packet:
    _record(context, "start")
    while not Path(context.config["file"]).exists():
        time.sleep(0.02)
    _record(context, "end")
    return packet.with_payload({**packet.payload, "attempt": context.attempt})


class ShoutConfig(BaseModel):
    """The settings of `Shout`."""

    model_config = ConfigDict(extra="forbid")

    times: int = Field(default=1, ge=1)
    ending: str = "!"
    token: str | None = None


class Shout:
    """A stage that is a class with settings and schemas."""

    config_model = ShoutConfig
    input_schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "required": ["text"],
        "properties": {
            "text": {"type": "string"},
            "records": {"type": "array", "items": {"properties": {"score": {"type": "number"}}}},
        },
    }

    def __init__(self, config: ShoutConfig) -> None:
        self.config = config

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        text = packet.payload["text"].upper() + self.config.ending * self.config.times
        return packet.with_payload({**packet.payload, "text": text, "pid": os.getpid()})


class Alone:
    """A stage that wants a process of its own."""

    own_process = True

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        return packet.with_payload({**packet.payload, "alone_pid": os.getpid()})


def split_text(packet: Packet, context: StageContext) -> Iterator[Packet]:
    """Yields a packet for each word."""
    for word in packet.payload["text"].split():
        yield packet.with_payload({"text": word})


def mark_records(packet: Packet, context: StageContext) -> Packet:
    """Adds to each record the key and the process that worked on it."""
    _record(context, "start")
    time.sleep(context.config.get("seconds", 0))
    records = [
        {**record, "key": context.idempotency_key, "of": len(packet.payload["records"])}
        for record in packet.payload["records"]
    ]
    return packet.with_payload({**packet.payload, "records": records})


def count_up(packet: Packet, context: StageContext) -> Packet:
    """A source with a cursor: gives the next number each time."""
    number = (context.cursor or 0) + 1
    context.set_cursor(number)
    return packet.with_payload({"number": number})


def leak_secret(packet: Packet, context: StageContext) -> Packet:
    """Puts a secret wherever it can."""
    secret = context.secret("TOKEN")
    context.log.warning("the secret is %s", secret)
    context.emit({"note": f"the secret is {secret}"})
    if context.config.get("fail"):
        raise ValueError(f"wrong secret {secret} and {context.config['token']}")
    return packet.with_payload({"seen": secret, "config": context.config["token"], secret: 1})


def cooperative(packet: Packet, context: StageContext) -> Packet:
    """Looks whether it is cancelled, and then says goodbye."""
    _record(context, "start")
    while not context.cancelled():
        time.sleep(0.01)
    _record(context, "goodbye")
    return packet


def leave_child(packet: Packet, context: StageContext) -> Packet:
    """Ends, but leaves a process behind."""
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    return packet.with_payload({"child": child.pid, "pid": os.getpid()})


MODULES.update(
    {
        name: f"stages_for_tests:{attribute}"
        for name, attribute in {
            "shout": "Shout",
            "alone": "Alone",
            "split_text": "split_text",
            "mark_records": "mark_records",
            "count_up": "count_up",
            "leak_secret": "leak_secret",
            "cooperative": "cooperative",
            "leave_child": "leave_child",
            "missing": "nothing_of_this_name",
        }.items()
    }
)


def sink(packet: Packet, context: StageContext) -> Packet:
    """Appends the records to a file, those of one key once, whatever happens in between."""
    _record(context, "start")
    time.sleep(context.config.get("seconds", 0))
    target = context.folder / "sink"
    target.mkdir(exist_ok=True)
    path = target / context.idempotency_key.replace("/", "_")
    partial = path.with_suffix(f".partial{os.getpid()}")
    partial.write_text("".join(f"{record['id']}\n" for record in packet.payload["records"]))
    partial.replace(path)
    _record(context, "end")
    return packet


MODULES["sink"] = "stages_for_tests:sink"
