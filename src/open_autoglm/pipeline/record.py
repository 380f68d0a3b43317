# SPDX-License-Identifier: Apache-2.0
"""RUN/pipeline.json: what a run folder was begun with, so that it is continued with the same and nothing else."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import PipelineError, StorageError
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.specification import PipelineSpecification
from open_autoglm.storage import read_json, write_json

RECORD_NAME: Final = "pipeline.json"
_FORMAT: Final = 1


@dataclass(frozen=True)
class RunRecord:
    """A run as it was begun. run_id: unique to the folder, the root of all its workflow ids and idempotency keys."""

    run_id: str
    packet: Packet
    is_new: bool


def open_record(folder: Path, specification: PipelineSpecification, packet: Packet) -> RunRecord:
    """Write down what the run in `folder` is, or check that it is still the same.

    Time limits, retries and the packet's session and metadata may differ: they do not change what comes out, and a
    stage that hit its limit is continued with a longer one. The packet of the first call is the one that counts.
    Raises PipelineError that names what differs otherwise, StorageError when the disk refuses.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        run_id = uuid.uuid4().hex
        content = {"format": _FORMAT, "run_id": run_id, **specification.to_dict(), "packet": packet.to_dict()}
        write_json(path, content)
        return RunRecord(run_id, packet, is_new=True)
    content = read_json(path)
    try:
        if content["format"] != _FORMAT:
            raise PipelineError(f"{path} was written by another version of Open-AutoGLM; choose another --out")
        before = PipelineSpecification.from_dict({"name": content["name"], "stages": content["stages"]})
        stored = Packet.from_dict(content["packet"])
        run_id = str(content["run_id"])
    except (KeyError, TypeError) as error:
        raise StorageError(f"{path} is damaged ({type(error).__name__}: {error}); choose another --out") from None
    difference = _difference(before, specification) or _first_difference(stored.payload, packet.payload, "the input")
    if difference:
        raise PipelineError(
            f"{folder} holds a run that was begun with something else: {difference}; "
            "choose another --out, or use the same settings to continue it"
        )
    return RunRecord(run_id, stored, is_new=False)


def _difference(before: PipelineSpecification, now: PipelineSpecification) -> str | None:
    """The first thing in which two specifications would give different results, in words."""
    if before.name != now.name:
        return f"the pipeline was '{before.name}', now it is '{now.name}'"
    names_before, names_now = {stage.stage for stage in before.stages}, {stage.stage for stage in now.stages}
    if gone := sorted(names_before - names_now):
        return f"stage '{gone[0]}' is gone"
    if new := sorted(names_now - names_before):
        return f"stage '{new[0]}' is new"
    for stage in now.order:
        old = before.stage(stage.stage)
        if old.module != stage.module:
            return f"stage '{stage.stage}': module was {old.module}, now it is {stage.module}"
        needs_before, needs_now = before.needs[stage.stage], now.needs[stage.stage]
        if needs_before != needs_now:
            return f"stage '{stage.stage}': needs was {list(needs_before)}, now it is {list(needs_now)}"
        if difference := _first_difference(old.config, stage.config, f"stage '{stage.stage}': config"):
            return difference
    return None


def _first_difference(before: Any, now: Any, name: str) -> str | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            if key not in now:
                return f"{name}.{key} was {_short(before[key])}, now it is not given"
            if key not in before:
                return f"{name}.{key} was not given, now it is {_short(now[key])}"
            if difference := _first_difference(before[key], now[key], f"{name}.{key}"):
                return difference
        return None
    # 1, 1.0 and true are equal in Python, but true is not a number in JSON.
    if before == now and isinstance(before, bool) == isinstance(now, bool):
        return None
    return f"{name} was {_short(before)}, now it is {_short(now)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
