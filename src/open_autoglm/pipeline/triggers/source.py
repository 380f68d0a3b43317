# SPDX-License-Identifier: Apache-2.0
"""What starts runs when something arrives: the interface of files, queues and webhooks, and how a worker asks it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from open_autoglm.pipeline.journal import Journal


@dataclass(frozen=True)
class Arrival:
    """Something that has arrived. key: its own, the same if it comes again. payload: what the run gets."""

    key: str
    payload: dict[str, Any] = field(default_factory=dict)


class TriggerSource(Protocol):
    """Where something may arrive. Asked by one thread of a worker, about once a second; must not wait long."""

    def poll(self) -> Iterable[Arrival]:
        """What has arrived and has not been acknowledged; may be asked by several workers at once."""
        ...

    def acknowledge(self, arrival: Arrival) -> None:
        """The run of this arrival is on disk: do not give it again. A crash before this gives it once more."""
        ...


@dataclass(frozen=True)
class PipelineSource:
    """A source and the pipeline whose runs it starts. content: as `PipelineFile.to_dict` has it."""

    content: Mapping[str, Any]
    source: TriggerSource


def start_runs(journal: Journal, one: PipelineSource, folder: str) -> list[str]:
    """Start a run for everything that has arrived; returns the ids of those that are new.

    An arrival that comes twice, to this worker or another, has one run: its key is the run's.
    folder: where runs have their folders.
    """
    started: list[str] = []
    for arrival in one.source.poll():
        key = f"arrival/{one.content['name']}/{arrival.key}"
        run_id, is_new = journal.submit(one.content, None, folder=folder, key=key, payload=arrival.payload)
        one.source.acknowledge(arrival)
        if is_new:
            started.append(run_id)
    return started
