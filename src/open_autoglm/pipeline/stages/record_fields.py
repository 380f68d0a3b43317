# SPDX-License-Identifier: Apache-2.0
"""What the built-in stages share about records: going through those of a packet, and finding the text in one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.records import RECORDS, read_records, store_records
from open_autoglm.spelling import did_you_mean

ID: Final = "id"
RECORDS_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": [RECORDS],
    "properties": {
        RECORDS: {
            "anyOf": [
                {"type": "array", "items": {"type": "object"}},
                {"type": "object", "required": ["jsonl"], "properties": {"jsonl": {"type": "string"}}},
            ]
        }
    },
}
"""The payload that a stage over records takes."""


def with_records(packet: Packet, context: StageContext, records: Iterable[Mapping[str, Any]], **more: Any) -> Packet:
    """The packet with these records in place of its own; many go to a file of the stage's folder.

    Each batch of a stage has a file of its own, named by its idempotency key.
    """
    name = context.idempotency_key.replace("/", "-").replace("#", "-")
    stored = store_records(records, context.stage_folder / f"records-{name}.jsonl")
    return packet.with_payload({**packet.payload, RECORDS: stored, **more})


def text_of(record: Mapping[str, Any], field: str | None) -> str:
    """The text that a record is about: of `field`, or of its only field, beside `id`, that is text.

    Raises PipelineError that names the record.
    """
    if field is None:
        texts = [name for name, value in record.items() if name != ID and isinstance(value, str)]
        if len(texts) != 1:
            what = f"the text fields {', '.join(texts)}" if texts else "no text field"
            raise PipelineError(f"{name_of(record)} has {what}; say which one it is about with config.input")
        field = texts[0]
    if field not in record:
        raise PipelineError(f"{name_of(record)} has no field '{field}'{did_you_mean(field, map(str, record))}")
    value = record[field]
    if not isinstance(value, str):
        raise PipelineError(f"{name_of(record)}: '{field}' is a {type(value).__name__}, not a text")
    return value


def name_of(record: Mapping[str, Any]) -> str:
    """What an error calls a record."""
    return f"record {record[ID]!r}" if ID in record else "a record without an id"


def records_of(packet: Packet) -> Iterable[dict[str, Any]]:
    """The records of a packet, one after the other."""
    return read_records(packet.payload)
