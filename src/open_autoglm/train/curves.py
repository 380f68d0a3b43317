# SPDX-License-Identifier: Apache-2.0
"""The curves of a run, for people and programs: JSON lines, and event files that TensorBoard shows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from open_autoglm.errors import StorageError
from open_autoglm.storage import explained, replacing

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

CURVE_FILE: Final = "curve.jsonl"
EVENTS_FOLDER: Final = "tensorboard"


class CurveWriter:
    """Writes numbers by step to `curve.jsonl` and to event files in `tensorboard/`, in one folder.

    A run that goes on from step `step` drops what was written of later steps: they are taken again. events: write
    event files too; without the `tensorboardX` package there are only the JSON lines.
    """

    def __init__(self, folder: Path, step: int, *, events: bool = False) -> None:
        self._path = folder / CURVE_FILE
        self._step = step
        self._folder = folder / EVENTS_FOLDER
        self._wants_events = events
        self._file: IO[str] | None = None
        self._events: SummaryWriter | None = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers that belong to a step, such as `{"loss": 1.2, "learning_rate": 2e-3}`.

        Raises StorageError when the disk refuses.
        """
        self._open()
        self._write_line({"step": step, **{name: _plain(value) for name, value in values.items()}})
        if self._events is not None:
            with explained(self._folder, "write"):
                for name, value in values.items():
                    self._events.add_scalar(name, value, step)

    def note(self, step: int, event: str, facts: Mapping[str, Any]) -> None:
        """Something that happened at a step, such as a restart; a line of JSON, and text in TensorBoard.

        Raises StorageError when the disk refuses.
        """
        self._open()
        self._write_line({"step": step, "event": event, **facts})
        if self._events is not None:
            with explained(self._folder, "write"):
                self._events.add_text(event, json.dumps(dict(facts), ensure_ascii=False), step)

    def go_back(self, step: int) -> None:
        """The run continues from an earlier step: what was written of later ones is dropped, but for notes."""
        self.close()
        self._step = step

    def flush(self) -> None:
        """Hand everything to the system. Raises StorageError when the disk refuses."""
        with explained(self._path, "write"):
            if self._file is not None:
                self._file.flush()
            if self._events is not None:
                self._events.flush()

    def close(self) -> None:
        """Flush, and let the files go; writing opens them again."""
        with explained(self._path, "write"):
            if self._file is not None:
                self._file.close()
                self._file = None
            if self._events is not None:
                self._events.close()
                self._events = None

    def _open(self) -> None:
        if self._file is not None:
            return
        begun = _drop_later(self._path, self._step)
        with explained(self._path, "write"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
            if self._wants_events:
                self._events = _open_events(self._folder, self._step + 1 if begun else None)

    def _write_line(self, row: Mapping[str, Any]) -> None:
        assert self._file is not None
        with explained(self._path, "write"):
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_curve(path: Path) -> list[dict[str, Any]]:
    """The rows of a `curve.jsonl`; a last line that was torn by a kill is left out.

    Raises StorageError when it cannot be read or another line is no JSON.
    """
    rows: list[dict[str, Any]] = []
    with explained(path, "read"):
        lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise StorageError(f"{path}: line {number} is not JSON; delete the file to begin a new one") from None
    return rows


def _drop_later(path: Path, step: int) -> bool:
    """Rewrite the file without rows of later steps, but for notes. Returns whether there is a file."""
    if not path.exists():
        return False
    rows = read_curve(path)
    kept = [row for row in rows if row.get("step", 0) <= step or "event" in row]
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
    return True


def _open_events(folder: Path, purge_step: int | None) -> SummaryWriter | None:
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        return None
    # Its files are named by the second: a run that goes on within one would take the place of what was there.
    number = len(list(folder.glob("events.*"))) if folder.is_dir() else 0
    return SummaryWriter(str(folder), purge_step=purge_step, flush_secs=30, filename_suffix=f".{number:04d}")


def _plain(value: float) -> float | None:
    """JSON has no infinities."""
    return float(value) if math.isfinite(value) else None
