# SPDX-License-Identifier: Apache-2.0
"""Takes messages and dies at the third by SIGKILL: DATABASE URL, and `received` or `recorded`."""

from __future__ import annotations

import os
import signal
import sys
import time

from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.triggers.queues.address import parse_address
from open_autoglm.pipeline.triggers.queues.arrival import QueueArrival
from open_autoglm.pipeline.triggers.source import Arrival, PipelineSource, start_runs

CONTENT = {"name": "tickets", "stages": [{"stage": "a", "module": "m"}]}


class Deadly(QueueArrival):
    """Ends its process at the third message, when it was received or when its run is on disk."""

    moment = ""
    count = 0

    def poll(self):  # type: ignore[no-untyped-def]
        for arrival in super().poll():
            self.count += 1
            if self.count == 3 and self.moment == "received":
                os.kill(os.getpid(), signal.SIGKILL)
            yield arrival

    def acknowledge(self, arrival: Arrival) -> None:
        if self.count == 3 and self.moment == "recorded":
            os.kill(os.getpid(), signal.SIGKILL)
        super().acknowledge(arrival)


def main() -> None:
    database, url, moment = sys.argv[1:]
    journal = Journal(database)
    source = Deadly(parse_address(url), lambda text: print(text, flush=True))
    source.moment = moment
    while True:
        start_runs(journal, PipelineSource(CONTENT, source), "runs")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
