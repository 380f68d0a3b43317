# SPDX-License-Identifier: Apache-2.0
"""A stream of NATS JetStream, read by a durable pull consumer: `nats://HOST:PORT/STREAM?group=NAME&subject=FILTER`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from open_autoglm.errors import ConfigurationError, PipelineError
from open_autoglm.pipeline.triggers.queues.address import check_options

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

_BATCH: Final = 100
_FETCH_SECONDS: Final = 0.2
_CALL_SECONDS: Final = 15.0
_ACKNOWLEDGED: Final = b"+ACK"
_IN_PROGRESS: Final = b"+WPI"
_NO_MORE: Final = b"+TERM"


class NatsStream:
    """A `Queue`. A message's body is a JSON object; its id is its place in the stream and when that was made.

    The stream must be there; the consumer is made. Dead letters go to the stream `STREAM-dead`, which is made when
    there is the first one. The client is asynchronous and has a thread of its own.
    """

    def connect(self, config: Mapping[str, Any]) -> None:
        """Take the address; NATS is asked at the first `receive`. Raises ConfigurationError."""
        try:
            import nats  # noqa: F401 - is it there?
        except ImportError:
            raise ConfigurationError("a queue of NATS needs: pip install 'open-autoglm[nats]'") from None
        check_options(dict(config), ("subject",))
        if len(config["path"]) != 1:
            raise ConfigurationError("a queue of NATS is nats://HOST:PORT/STREAM")
        self._server, (self._stream,), self._group = config["server"], config["path"], config["group"]
        self._idle, self._subject = config["idle_seconds"], config["options"].get("subject") or None
        self._client: Client | None = None
        self._consumer: Any = None
        self._made = ""
        self._held: dict[str, Msg] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nats", daemon=True)
        self._thread.start()

    def receive(self) -> Iterable[tuple[str, bytes, int]]:
        """What the consumer has for us: what others left, and what is new."""
        for message in self._wait_for(self._fetch()):
            message_id = f"{self._made}-{message.metadata.sequence.stream}"
            self._held[message_id] = message
            yield message_id, message.data, message.metadata.num_delivered

    def keep(self, message_ids: Sequence[str]) -> None:
        """Tell the consumer that we are at it."""
        self._wait_for(self._say([self._held[one].reply for one in message_ids], _IN_PROGRESS))

    def acknowledge(self, message_id: str) -> None:
        """The consumer need not give it again."""
        self._wait_for(self._say([self._held[message_id].reply], _ACKNOWLEDGED))
        del self._held[message_id]

    def bury(self, message_id: str, reason: str) -> None:
        """Publish it as a dead letter, and once that is stored take it off the consumer."""
        self._wait_for(self._bury(self._held[message_id], message_id, reason))
        del self._held[message_id]

    def close(self) -> None:
        """End the connection and the thread."""
        if self._client is not None:
            with contextlib.suppress(PipelineError):
                self._wait_for(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait_for(self, work: Coroutine[Any, Any, Any]) -> Any:
        from nats.errors import Error

        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(_CALL_SECONDS)
        except (Error, OSError, concurrent.futures.TimeoutError) as error:
            future.cancel()
            reason = str(error) or type(error).__name__
            raise PipelineError(f"the stream '{self._stream}' of NATS does not answer: {reason}") from None

    async def _open(self) -> Client:
        """The connection: a new one if the last one is gone, since ours asks again anyway."""
        import nats

        if self._client is None or not self._client.is_connected:
            self._consumer = None
            self._client = await nats.connect(
                self._server,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0.1,
                connect_timeout=3,
                error_cb=_ignore,
            )
        return self._client

    async def _fetch(self) -> list[Msg]:
        from nats.errors import TimeoutError as NothingThereError
        from nats.js.api import AckPolicy, ConsumerConfig
        from nats.js.errors import NotFoundError

        stream = (await self._open()).jetstream()
        if self._consumer is None:
            try:
                information = await stream.stream_info(self._stream)
            except NotFoundError:
                raise PipelineError(
                    f"NATS has no stream '{self._stream}'; make it: nats stream add {self._stream} --subjects ..."
                ) from None
            self._made = str(information.created).replace(" ", "T")
            wanted = ConsumerConfig(
                durable_name=self._group,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=self._idle,
                filter_subject=self._subject,
            )
            try:
                await stream.consumer_info(self._stream, self._group)
            except NotFoundError:
                await stream.add_consumer(self._stream, wanted)
            self._consumer = await stream.pull_subscribe_bind(self._group, self._stream)
        try:
            return await self._consumer.fetch(_BATCH, timeout=_FETCH_SECONDS)
        except NothingThereError:
            return []

    async def _say(self, replies: Sequence[str], word: bytes) -> None:
        """An acknowledgement is a message to where the delivery said, from whatever connection there is now."""
        client = await self._open()
        for reply in replies:
            await client.publish(reply, word)
        await client.flush()

    async def _bury(self, message: Msg, message_id: str, reason: str) -> None:
        from nats.js.errors import NotFoundError

        stream, subject = (await self._open()).jetstream(), f"dead-letters.{self._stream}"
        try:
            await stream.stream_info(f"{self._stream}-dead")
        except NotFoundError:
            await stream.add_stream(name=f"{self._stream}-dead", subjects=[subject])
        headers = {"Nats-Msg-Id": message_id, "Dead-Letter-Reason": " ".join(reason.split())}
        await stream.publish(subject, message.data, headers=headers)
        await self._say([message.reply], _NO_MORE)


async def _ignore(error: Exception) -> None:
    """The client otherwise prints what the caller hears anyway."""
