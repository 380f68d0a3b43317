# SPDX-License-Identifier: Apache-2.0
"""What a command prints, and the programs that it starts, as lines of the attempt's log."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import Final

_LONGEST_LINE: Final = 10_000
_PATIENCE: Final = 2.0


@contextlib.contextmanager
def output_to_log(log: logging.Logger) -> Iterator[None]:
    """Inside the block, stdout and stderr of this process go to the log, line by line; of child processes, too.

    For a process that works on one thing only: descriptors belong to all of its threads.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    reader = threading.Thread(target=_read, args=(reading, log), daemon=True)
    reader.start()
    try:
        for number in (1, 2):
            os.dup2(writing, number)
        os.close(writing)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)
        reader.join(_PATIENCE)  # a child that outlives the command may hold the other end


def _read(descriptor: int, log: logging.Logger) -> None:
    with os.fdopen(descriptor, "r", encoding="utf-8", errors="replace") as lines:
        while line := lines.readline(_LONGEST_LINE):
            if line.strip():
                log.info("%s", line.rstrip())
