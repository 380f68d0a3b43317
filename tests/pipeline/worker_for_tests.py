# SPDX-License-Identifier: Apache-2.0
"""A worker for tests that kill it: DATABASE FOLDER LEASE [RUN]; without RUN it serves until nothing is left."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from stages_for_tests import MODULES

from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.placement import Capacity
from open_autoglm.pipeline.stage import StageCatalog
from open_autoglm.pipeline.worker import Worker


def main() -> int:
    database, folder, lease = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    journal = Journal(database)

    def say(text: str) -> None:
        print(f"{time.time():.3f} {text}", flush=True)

    worker = Worker(
        journal, StageCatalog(MODULES), folder, capacity=Capacity(2.0, 1 << 30, 0), lease=lease, on_message=say
    )
    say(f"ready {worker.name}")
    if len(sys.argv) > 4:
        worker.run(sys.argv[4])
    else:
        worker.serve(threading.Event(), until_idle=True)
    worker.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
