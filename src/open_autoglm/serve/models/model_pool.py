# SPDX-License-Identifier: Apache-2.0
"""`ModelPool`: several models, each in a process of its own, loaded when first asked, let go when memory is short."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from open_autoglm.engine.memory import available_memory
from open_autoglm.engine.model_paths import find_model, size_of_model, version_of_model
from open_autoglm.engine.orders import ModelCard
from open_autoglm.errors import ConfigurationError, EngineError, OpenAutoGLMError
from open_autoglm.serve.models.engine_process import EngineProcess, EngineWatch
from open_autoglm.serve.models.latency import Latency
from open_autoglm.serve.models.model_client import ModelStatus, model_not_found
from open_autoglm.serve.models.worker_process import ModelSource

_RESERVE: Final = 128 * 1024 * 1024
"""Bytes of memory that stay free; idle models leave for it."""
_PROCESS_BYTES: Final = 100 * 1024 * 1024
_LOOK_SECONDS: Final = 5.0
_LEAVE_SECONDS: Final = 0.05
_LONGEST_REFUSAL: Final = 60.0


@dataclass(frozen=True)
class ModelEntry:
    """A model that clients may ask for. preload: load it when the server starts."""

    name: str
    source: ModelSource
    aliases: tuple[str, ...] = ()
    preload: bool = False


@dataclass(frozen=True)
class PoolLimits:
    """How many models may be loaded at one time.

    max_loaded: none for as many as fit. memory_limit: bytes that their processes take together at most; none for what
    the system has. wait_seconds: how long a call waits for a loaded model to become idle, so that it can leave.
    Raises ConfigurationError for a limit that cannot be.
    """

    max_loaded: int | None = None
    memory_limit: int | None = None
    wait_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.max_loaded is not None and self.max_loaded < 1:
            raise ConfigurationError(f"max_loaded must be at least 1, not {self.max_loaded}")
        if self.memory_limit is not None and self.memory_limit < 1:
            raise ConfigurationError(f"memory_limit must be at least 1 byte, not {self.memory_limit}")


@dataclass(eq=False)
class _Slot:
    """A model's place.

    bytes: what its process took when it was looked at last; 0 before. reserved: while it loads. restarts: of processes
    that have left.
    """

    entry: ModelEntry
    client: EngineProcess | None = None
    loading: asyncio.Task[EngineProcess] | None = None
    users: int = 0
    last_used: int = 0
    bytes: int = 0
    reserved: int = 0
    card: ModelCard | None = None
    latency: Latency = field(default_factory=Latency)
    failures: int = 0
    error: EngineError | None = None
    retry_at: float = 0.0
    loads: int = 0
    evictions: int = 0
    restarts: int = 0
    version: str | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded and nobody works with it."""
        return self.client is not None and not self.users and not self.client.num_open

    @property
    def expected_bytes(self) -> int:
        """What it will take: as it did the last time, or a guess from its files."""
        if self.bytes:
            return self.bytes
        try:
            return size_of_model(find_model(self.entry.source.model)) + _PROCESS_BYTES
        except OpenAutoGLMError:
            return _PROCESS_BYTES  # loading it will tell what is wrong


