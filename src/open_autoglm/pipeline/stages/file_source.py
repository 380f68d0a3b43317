# SPDX-License-Identifier: Apache-2.0
"""`file_source`: the rows of files as records: JSON lines, JSON, CSV, or one text a line."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from open_autoglm.errors import DataError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.record_fields import ID, with_records
from open_autoglm.storage import explained

_FORMATS: Final = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".txt": "text"}
_MOST_REMEMBERED: Final = 10_000


class FileSourceConfig(BaseModel):
    """path: a file or a pattern such as inbox/*.jsonl; the payload's `files`, a list, if not given. format: by the
    file's name if not given. id: the field that tells records apart; without it a record is called FILE:LINE.

    only_new: leave out files that an earlier run has taken and that have not changed since.
    """

    model_config = ConfigDict(extra="forbid")

    path: str | None = None
    format: Literal["jsonl", "json", "csv", "tsv", "text"] | None = None
    id: str | None = None
    only_new: bool = False


class FileSource:
    """Reads row by row; a row that cannot be read ends the run with its file and line."""

    config_model = FileSourceConfig

    def __init__(self, config: FileSourceConfig) -> None:
        self._config = config

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with the rows as its records."""
        files = self._files(packet)
        if self._config.only_new:
            before: dict[str, Any] = dict(context.cursor or {})
            signs = {str(path.resolve()): _sign(path) for path in files}
            files = [path for path in files if before.get(str(path.resolve())) != signs[str(path.resolve())]]
            known = {**before, **signs}
            context.set_cursor(dict(list(known.items())[-_MOST_REMEMBERED:]))
        return with_records(packet, context, self._records(files), files=[str(path) for path in files])

    def _files(self, packet: Packet) -> list[Path]:
        pattern = self._config.path
        if pattern is None:
            given = packet.payload.get("files")
            if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
                raise DataError("file_source has no config.path, and the payload has no list 'files'")
            return [Path(one) for one in given]
        paths = sorted(Path(one) for one in glob.glob(pattern, recursive=True))  # noqa: PTH207 - it may be absolute
        if not paths and not glob.has_magic(pattern):
            raise DataError(f"there is no file {pattern}")
        return [path for path in paths if path.is_file()]

    def _records(self, files: list[Path]) -> Iterator[dict[str, Any]]:
        seen: set[Any] = set()
        for path in files:
            for number, row in self._rows(path):
                if self._config.id is not None:
                    identity = row.get(self._config.id)
                    if identity is None or not isinstance(identity, str | int):
                        raise DataError(f"{path}, row {number}: there is no '{self._config.id}' that tells it apart")
                else:
                    identity = row.get(ID)
                    identity = f"{path.name}:{number}" if identity is None else identity
                if identity in seen:
                    raise DataError(f"{path}, row {number}: the id {identity!r} was there before")
                seen.add(identity)
                yield {**row, ID: identity}

    def _rows(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        kind = self._config.format or _FORMATS.get(path.suffix.lower())
        if kind is None:
            raise DataError(f"{path}: the format is not known by its name; give config.format")
        with explained(path, "read"), path.open(encoding="utf-8-sig", newline="") as file:
            try:
                if kind == "text":
                    for number, line in enumerate(file, 1):
                        if line.strip():
                            yield number, {"text": line.rstrip("\r\n")}
                elif kind in ("csv", "tsv"):
                    reader = csv.DictReader(file, delimiter="," if kind == "csv" else "\t", strict=True)
                    for row in reader:
                        if None in row or None in row.values():
                            raise DataError(f"{path}, line {reader.line_num}: it has another number of columns")
                        yield reader.line_num, dict(row)
                elif kind == "jsonl":
                    for number, line in enumerate(file, 1):
                        if line.strip():
                            yield number, _mapping(json.loads(line), path, number)
                else:
                    rows = json.load(file)
                    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
                        yield number, _mapping(row, path, number)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}: this is not JSON: {error}") from None
            except UnicodeDecodeError as error:
                raise DataError(f"{path} is not UTF-8 text (byte {error.start})") from None
            except csv.Error as error:
                raise DataError(f"{path}: this is not CSV: {error}") from None


def _mapping(row: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{path}, row {number}: a {type(row).__name__} is no record")
    return row


def _sign(path: Path) -> list[int]:
    with explained(path, "read"):
        status = path.stat()
    return [status.st_size, status.st_mtime_ns]
