# SPDX-License-Identifier: Apache-2.0
"""A process that runs one attempt after another, under its guard, so that a stage does not wait for Python to start.

It reads requests from a socket and writes a reply to each: eight bytes of length, then JSON. What it has imported and
the stages that it has made stay for the next request.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import ConfigurationError, PipelineError
from open_autoglm.pipeline.context import StageContext, stage_folder
from open_autoglm.pipeline.events import EventLog
from open_autoglm.pipeline.guard import run_guarded
from open_autoglm.pipeline.invocation import AttemptLog, PayloadSchema, describe_error, restore_environment
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.references import fill, outside_sources
from open_autoglm.pipeline.secrets import SecretStore
from open_autoglm.pipeline.stage import Stage, load_target, make_stage, packets_of
from open_autoglm.storage import explained

HEADER_BYTES: Final = 8
MOST_BYTES: Final = 1 << 30
_MOST_STAGES: Final = 16
_LONGEST_PROVENANCE: Final = 100


def main(arguments: list[str]) -> int:
    """Serve requests: the numbers of the life pipe, the exit pipe and the socket. Ends when the socket does."""
    life, exits, wire = (int(argument) for argument in arguments)
    os.set_inheritable(wire, False)
    return run_guarded(lambda: StageHost(wire).serve(), life, exits)


class StageHost:
    """What serves the requests of one socket."""

    def __init__(self, wire: int) -> None:
        self._socket = socket.socket(fileno=wire)
        self._stages: dict[tuple[str, str], _LoadedStage] = {}
        self._latest = ("", "")
        self._events: dict[str, EventLog] = {}
        self._jobs = 0
        self._stopping = False
        self._listens = False

    def serve(self) -> int:
        """Answer until there is nobody to ask."""
        send(self._socket, {"ready": True})
        while not self._stopping and (message := receive(self._socket)) is not None:
            reply = self._answer(message)
            self._jobs += 1
            reply["retire"] = reply.get("retire", False) or _has_children()
            send(self._socket, reply)
            if self._listens and not self._stopping:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                self._listens = False
        return 0

    def _listen(self) -> None:
        """The stage asks whether it is cancelled: from now on SIGTERM lets it end by itself."""
        if not self._listens and threading.current_thread() is threading.main_thread():
            self._listens = True
            signal.signal(signal.SIGTERM, self._on_stop)

    def _on_stop(self, *_: object) -> None:
        self._stopping = True

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._jobs == 0:
            restore_environment(request["environment"])
        name, deadline = request["stage"], request["deadline"]
        secrets = SecretStore(os.environ)
        redactor = secrets.redactor
        run_folder = Path(request["folder"])
        folder = stage_folder(run_folder, name)
        log: AttemptLog | None = None
        try:
            with explained(folder, "write"):
                folder.mkdir(parents=True, exist_ok=True)
            log = AttemptLog(name, folder / request["log"], redactor)
            config = fill(request["config"], outside_sources(os.environ, secrets), last=True)
            loaded = self._load(request["target"], config)
            if loaded is None:
                return {"refused": True}
            packet = Packet.from_dict(request["packet"])
            loaded.check_input(packet, name, request["needs"])
            cursors: dict[str, Any] = {"before": request["cursor"]}

            def is_cancelled() -> bool:
                self._listen()
                return self._stopping or (deadline is not None and time.monotonic() >= deadline)

            context = StageContext(
                folder=run_folder,
                stage=name,
                config=config,
                attempt=request["attempt"],
                idempotency_key=request["idempotency_key"],
                deadline=deadline,
                log=log,
                events=_RedactedEvents(self._event_log(run_folder), redactor),
                trace_id=request["trace_id"],
                find_secret=secrets.get,
                is_cancelled=is_cancelled,
                cursors=cursors,
            )
            outputs: list[dict[str, Any]] = []
            for result in packets_of(loaded.stage.invoke(packet, context), packet, name):
                loaded.check_output(result, name)
                outputs.append(redactor.json(_with_origin(result, context).to_dict()))
            reply: dict[str, Any] = {"packets": outputs, "retire": loaded.own_process}
            if "next" in cursors:
                reply["cursor"] = redactor.json({"value": cursors["next"]})
            return reply
        except Exception as error:  # noqa: BLE001 - whatever it is, the runner decides what becomes of it
            self._stages.pop(self._latest, None)  # what has failed may be broken: the next attempt makes a new one
            if log is not None:
                log.error("the attempt failed\n%s", traceback.format_exc())
            return {"failure": redactor.json(describe_error(error))}
        finally:
            if log is not None:
                log.close()

    def _load(self, target: str, config: dict[str, Any]) -> _LoadedStage | None:
        """The stage, made now or before; None if it wants a process of its own and this is none any more."""
        key = self._latest = (target, json.dumps(config, sort_keys=True))
        if key not in self._stages:
            if self._jobs and getattr(load_target(target), "own_process", False):
                return None
            if len(self._stages) >= _MOST_STAGES:
                self._stages.pop(next(iter(self._stages)))
            self._stages[key] = _LoadedStage(target, config)
        return self._stages[key]

    def _event_log(self, folder: Path) -> EventLog:
        if str(folder) not in self._events:
            for log in self._events.values():
                log.close()
            self._events = {str(folder): EventLog(folder)}
        return self._events[str(folder)]


class _LoadedStage:
    """A stage that has been made, with what its class says about it."""

    def __init__(self, target: str, config: dict[str, Any]) -> None:
        from pydantic import ValidationError

        code = load_target(target)
        self.own_process = bool(getattr(code, "own_process", False))
        schemas = {kind: getattr(code, kind, None) for kind in ("input_schema", "output_schema")}
        self._schemas = {
            kind: PayloadSchema(schema, f"the {kind} of {target}") for kind, schema in schemas.items() if schema
        }
        try:
            self.stage: Stage = make_stage(code, config)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False, include_context=False)
            text = "; ".join(f"config.{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
            raise ConfigurationError(text) from None

    def check_input(self, packet: Packet, name: str, needs: list[str]) -> None:
        if "input_schema" in self._schemas:
            source = f" from {' and '.join(repr(need) for need in needs)}" if needs else ""
            self._schemas["input_schema"].check(packet, f"what stage '{name}' gets{source}")

    def check_output(self, packet: Packet, name: str) -> None:
        if "output_schema" in self._schemas:
            self._schemas["output_schema"].check(packet, f"what stage '{name}' gave")


class _RedactedEvents:
    def __init__(self, log: EventLog, redactor: Any) -> None:
        self._log = log
        self._redactor = redactor

    def append(self, stage: str | None, event: Mapping[str, Any]) -> dict[str, Any]:
        return self._log.append(stage, self._redactor.json(event))


def _with_origin(packet: Packet, context: StageContext) -> Packet:
    """The packet with where it comes from in its metadata."""
    made_by = {"stage": context.stage, "attempt": context.attempt}
    before = packet.metadata.get("provenance")
    provenance = [*(before if isinstance(before, list) else ()), made_by][-_LONGEST_PROVENANCE:]
    return packet.with_payload(packet.payload, trace_id=context.trace_id, provenance=provenance)


def _has_children() -> bool:
    """Whether the stage has left a process behind: then this one must go, and take it along."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def send(wire: socket.socket, value: Mapping[str, Any]) -> None:
    """Write one message. Raises OSError when the other side is gone."""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    wire.sendall(len(data).to_bytes(HEADER_BYTES, "big") + data)


def receive(wire: socket.socket) -> dict[str, Any] | None:
    """Read one message; None when the other side is gone. Raises PipelineError if it is too long."""
    header = _receive_exactly(wire, HEADER_BYTES)
    if header is None:
        return None
    length = int.from_bytes(header, "big")
    if length > MOST_BYTES:
        raise PipelineError(f"a packet of {length} bytes; {MOST_BYTES} is the limit: write it to a file, name that")
    data = _receive_exactly(wire, length)
    return None if data is None else json.loads(data)


def _receive_exactly(wire: socket.socket, length: int) -> bytes | None:
    parts: list[bytes] = []
    while length:
        try:
            part = wire.recv(min(length, 1 << 20))
        except ConnectionResetError:
            return None
        if not part:
            return None
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
