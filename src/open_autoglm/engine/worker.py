# SPDX-License-Identifier: Apache-2.0
"""The engine in a process of its own: `python -m open_autoglm.engine.worker SOCKET PARENT`.

A server starts it with one end of a socket pair and says in the first message which model to load; `wire.py` has what
follows. Four kinds of threads share the work: this one reads orders; a few prepare them when there is room; the
engine's own steps, and writes all that a step brought in one message; one says several times a second that the process
lives and where the engine stands. The process ends when the socket does, so it never outlives its server.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Final, NoReturn

from open_autoglm.engine.engine_thread import EngineThread, News
from open_autoglm.engine.garbage import look_seldom
from open_autoglm.engine.llm import LLM
from open_autoglm.engine.order_desk import PREPARING, OrderDesk, error_of
from open_autoglm.engine.orders import ChatOrder, Order, Reply
from open_autoglm.engine.prepared_order import PreparedQuestion
from open_autoglm.engine.request import Completion, Delta
from open_autoglm.engine.sending import OpenAnswer, Pacer
from open_autoglm.engine.stats import PROBE_SECONDS
from open_autoglm.engine.waiting_line import WaitingLine
from open_autoglm.engine.wire import (
    Ask,
    Beat,
    Failed,
    Fault,
    FromWorker,
    Leave,
    Load,
    Loaded,
    MessageReader,
    MessageWriter,
    Part,
    Put,
    Refused,
    Replied,
    Step,
    Stop,
    ToWorker,
)
from open_autoglm.errors import ConfigurationError, EngineError, OpenAutoGLMError

BEAT_SECONDS: Final = 0.25
_FIRST_STEP_SECONDS: Final = 2.0
_READ_BYTES: Final = 256 * 1024
_SMALL_BYTES: Final = 4096
"""An order that is smaller is tokenised in less than a millisecond."""
_FAULT_EXIT: Final = 70
_PR_SET_PDEATHSIG: Final = 1


class _Question:
    """A question in work. completions: of its requests, as they come."""

    __slots__ = ("completions", "left", "number", "prepared")

    def __init__(self, number: int) -> None:
        self.number, self.left = number, False
        self.prepared: PreparedQuestion | None = None
        self.completions: dict[str, Completion] = {}

    @property
    def request_ids(self) -> list[str]:
        """Of the engine."""
        return [] if self.prepared is None else [request.id for request in self.prepared.requests]


class _Outbox:
    """Writes messages from any thread, each whole. A reader that is behind holds the writer up: nothing piles up."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._writer, self._lock = connection, MessageWriter(), threading.Lock()

    def send(self, message: FromWorker) -> None:
        """Write a message. The process ends when nobody is there to read it."""
        with self._lock:
            try:
                self._connection.sendall(self._writer.bytes_of(message))
            except OSError:
                os._exit(0)


