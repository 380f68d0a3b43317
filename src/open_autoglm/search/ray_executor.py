# SPDX-License-Identifier: Apache-2.0
"""Trials on a Ray cluster. The run folder must lie where every node reaches it: checkpoints are how a trial moves.

Only JSON goes in and out. A trial whose node dies is begun again by the search, on another node, from its checkpoint;
Ray itself repeats nothing, so no trial runs twice at a time.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from open_autoglm import errors
from open_autoglm.errors import ConfigurationError, OpenAutoGLMError, TrainingError
from open_autoglm.python_path import extend_python_path, python_folders
from open_autoglm.search.executors import MOST_LOSSES, Listener
from open_autoglm.search.trial import FAILED_VALUE, Rung, TrialOrder, TrialRecord, run_trial

_POLL_SECONDS: Final = 0.2
_STEP_SECONDS: Final = 0.5


class _Mailbox:
    """Lives on the node of the search: keeps what trials say until it is fetched, and the answers to them."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._answers: dict[str, asyncio.Future[bool]] = {}

    async def tell(self, message: str) -> None:
        self._said.append(message)

    async def ask(self, key: str, message: str) -> bool:
        self._answers[key] = asyncio.get_running_loop().create_future()
        self._said.append(message)
        return await self._answers[key]

    async def fetch(self) -> list[str]:
        said, self._said = self._said, []
        return said

    async def answer(self, key: str, go_on: bool) -> None:
        waiting = self._answers.pop(key, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(go_on)


class RayExecutor:
    """Each trial is a Ray task.

    target: `module:function` that makes a `Bench` of `context`, a JSON object, on the node. count: how many trials run
    at a time. threads: processors of each. address: of a running cluster; one on this machine is started without.
    """

    def __init__(
        self, target: str, context: Mapping[str, Any], *, count: int, threads: int = 1, address: str | None = None
    ) -> None:
        if count < 1:
            raise ConfigurationError(f"at least one trial must run at a time, not {count}")
        self._target, self._context, self._count, self._threads = target, json.dumps(dict(context)), count, threads
        self._owns = not ray.is_initialized()
        if self._owns:
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=False, configure_logging=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigurationError(f"--executor ray: there is no Ray cluster at {address}: {error}") from None
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        remote: Any = ray.remote
        mailbox = remote(num_cpus=0, max_concurrency=1000)(_Mailbox)
        self._mailbox = mailbox.options(scheduling_strategy=here).remote()
        self._task = remote(num_cpus=threads, max_retries=0)(_run)
        self._open: dict[Any, tuple[TrialOrder, int]] = {}

    @property
    def capacity(self) -> int:
        """How many trials run at a time."""
        return self._count

    def submit(self, order: TrialOrder) -> None:
        """Begin a trial on some node."""
        self._begin(replace(order, threads=order.threads or self._threads), losses=0)

    def wait(self, listener: Listener, timeout: float | None = None) -> None:
        """Tell what the trials report, until one has ended or the time is over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._open:
            self._hear(listener)
            done, _ = ray.wait(list(self._open), num_returns=1, timeout=_POLL_SECONDS)
            if done and self._end(done[0], listener):
                return
            if deadline is not None and time.monotonic() >= deadline:
                return

    def close(self) -> None:
        """Cancel the trials, and leave the cluster if it was joined here."""
        for task in self._open:
            ray.cancel(task, force=True)
        self._open = {}
        ray.kill(self._mailbox)
        if self._owns:
            ray.shutdown()

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, order: TrialOrder, *, losses: int) -> None:
        job = {
            "target": self._target,
            "context": self._context,
            "order": order.to_dict(),
            "attempt": f"{order.number}.{losses}",
            "paths": python_folders(),
        }
        task = self._task.remote(json.dumps(job), self._mailbox)
        self._open[task] = order, losses

    def _hear(self, listener: Listener) -> None:
        for text in ray.get(self._mailbox.fetch.remote()):
            message = json.loads(text)
            number = int(message["attempt"].partition(".")[0])
            task = next((t for t, (o, n) in self._open.items() if f"{o.number}.{n}" == message["attempt"]), None)
            if task is None:
                continue  # of an attempt that is known to be dead
            if "rung" in message:
                rung = Rung(**message["rung"])
                order, losses = self._open[task]
                self._open[task] = replace(order, reported=rung.rung), losses
                self._mailbox.answer.remote(f"{message['attempt']}/{rung.rung}", listener.decide(rung))
            else:
                listener.note(number, *message["step"])

    def _end(self, task: Any, listener: Listener) -> bool:
        """Take the result of a task that ended. Returns whether the trial has ended with it."""
        self._hear(listener)
        order, losses = self._open.pop(task)
        try:
            message = json.loads(ray.get(task))
        except RayError as error:  # its node or process died, unless the trial itself raised
            if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError):
                raise TrainingError(f"trial {order.number} failed on its node: {error.cause}") from None
            if losses < MOST_LOSSES:
                self._begin(order, losses=losses + 1)
                return False
            why = f"its node or process died {losses + 1} times"
            parameters = order.candidate.config.num_parameters()
            listener.finish(TrialRecord(order.number, "failed", FAILED_VALUE, parameters, failure=why))
            return True
        if "fault" in message:
            name, text = message["fault"]
            raise getattr(errors, name, TrainingError)(text)
        listener.finish(TrialRecord(**message["record"]))
        return True


def _run(job: str, mailbox: Any) -> str:
    """On the node: run a trial and return its record. job: the trial, JSON; so is what comes back."""
    asked: dict[str, Any] = json.loads(job)
    attempt = asked["attempt"]
    extend_python_path(asked["paths"])
    module, _, function = asked["target"].partition(":")
    bench: Any = getattr(importlib.import_module(module), function)(json.loads(asked["context"]))
    marks = [0.0]

    def ask(rung: Rung) -> bool:
        message = json.dumps({"attempt": attempt, "rung": rung.to_dict()})
        return bool(ray.get(mailbox.ask.remote(f"{attempt}/{rung.rung}", message)))

    def note(step: int, steps: int, seconds: float) -> None:
        if time.monotonic() - marks[0] >= _STEP_SECONDS:
            marks[0] = time.monotonic()
            mailbox.tell.remote(json.dumps({"attempt": attempt, "step": [step, steps, seconds]}))

    try:
        return json.dumps({"record": run_trial(bench, TrialOrder(**asked["order"]), ask, note).to_dict()})
    except OpenAutoGLMError as error:
        return json.dumps({"fault": [type(error).__name__, str(error)]})
