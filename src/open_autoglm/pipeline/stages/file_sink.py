# SPDX-License-Identifier: Apache-2.0
"""`file_sink`: records into files of JSON lines or CSV, each whole or not at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.record_fields import RECORDS_SCHEMA, name_of, records_of
from open_autoglm.storage import replacing


class FileSinkConfig(BaseModel):
    """path: a file, or a folder that ends with `/`, in which each packet has a file named by its idempotency key."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(min_length=1)
    format: Literal["jsonl", "csv"] = "jsonl"
    columns: list[str] | None = None


class FileSink:
    """The same packet again replaces its own file, so that no record is there twice."""

    config_model = FileSinkConfig
    input_schema = RECORDS_SCHEMA

    def __init__(self, config: FileSinkConfig) -> None:
        self._config = config

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet as it came, with `file` and `written`."""
        config, key = self._config, context.idempotency_key
        number = key.rpartition("/")[2].partition("#")[0]
        if config.path.endswith("/"):
            path = Path(config.path) / f"{key.replace('/', '-').replace('#', '-')}.{config.format}"
        elif number not in ("0", context.stage):
            raise PipelineError(
                f"several packets would write the file {config.path}, each over the one before; "
                "end config.path with '/' to give each a file of its own"
            )
        else:
            path = Path(config.path)
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            count = self._write_csv(packet, file) if config.format == "csv" else self._write_lines(packet, file)
        return packet.with_payload({**packet.payload, "file": str(path), "written": count})

    def _write_lines(self, packet: Packet, file: Any) -> int:
        count = 0
        for record in records_of(packet):
            chosen = record if self._config.columns is None else self._chosen(record, self._config.columns)
            file.write(json.dumps(chosen, ensure_ascii=False) + "\n")
            count += 1
        return count

    def _write_csv(self, packet: Packet, file: Any) -> int:
        writer, columns, count = csv.writer(file), self._config.columns or [], 0
        for record in records_of(packet):
            if not count:
                columns = columns or list(record)
                writer.writerow(columns)
            if self._config.columns is None and (more := [name for name in record if name not in columns]):
                raise PipelineError(f"{name_of(record)} has the field '{more[0]}' that the first lacks; list columns")
            writer.writerow(map(_cell, self._chosen(record, columns).values()))
            count += 1
        return count

    def _chosen(self, record: dict[str, Any], columns: list[str]) -> dict[str, Any]:
        for name in columns:
            if name not in record:
                raise PipelineError(f"{name_of(record)} has no field '{name}'")
        return {name: record[name] for name in columns}


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