class Worker:
    """A model that takes orders from a socket."""

    def __init__(self, llm: LLM, outbox: _Outbox, max_queued: int) -> None:
        self._outbox = outbox
        self._desk = OrderDesk(llm)
        self._thread = EngineThread(
            llm.engine, max_queued=max_queued, probe_seconds=PROBE_SECONDS, after_step=self._send_due
        )
        self._preparing = ThreadPoolExecutor(1, "open-autoglm-questions")
        most = llm.engine.most_ready
        self._line = WaitingLine(lambda: self._thread.num_open < most, PREPARING, "open-autoglm-desk")
        self._orders: dict[int, OpenAnswer | _Question] = {}
        self._pacer = Pacer()
        self._news: dict[OpenAnswer, None] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Take orders from now on."""
        self._thread.start()
        self._outbox.send(Loaded(self._desk.card))
        threading.Thread(target=self._beat, name="open-autoglm-beat", daemon=True).start()

    def obey(self, message: ToWorker, size: int = _SMALL_BYTES) -> None:
        """Begin or end an order; what is slow goes to other threads. size: of the message, in bytes."""
        match message:
            case Ask():
                order = self._orders[message.number] = OpenAnswer(message.number, whole=message.whole)
                if self._is_idle and size < _SMALL_BYTES and _is_plain(message.order):
                    self._prepare(order, message)  # nobody else waits, and to wake a thread takes half as long as this
                else:
                    self._line.add(partial(self._prepare, order, message), message.order.priority)
            case Leave():
                with self._lock:
                    order = self._orders.pop(message.number, None)
                    if order is not None:
                        self._give_up(order)
            case Put():
                question = self._orders[message.number] = _Question(message.number)
                self._preparing.submit(self._prepare_question, question, message)
            case Stop() | Load():
                os._exit(0)

    @property
    def _is_idle(self) -> bool:
        return not (self._thread.num_open or len(self._line))

    def _prepare(self, order: OpenAnswer, message: Ask) -> None:
        if order.left:
            return
        try:
            prepared = self._desk.prepare(message.order)
            with self._lock:  # whoever leaves does so before this or after it, never within
                if order.left:
                    return
                order.begin(prepared)
                self._thread.submit(prepared.requests, order, self._hand_on)
        except OpenAutoGLMError as error:
            self._fail(order, error)
        except Exception:  # noqa: BLE001 - a fault of ours ends this order only
            self._fail(order, _internal_error())

    def _prepare_question(self, question: _Question, message: Put) -> None:
        if question.left:
            return
        try:
            prepared = self._desk.prepare_question(message.question)
            if not prepared.requests:
                self._reply(question, prepared.reply([]))
                return
            with self._lock:
                if question.left:
                    return
                question.prepared = prepared
                self._thread.submit(prepared.requests, question, self._hand_on)
        except OpenAutoGLMError as error:
            self._fail(question, error)
        except Exception:  # noqa: BLE001 - a fault of ours ends this question only
            self._fail(question, _internal_error())

    def _reply(self, question: _Question, reply: Reply) -> None:
        self._orders.pop(question.number, None)
        self._outbox.send(Replied(question.number, reply))

    def _hand_on(self, news: Sequence[News]) -> None:
        """Take what a step brought, in the engine's thread: beginnings and ends, and all that has one reply."""
        for order, item in news:
            if order.left:
                continue
            if isinstance(item, OpenAutoGLMError):
                self._fail(order, item)
            elif item.completion is not None and (error := error_of(item)) is not None:
                self._fail(order, error)
            elif isinstance(order, OpenAnswer):
                order.add(item)
                self._news[order] = None
                if order.keep is not None and not order.is_done:
                    self._thread.keep(order.request_ids, order.keep)
            else:
                self._collect(order, item)

    def _send_due(self) -> None:
        """Write what is not to wait any longer, in the engine's thread after each step."""
        answers = self._pacer.choose(self._news, len(self._orders))
        self._news.clear()
        self._send(answers)
        self._line.wake()

    def _send(self, answers: Sequence[OpenAnswer]) -> None:
        parts: list[Part] = []
        for answer in answers:
            try:
                part = answer.part()
            except Exception:  # noqa: BLE001 - an answer that we cannot read ends alone
                self._fail(answer, _internal_error())
                continue
            parts.append(part)
            if part.is_last:
                self._orders.pop(part.number, None)
        if parts:
            self._outbox.send(Step(parts))

    def _collect(self, question: _Question, delta: Delta) -> None:
        if delta.completion is None or question.prepared is None:
            return
        question.completions[delta.request_id] = delta.completion
        if len(question.completions) == len(question.request_ids):
            completions = [question.completions[request_id] for request_id in question.request_ids]
            try:
                self._reply(question, question.prepared.reply(completions))
            except OpenAutoGLMError as error:
                self._fail(question, error)
            except Exception:  # noqa: BLE001 - a fault of ours ends this question only
                self._fail(question, _internal_error())

    def _fail(self, order: OpenAnswer | _Question, error: OpenAutoGLMError) -> None:
        if isinstance(order, OpenAnswer) and order.has_begun and not order.left:
            self._pacer.forget(order)
            self._send([order])  # what was said before the fault
        with self._lock:
            if order.left:
                return
            self._orders.pop(order.number, None)
            self._give_up(order)
        self._outbox.send(Failed(order.number, Fault.of(error)))

    def _give_up(self, order: OpenAnswer | _Question) -> None:
        order.left = True
        self._thread.abort(order.request_ids)

    def _beat(self) -> NoReturn:
        began = time.monotonic()
        while self._thread.seconds_since_step is None and time.monotonic() < began + _FIRST_STEP_SECONDS:
            time.sleep(0.002)
        while True:
            if not self._thread.is_alive:
                print("the engine's thread has ended; the process ends with it", file=sys.stderr, flush=True)  # noqa: T201
                os._exit(_FAULT_EXIT)
            since = self._thread.seconds_since_step
            stats, waiting = self._thread.stats, len(self._line)
            stats = replace(stats, num_waiting=stats.num_waiting + waiting)
            beat = Beat(stats, self._thread.step_seconds, since, self._thread.num_open + waiting)
            self._outbox.send(beat)
            time.sleep(BEAT_SECONDS)


def main(arguments: Sequence[str]) -> int:
    """Serve orders until the socket ends. arguments: the socket's number, and the server's process id.

    Returns the exit code of the error that kept the model from loading; otherwise the process ends itself.
    """
    _live_with(int(arguments[1]))
    faulthandler.enable()
    warnings.showwarning = _show_warning
    connection = socket.socket(fileno=int(arguments[0]))
    connection.setblocking(True)
    outbox = _Outbox(connection)
    reader: MessageReader[ToWorker] = MessageReader(ToWorker)
    worker: Worker | None = None
    while data := _read(connection):
        for message in reader.feed(data):
            if worker is not None:
                worker.obey(message, reader.size)
                continue
            try:
                worker = _load(message, outbox)
            except OpenAutoGLMError as error:
                outbox.send(Refused(Fault.of(error)))
                return error.exit_code
            except Exception:  # noqa: BLE001 - the server tells it as an error of the engine
                outbox.send(Refused(Fault.of(_internal_error())))
                return _FAULT_EXIT
            look_seldom()
            worker.start()
    os._exit(0)


def _load(message: ToWorker, outbox: _Outbox) -> Worker:
    if not isinstance(message, Load):
        raise EngineError("the engine's process was asked before it was told what to load")
    llm = LLM(message.model, **message.options)
    if llm.vocabulary is None:
        raise ConfigurationError(f"{llm.name} has no tokenizer.json, so it cannot chat; add the checkpoint's tokenizer")
    return Worker(llm, outbox, message.max_queued)


def _is_plain(order: Order) -> bool:
    """Whether an order brings no grammar of its own, which may take long to compile."""
    wanted = order.response_format
    if order.guided or (wanted is not None and wanted.get("type") != "text"):
        return False
    return not (isinstance(order, ChatOrder) and order.tools)


def _read(connection: socket.socket) -> bytes:
    try:
        return connection.recv(_READ_BYTES)
    except OSError:
        return b""


def _live_with(parent: int) -> None:
    """Leave signals to the server, and die with it even when stopped or stuck: no orphan keeps the memory."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before we could ask to die with it
            os._exit(0)


def _internal_error() -> EngineError:
    """The exception in work as an error of the engine; the log has its traceback."""
    traceback.print_exc()
    return EngineError("internal error of the engine; the server's log says more")


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    print(f"warning: {message}" if "open_autoglm" in category.__module__ else message, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
