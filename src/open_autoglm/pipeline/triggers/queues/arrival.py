# SPDX-License-Identifier: Apache-2.0
"""Messages as a worker takes them: each starts one run, and what can start none is put aside and said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.packet import json_object
from open_autoglm.pipeline.records import RECORDS
from open_autoglm.pipeline.triggers.queues.address import QueueAddress, connect
from open_autoglm.pipeline.triggers.source import Arrival
from open_autoglm.plugins.interfaces import Queue

_MOST_BYTES: Final = 16 << 20
_ID: Final = "id"


class QueueArrival:
    """A `TriggerSource` of the messages of a queue.

    A message's id is its run's key, so that one that is delivered twice, to this worker or another, has one run. It is
    acknowledged when that run is on disk; a worker that dies before leaves it to another one. While this worker holds
    messages that it could not record, for instance because the database is away, it keeps them and takes no more: what
    is not the message's fault does not count as a delivery. One that came too often for all that, since its workers
    died of it, or that is no JSON object, is put aside.
    tell: gets a line about each that is.
    Raises ConfigurationError as `connect` does.
    """

    def __init__(self, address: QueueAddress, tell: Callable[[str], None]) -> None:
        self._address, self._tell = address, tell
        self._queue: Queue = connect(address)
        self._held: dict[str, Arrival] = {}

    def poll(self) -> Iterator[Arrival]:
        """What has come and is not acknowledged."""
        if self._held:
            self._queue.keep(list(self._held))
        else:
            for message_id, body, deliveries in self._queue.receive():
                self._take(message_id, body, deliveries)
        yield from list(self._held.values())

    def acknowledge(self, arrival: Arrival) -> None:
        """See `TriggerSource`."""
        message_id = next(known for known, held in self._held.items() if held is arrival)
        self._queue.acknowledge(message_id)
        del self._held[message_id]

    def close(self) -> None:
        """Let go of the connection; what is held goes to another worker."""
        self._queue.close()

    def _take(self, message_id: str, body: bytes, deliveries: int) -> None:
        try:
            if deliveries > self._address.deliveries:
                raise PipelineError(
                    f"it was delivered {deliveries - 1} times, and no worker lived to record a run for it"
                )
            payload = _payload_of(body, message_id)
        except PipelineError as error:
            self._queue.bury(message_id, str(error))
            self._tell(f"warning: {self._address.shown}: message {message_id} is put aside as a dead letter: {error}")
            return
        self._held[message_id] = Arrival("/".join((*self._address.path, message_id)), payload)


def _payload_of(body: bytes, message_id: str) -> dict[str, Any]:
    """What the run gets: the message as its only record, or the message itself if it brings `records`."""
    if len(body) > _MOST_BYTES:
        raise PipelineError(f"it has {len(body)} bytes; {_MOST_BYTES} is the limit")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise PipelineError("it is not JSON") from None
    record = json_object(value, "the message")
    return record if isinstance(record.get(RECORDS), list) else {RECORDS: [{_ID: message_id, **record}]}
