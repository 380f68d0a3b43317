# SPDX-License-Identifier: Apache-2.0
"""Records in a packet: a list in the payload while they are few, a file of JSON lines when they are many."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.packet import json_object
from open_autoglm.storage import explained, replacing

RECORDS: Final = "records"
"""The key of the payload that holds records: mappings, each with an `id` of its own."""

FILE_KEY: Final = "jsonl"
"""A reference in place of the list: `{"jsonl": PATH, "count": NUMBER}`, one record a line."""

MOST_INLINE: Final = 1000


def read_records(payload: Mapping[str, Any], key: str = RECORDS) -> Iterator[dict[str, Any]]:
    """The records of a payload, one after the other, wherever they are.

    Raises PipelineError, naming the record or the line, when there are none or they are not mappings; StorageError
    when the file cannot be read.
    """
    value = payload.get(key)
    if isinstance(value, list):
        for index, record in enumerate(value):
            if not isinstance(record, dict):
                raise PipelineError(f"payload.{key}[{index}] is a {type(record).__name__}, not a mapping")
            yield record
        return
    if not isinstance(value, dict) or not isinstance(value.get(FILE_KEY), str):
        raise PipelineError(
            f"payload.{key} must be a list of records or a reference {{'{FILE_KEY}': PATH}}"
            + ("" if key in payload else ", and there is none")
        )
    path = Path(value[FILE_KEY])
    with explained(path, "read"), path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise PipelineError(f"{path}, line {number}: this is not JSON ({error})") from None
            if not isinstance(record, dict):
                raise PipelineError(f"{path}, line {number}: a record must be a mapping")
            yield record


def store_records(records: Iterable[Mapping[str, Any]], path: Path, *, most_inline: int = MOST_INLINE) -> Any:
    """What to put under `records` in a payload: the list itself, or a reference to `path`, written whole or not at all.

    path: where a file would go, such as `context.stage_folder / "records.jsonl"`.
    Raises PipelineError when a record is not JSON, StorageError when the disk refuses.
    """
    iterator = iter(records)
    head: list[dict[str, Any]] = []
    for record in iterator:
        head.append(json_object(record, f"record {len(head)}"))
        if len(head) > most_inline:
            break
    else:
        return head
    count = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in head:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
        for record in iterator:
            file.write(json.dumps(json_object(record, f"record {count}"), ensure_ascii=False) + "\n")
            count += 1
    return {FILE_KEY: str(path), "count": count}