class ModelPool:
    """`Models` by name and alias. free_memory: what the system still has, in bytes.

    Raises ConfigurationError for no model, and for a name that two have.
    """

    def __init__(
        self,
        entries: Sequence[ModelEntry],
        *,
        max_queued: int,
        limits: PoolLimits | None = None,
        watch: EngineWatch | None = None,
        free_memory: Callable[[], int] = available_memory,
    ) -> None:
        self._limits, self._watch, self._max_queued = limits or PoolLimits(), watch, max_queued
        self._free_memory = free_memory
        self._own_name = _own_names(entries)
        self._slots = {entry.name: _Slot(entry) for entry in entries}
        self._leaving: dict[asyncio.Task[None], _Slot] = {}
        self._taking = asyncio.Lock()
        self._created = int(time.time())
        self._uses = itertools.count(1)
        self._making_room = asyncio.Lock()
        self._became_idle = asyncio.Event()
        self._stopping = False
        self._looking: asyncio.Task[None] | None = None

    def names(self) -> list[str]:
        """The names of the models; the first is the default."""
        return list(self._slots)

    def resolve(self, name: str | None) -> str:
        """The model's own name for a name or alias; the first model's for none. Raises HttpError 404."""
        if name is None:
            return next(iter(self._slots))
        if name not in self._own_name:
            raise model_not_found(name, list(self._own_name))
        return self._own_name[name]

    def latency(self, name: str) -> Latency:
        """How long a model's answers took of late."""
        slot = self._slots[name]
        return slot.latency if slot.client is None else slot.client.latency

    def statuses(self) -> list[ModelStatus]:
        """All models with their state."""
        return [self._status(slot) for slot in self._slots.values()]

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[EngineProcess]:
        """The model, loaded if it was not; it stays at least until the block ends.

        Raises HttpError 404 for an unknown name, EngineError for a model that cannot be loaded or finds no room.
        """
        slot = self._slots[self.resolve(name)]
        slot.users += 1
        slot.last_used = next(self._uses)
        try:
            yield await self._client(slot)
        finally:
            slot.users -= 1
            slot.last_used = next(self._uses)
            self._became_idle.set()

    async def start(self) -> None:
        """Load what is to be there from the beginning. Raises what is wrong with it."""
        if self._looking is not None:
            return
        self._looking = asyncio.create_task(self._look())
        try:
            for slot in self._slots.values():
                if slot.entry.preload:
                    await self._client(slot)
        except BaseException:
            await self.stop()
            raise

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no more orders, give those in work some time, end the rest with an error, let all models go."""
        self._stopping = True
        if self._looking is not None:
            self._looking.cancel()
        slots = [*self._slots.values(), *self._leaving.values()]
        for task in list(self._leaving):
            task.cancel()
        loading = [slot.loading for slot in slots if slot.loading is not None]
        for task in loading:
            task.cancel()
        if loading:
            await asyncio.wait(loading)
        clients = [slot.client for slot in slots if slot.client is not None]
        await asyncio.gather(*(client.stop(drain_seconds) for client in clients))

    async def take(self, entries: Sequence[ModelEntry]) -> list[str]:
        """Serve these models from now on. Returns the names of those that came, went or have other files.

        A model that is loaded and has other files is loaded beside the old one, which ends when its answers are done,
        so no answer is cut off; for that moment the memory of both is taken, whatever the limits say.
        Raises ConfigurationError for a name that two have, EngineError when a model cannot be loaded; then all stays
        as it was.
        """
        async with self._taking:
            names, slots, fresh = _own_names(entries), dict[str, _Slot](), list[_Slot]()
            try:
                for entry in entries:
                    old = self._slots.get(entry.name)
                    if old is not None and old.entry.source == entry.source:
                        slots[entry.name] = old
                        continue
                    slots[entry.name] = slot = _Slot(entry)
                    if entry.preload or (old is not None and old.client is not None):
                        fresh.append(slot)
                        await self._client(slot)
            except BaseException:
                for slot in fresh:
                    await self._unload(slot)
                raise
            before, self._slots, self._own_name = self._slots, slots, names
            for entry in entries:
                slots[entry.name].entry = entry
            for slot in before.values():
                if slots.get(slot.entry.name) is not slot:
                    task = asyncio.create_task(self._let_go(slot))
                    self._leaving[task] = slot
                    task.add_done_callback(self._leaving.pop)
            return [name for name in {**before, **slots} if before.get(name) is not slots.get(name)]

    async def _let_go(self, slot: _Slot) -> None:
        """End a model that is served no more, once nobody works with it."""
        while slot.users or slot.loading is not None or (slot.client is not None and slot.client.num_open):  # noqa: ASYNC110 - any of three
            await asyncio.sleep(_LEAVE_SECONDS)
        await self._unload(slot)

    async def _client(self, slot: _Slot) -> EngineProcess:
        """The slot's model; those who ask while it is loaded wait for the same load."""
        if self._stopping:
            raise EngineError("the server is stopping; ask again later")
        if slot.client is not None:
            return slot.client
        if slot.loading is None:
            if slot.error is not None and asyncio.get_running_loop().time() < slot.retry_at:
                raise slot.error
            slot.loading = asyncio.create_task(self._load(slot))
            slot.loading.add_done_callback(lambda task: self._loaded(slot, task))
        return await asyncio.shield(slot.loading)  # who goes away does not end it for the others

    def _loaded(self, slot: _Slot, task: asyncio.Task[EngineProcess]) -> None:
        slot.loading = None
        if not task.cancelled():
            task.exception()  # whoever waits has it

    async def _load(self, slot: _Slot) -> EngineProcess:
        async with self._making_room:
            await self._make_room(slot)
            client = EngineProcess(
                slot.entry.source, max_queued=self._max_queued, label=slot.entry.name, watch=self._watch
            )
            slot.reserved = slot.expected_bytes
        try:
            version = version_of_model(find_model(slot.entry.source.model))
            await client.start()
        except OpenAutoGLMError as error:
            slot.failures += 1
            slot.error = EngineError(f"the model {slot.entry.name!r} cannot be loaded: {error}")
            slot.retry_at = asyncio.get_running_loop().time() + min(_LONGEST_REFUSAL, 2.0 ** min(slot.failures, 10))
            raise slot.error from None
        finally:
            slot.reserved = 0
            self._became_idle.set()
        slot.client, slot.card, slot.failures, slot.error = client, client.card, 0, None
        slot.loads += 1
        slot.version = version
        slot.bytes = client.memory
        return client

    async def _make_room(self, slot: _Slot) -> None:
        """Let idle models go, the least recently used first, until another fits."""
        deadline = asyncio.get_running_loop().time() + self._limits.wait_seconds
        need = slot.expected_bytes
        while (lack := self._lack(need)) is not None:
            idle = [other for other in self._slots.values() if other.is_idle]
            if idle:
                await self._unload(min(idle, key=lambda other: other.last_used))
                continue
            if not any(other.client or other.reserved for other in self._slots.values()):
                if self._limits.memory_limit is not None and need > self._limits.memory_limit:
                    raise EngineError(f"the model {slot.entry.name!r} has no room: {lack}")
                return  # nobody can leave: the engine will see whether it fits
            self._became_idle.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._became_idle.wait()
            except TimeoutError:
                raise EngineError(
                    f"the model {slot.entry.name!r} has no room, and those that are loaded are in work ({lack}); "
                    "ask again later"
                ) from None

    def _lack(self, need: int) -> str | None:
        """What another model of so many bytes lacks, if anything."""
        limits = self._limits
        loaded = [slot for slot in self._slots.values() if slot.client is not None or slot.reserved]
        if limits.max_loaded is not None and len(loaded) >= limits.max_loaded:
            return f"at most {limits.max_loaded} are loaded at one time"
        for slot in loaded:
            if slot.client is not None and (found := slot.client.memory):
                slot.bytes = found
        reserved = sum(slot.reserved for slot in loaded)
        used = reserved + sum(slot.bytes for slot in loaded if not slot.reserved)
        if limits.memory_limit is not None and used + need > limits.memory_limit:
            megabytes = (need / 1e6, used / 1e6, limits.memory_limit / 1e6)
            return "it takes about {:.0f} MB and the others {:.0f} MB, of {:.0f} MB".format(*megabytes)
        free = self._free_memory() - reserved
        if free < need + _RESERVE:
            return f"it takes about {need / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free"
        return None

    async def _unload(self, slot: _Slot) -> None:
        client, slot.client = slot.client, None
        if client is not None:
            slot.latency = client.latency
            slot.evictions += 1
            slot.restarts += client.num_restarts
            await client.stop()

    async def _look(self) -> None:
        """Let idle models go while the memory of the system is short."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._free_memory() >= _RESERVE:
                continue
            async with self._making_room:
                idle = [slot for slot in self._slots.values() if slot.is_idle]
                if idle:
                    await self._unload(min(idle, key=lambda slot: slot.last_used))

    def _status(self, slot: _Slot) -> ModelStatus:
        client, entry = slot.client, slot.entry
        if client is None:
            is_down = slot.error is not None and slot.loading is None
            state = "failed" if is_down else "loading" if slot.loading is not None else "not loaded"
            reason = str(slot.error) if is_down else None
            return ModelStatus(
                entry.name,
                state,
                self._created,
                entry.aliases,
                slot.card,
                reason=reason,
                num_loads=slot.loads,
                num_evictions=slot.evictions,
                num_restarts=slot.restarts,
                version=slot.version,
            )
        return ModelStatus(
            entry.name,
            client.state,
            self._created,
            entry.aliases,
            client.card,
            client.stats,
            client.num_open,
            client.is_ready,
            client.reason,
            slot.loads,
            slot.evictions,
            slot.restarts + client.num_restarts,
            slot.version,
        )


def _own_names(entries: Sequence[ModelEntry]) -> dict[str, str]:
    """The model's own name for each name and alias."""
    found: dict[str, str] = {}
    for entry in entries:
        for name in (entry.name, *entry.aliases):
            if name in found:
                raise ConfigurationError(f"two models are called '{name}'; give one another name: NAME=PATH")
            found[name] = entry.name
    if not found:
        raise ConfigurationError("there is no model to serve")
    return found
