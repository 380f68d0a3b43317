# SPDX-License-Identifier: Apache-2.0
"""What a server and an engine in a process of its own say to each other, and how it lies on their socket.

Each message is its length (four bytes, little-endian) and then MessagePack of one of the structures below. Nothing
in it is code, and whoever reads it checks every field.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar

import msgspec

from open_autoglm import errors
from open_autoglm.engine.orders import ModelCard, Order, Piece, Question, Reply
from open_autoglm.engine.stats import EngineStats
from open_autoglm.errors import EngineError, OpenAutoGLMError, RequestError

MAX_MESSAGE: Final = 64 * 1024 * 1024
"""Bytes of one message; what a server takes as a request is far less."""

_HEAD: Final = struct.Struct("<I")
_Message = TypeVar("_Message")


class Load(msgspec.Struct, frozen=True, tag="load"):
    """The first message: the model to open, and the keyword arguments of `LLM`. max_queued: choices at one time."""

    model: str
    options: dict[str, Any]
    max_queued: int


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """An order. number: what answers call it. whole: its pieces are wanted at the end only, merged."""

    number: int
    order: Order
    whole: bool = False


class Put(msgspec.Struct, frozen=True, tag="put"):
    """A question, which has one reply."""

    number: int
    question: Question


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """Nobody waits for an order any more."""

    number: int


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End the process."""


ToWorker = Load | Ask | Put | Leave | Stop


class Fault(msgspec.Struct, frozen=True):
    """An error of ours: its class, message, and the request's field at fault."""

    kind: str
    message: str
    parameter: str | None = None

    @classmethod
    def of(cls, error: OpenAutoGLMError) -> Fault:
        """The fault that says what `error` says."""
        parameter = error.parameter if isinstance(error, RequestError) else None
        return cls(type(error).__name__, str(error), parameter)

    def to_error(self) -> OpenAutoGLMError:
        """An error of the same class with the same message."""
        kind = getattr(errors, self.kind, None)
        if not isinstance(kind, type) or not issubclass(kind, OpenAutoGLMError):
            return EngineError(self.message)
        return kind(self.message, self.parameter) if issubclass(kind, RequestError) else kind(self.message)


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The model is there and takes orders."""

    card: ModelCard


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The model cannot be loaded; the process ends."""

    fault: Fault


class Part(msgspec.Struct, frozen=True, array_like=True):
    """What is new for one order. is_last: nothing follows."""

    number: int
    pieces: list[Piece]
    is_last: bool


class Step(msgspec.Struct, frozen=True, tag="step"):
    """All that a step of the engine brought."""

    parts: list[Part]


class Replied(msgspec.Struct, frozen=True, tag="replied"):
    """The reply to a question."""

    number: int
    reply: Reply


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """An order or a question that ends with a fault."""

    number: int
    fault: Fault


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """Said several times a second by a process that is alive.

    step_seconds: how long the step in work has taken so far, 0 between steps. seconds_since_step: how long ago one
    succeeded. num_open: choices in work or waiting.
    """

    stats: EngineStats
    step_seconds: float
    seconds_since_step: float | None
    num_open: int


FromWorker = Loaded | Refused | Step | Replied | Failed | Beat


class MessageWriter:
    """Messages -> bytes. Used by one thread at a time."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()

    def bytes_of(self, message: ToWorker | FromWorker) -> bytearray:
        """The message as it lies on the socket. Raises EngineError if it is too large."""
        buffer = bytearray(_HEAD.size)
        self._encoder.encode_into(message, buffer, _HEAD.size)
        size = len(buffer) - _HEAD.size
        if size > MAX_MESSAGE:
            raise EngineError(
                f"a message to or from the engine would have {size} bytes, at most {MAX_MESSAGE} are sent"
            )
        _HEAD.pack_into(buffer, 0, size)
        return buffer


class MessageReader(Generic[_Message]):
    """Bytes as they come -> messages. kind: the union of structures that may come. size: bytes of the last message."""

    def __init__(self, kind: Any) -> None:
        self.size = 0
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[_Message]:
        """The messages that are whole now. Raises EngineError for what is no message of ours."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _HEAD.size:
                (size,) = _HEAD.unpack_from(self._buffer, start)
                if size > MAX_MESSAGE:
                    raise EngineError("the engine's process sent something that is no message")
                end = start + _HEAD.size + size
                if end > len(self._buffer):
                    break
                with memoryview(self._buffer)[start + _HEAD.size : end] as body:
                    message = self._decoder.decode(body)
                start, self.size = end, size
                yield message
        except msgspec.DecodeError as error:
            raise EngineError(f"the engine's process sent something that is no message: {error}") from None
        finally:
            del self._buffer[:start]
