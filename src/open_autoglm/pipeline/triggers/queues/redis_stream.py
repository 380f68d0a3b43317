# SPDX-License-Identifier: Apache-2.0
"""A stream of Redis, read by a consumer group: `redis://HOST:PORT/[DATABASE/]STREAM?group=NAME`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from open_autoglm.errors import ConfigurationError, PipelineError
from open_autoglm.pipeline.triggers.queues.address import check_options

if TYPE_CHECKING:
    from redis import Redis

_BATCH: Final = 100
_CONSUMER: Final = "worker"
"""All workers are one consumer. Messages are told apart by how long they lie unacknowledged, and names of workers that
are gone would stay in Redis for ever."""

_JSON_FIELD: Final = b"payload"


class RedisStream:
    """A `Queue`. A message is an entry: its field `payload` is a JSON object, or all its fields are one of texts.

    An entry's id is unique in the stream, and stays when it is delivered again. Dead letters go to the stream
    `STREAM.dead`, in one transaction with their acknowledgement.
    """

    def connect(self, config: Mapping[str, Any]) -> None:
        """Take the address; Redis is asked at the first `receive`. Raises ConfigurationError."""
        try:
            from redis import Redis
        except ImportError:
            raise ConfigurationError("a queue of Redis needs: pip install 'open-autoglm[redis]'") from None
        check_options(dict(config), ("dead",))
        *database, stream = config["path"] or [""]
        if not stream or len(database) > 1 or not all(one.isascii() and one.isdigit() for one in database):
            raise ConfigurationError(
                "a queue of Redis is redis://HOST:PORT/STREAM or redis://HOST:PORT/DATABASE/STREAM"
            )
        self._stream, self._group = stream, config["group"]
        self._dead = config["options"].get("dead") or f"{stream}.dead"
        if self._dead == stream:
            raise ConfigurationError(f"dead letters of the stream '{stream}' cannot go to itself")
        self._idle = int(config["idle_seconds"] * 1000)
        self._redis: Redis = Redis.from_url(
            config["server"], db=int(database[0]) if database else 0, socket_timeout=10, socket_connect_timeout=5
        )
        self._bodies: dict[str, Mapping[bytes, bytes]] = {}
        self._has_group = False

    def receive(self) -> Iterable[tuple[str, bytes, int]]:
        """What other workers left, then what is new."""
        with self._explained():
            if not self._has_group:
                self._make_group()
            try:
                found = [*self._left_behind(), *self._new()]
            except self._response_error as error:
                if "NOGROUP" not in str(error):
                    raise
                self._has_group = False  # somebody emptied Redis
                found = []
        for message_id, fields, deliveries in found:
            self._bodies[message_id] = fields
            yield message_id, _body(fields), deliveries

    def keep(self, message_ids: Sequence[str]) -> None:
        """Begin their idle time anew, without counting a delivery."""
        with self._explained():
            self._redis.xclaim(self._stream, self._group, _CONSUMER, 0, list(message_ids), justid=True)

    def acknowledge(self, message_id: str) -> None:
        """Take it out of what the group has open."""
        with self._explained():
            self._redis.xack(self._stream, self._group, message_id)
        self._bodies.pop(message_id, None)

    def bury(self, message_id: str, reason: str) -> None:
        """Move it to the stream of dead letters."""
        fields: dict[Any, Any] = {**self._bodies.pop(message_id, {}), b"dead.id": message_id, b"dead.reason": reason}
        with self._explained(), self._redis.pipeline(transaction=True) as together:
            together.xadd(self._dead, fields)
            together.xack(self._stream, self._group, message_id)
            together.execute()

    def close(self) -> None:
        """End the connection."""
        self._redis.close()

    def _make_group(self) -> None:
        try:
            self._redis.xgroup_create(self._stream, self._group, id="0", mkstream=True)
        except self._response_error as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._has_group = True

    def _left_behind(self) -> Iterator[tuple[str, Mapping[bytes, bytes], int]]:
        open_ones: Any = self._redis.xpending_range(
            self._stream, self._group, min="-", max="+", count=_BATCH, idle=self._idle
        )
        if not open_ones:
            return
        counts = {one["message_id"]: int(one["times_delivered"]) for one in open_ones}
        claimed: Any = self._redis.xclaim(self._stream, self._group, _CONSUMER, self._idle, list(counts))
        for message_id, fields in claimed:
            if fields is not None:
                yield message_id.decode(), fields, counts[message_id] + 1

    def _new(self) -> Iterator[tuple[str, Mapping[bytes, bytes], int]]:
        streams: Any = self._redis.xreadgroup(self._group, _CONSUMER, {self._stream: ">"}, count=_BATCH)
        for _, entries in streams.items() if isinstance(streams, dict) else streams or ():
            for message_id, fields in entries:
                yield message_id.decode(), fields, 1

    @property
    def _response_error(self) -> type[Exception]:
        from redis.exceptions import ResponseError

        return ResponseError

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from redis.exceptions import RedisError

        try:
            yield
        except RedisError as error:
            raise PipelineError(f"the stream '{self._stream}' of Redis does not answer: {error}") from None


def _body(fields: Mapping[bytes, bytes]) -> bytes:
    if _JSON_FIELD in fields:
        return fields[_JSON_FIELD]
    texts = {
        name.decode(errors="surrogateescape"): value.decode(errors="surrogateescape") for name, value in fields.items()
    }
    return json.dumps(texts).encode()
