# SPDX-License-Identifier: Apache-2.0
"""The log of a server process: all loggers to stderr, by a thread, so that a reader who stops does not stop us."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import threading
from collections.abc import Iterator
from typing import Final, TextIO

from open_autoglm.serve.watching.log_lines import LineFormat, line_formatter
from open_autoglm.serve.watching.watch_settings import WatchSettings

MOST_WAITING: Final = 10_000
"""Lines that wait to be written; those beyond it are counted and dropped."""

_STDERR: Final = 2
_GATHER_SECONDS: Final = 0.05
"""Lines are made less often for it, and not just when the next request of the same client comes."""
_CLOSING_SECONDS: Final = 2.0
_ANNOUNCEMENTS: Final = "open_autoglm.serve.server"


class BackgroundLines(logging.Handler):
    """Writes lines to a file descriptor from a thread of its own, several at a time.

    When nobody reads, up to `most` records wait; how many were dropped is said once there is room again.
    """

    def __init__(self, descriptor: int, *, most: int = MOST_WAITING) -> None:
        super().__init__()
        self._descriptor, self._most = descriptor, most
        self._records: list[logging.LogRecord] = []
        self._num_dropped = 0
        self._news = threading.Condition(threading.Lock())
        self._closing = False
        self._thread = threading.Thread(target=self._write, name="open-autoglm-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; it is made a line of later."""
        with self._news:
            if self._closing:
                return
            if len(self._records) >= self._most:
                self._num_dropped += 1
                return
            self._records.append(record)
            if len(self._records) == 1:
                self._news.notify()

    def close(self) -> None:
        """Write what waits, for a short time, and end the thread."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(_CLOSING_SECONDS)
        super().close()

    def _write(self) -> None:
        while True:
            with self._news:
                while not (self._records or self._closing):
                    self._news.wait()
                self._news.wait_for(lambda: self._closing, _GATHER_SECONDS)
                records, self._records = self._records, []
                num_dropped, self._num_dropped = self._num_dropped, 0
                if self._closing and not (records or num_dropped):
                    return
            lines = [self._line(record) for record in records]
            if num_dropped:
                lines.append(self._line(_dropped(num_dropped)))
            self._write_all(lines)

    def _write_all(self, lines: list[str]) -> None:
        data = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [], 1.0)
            except OSError:  # whoever read has gone, and there is nowhere else to say so
                return

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:  # noqa: BLE001 - a line that cannot be made must not end the log
            fault = f"a line of {record.name} could not be written ({type(error).__name__})"
            return self.format(logging.LogRecord(__name__, logging.ERROR, "", 0, fault, (), None))


@contextlib.contextmanager
def logging_to_stderr(settings: WatchSettings, stream: TextIO | None = None) -> Iterator[None]:
    """Send what any logger says to stderr until the block ends, then leave logging as it was.

    Others' libraries are heard from `warning` on, unless the level is `debug`. stream: instead of stderr.
    """
    stream = stream or sys.stderr
    handler = BackgroundLines(_descriptor_of(stream))
    handler.setFormatter(line_formatter(_format_of(settings, stream)))
    level = logging.getLevelName(settings.log_level.upper())
    root, ours = logging.getLogger(), logging.getLogger("open_autoglm")
    announcing = logging.getLogger(_ANNOUNCEMENTS)
    before = (root.handlers[:], root.level, ours.level, announcing.level)
    root.handlers = [handler]
    root.setLevel(level if level == logging.DEBUG else max(level, logging.WARNING))
    ours.setLevel(level)
    announcing.setLevel(logging.INFO)  # where the server answers, and what a reload changed, is always told
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])
        announcing.setLevel(before[3])
        handler.close()


def _descriptor_of(stream: TextIO | None) -> int:
    """That of the stream; the process's own stderr for a stream that is no file, or none."""
    try:
        return _STDERR if stream is None else stream.fileno()
    except (OSError, ValueError):
        return _STDERR


def _format_of(settings: WatchSettings, stream: TextIO | None) -> LineFormat:
    if settings.log_format == "auto":
        return "text" if stream is not None and stream.isatty() else "json"
    return "text" if settings.log_format == "text" else "json"


def _dropped(count: int) -> logging.LogRecord:
    text = f"{count} lines of the log were dropped, since nobody read them as fast as they came"
    return logging.LogRecord(_ANNOUNCEMENTS, logging.WARNING, "", 0, text, (), None)
