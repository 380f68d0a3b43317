# SPDX-License-Identifier: Apache-2.0
"""What of a run can be done next: a plain object without clock, threads or disk, so that it can be tested as such.

A stage becomes *items* when all that it needs is done: one, or one for each packet of a stage that yielded several, or
one for each batch of `for_each`. Each item is tried, recorded and committed by itself. What the items of a stage give
is its output, in their order whatever the order in which they ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.conditions import Condition, parse_condition
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.records import FILE_KEY, read_records
from open_autoglm.pipeline.specification import ForEachSpecification, PipelineSpecification, StageSpecification

MOST_ITEMS: Final = 100_000


@dataclass(frozen=True)
class ItemKey:
    """An item of a stage: its number counts from 0."""

    stage: str
    number: int


@dataclass(frozen=True)
class WorkItem:
    """Something to do: a stage's code on one packet."""

    key: ItemKey
    stage: StageSpecification
    packet: Packet


class _StageProgress:
    """A stage whose needs are done. origins: for each item, the input packet that it is a part of."""

    def __init__(self, inputs: list[Packet]) -> None:
        self.inputs = inputs
        self.packets: list[Packet] = []
        self.origins: list[int] = []
        self.outputs: dict[int, tuple[Packet, ...]] = {}


class RunPlan:
    """The progress of one run through its pipeline.

    recorded: the outputs of items that are done already.
    on_passed: called with each item that `when` lets pass by, and its packet.
    Raises PipelineError, from `open_stages`, when a stage's input cannot be taken apart or its condition decided.
    """

    def __init__(
        self,
        specification: PipelineSpecification,
        packet: Packet,
        recorded: Mapping[ItemKey, Iterable[Packet]] | None = None,
        *,
        on_passed: Callable[[ItemKey, Packet], None] = lambda key, packet: None,
    ) -> None:
        self._specification = specification
        self._packet = packet
        self._recorded = {key: tuple(packets) for key, packets in (recorded or {}).items()}
        self._on_passed = on_passed
        self._needs = specification.needs
        self._stages = {stage.stage: stage for stage in specification.stages}
        self._missing = {name: set(needs) for name, needs in self._needs.items()}
        self._followers: dict[str, list[str]] = {name: [] for name in self._needs}
        for name, needs in self._needs.items():
            for need in needs:
                self._followers[need].append(name)
        self._open: dict[str, _StageProgress] = {}
        self._outputs: dict[str, tuple[Packet, ...]] = {}
        self._conditions: dict[str, Condition] = {}
        self._to_open = [stage.stage for stage in specification.order if not self._missing[stage.stage]]

    def open_stages(self) -> list[WorkItem]:
        """Open every stage that can be opened by now; returns what there is to do in them."""
        work: list[WorkItem] = []
        while self._to_open:
            name = self._to_open.pop(0)
            work.extend(self._open_stage(self._stages[name]))
        return work

    def finish(self, key: ItemKey, packets: Iterable[Packet]) -> bool:
        """An item is done; True if with it all of its stage is. `open_stages` may have more to do then."""
        progress = self._open[key.stage]
        if key.number in progress.outputs:
            raise ValueError(f"item {key} is done already")
        progress.outputs[key.number] = tuple(packets)
        return self._close_if_complete(key.stage)

    @property
    def is_done(self) -> bool:
        """Whether every stage is done."""
        return len(self._outputs) == len(self._stages)

    def is_stage_done(self, stage: str) -> bool:
        """Whether all items of a stage are done."""
        return stage in self._outputs

    def items_of(self, stage: str) -> int | None:
        """How many items an opened stage has; None before it is opened."""
        progress = self._open.get(stage)
        return None if progress is None else len(progress.packets)

    def result(self) -> Packet:
        """The packet of the last stage; by name if there are several, or if it gave another number of packets."""
        return self._joined(self._specification.last)[0]

    def _open_stage(self, stage: StageSpecification) -> list[WorkItem]:
        try:
            inputs = self._inputs(stage)
            progress = _StageProgress(inputs)
            for origin, packet in enumerate(inputs):
                parts = [packet] if stage.for_each is None else _batches(packet, stage.for_each)
                progress.packets.extend(parts)
                progress.origins.extend([origin] * len(parts))
            if len(progress.packets) > MOST_ITEMS:
                raise PipelineError(f"it would run {len(progress.packets)} times; {MOST_ITEMS} is the limit")
            self._open[stage.stage] = progress
            work: list[WorkItem] = []
            for number, packet in enumerate(progress.packets):
                key = ItemKey(stage.stage, number)
                if key in self._recorded:
                    progress.outputs[number] = self._recorded.pop(key)
                elif not self._holds(stage, packet):
                    progress.outputs[number] = (packet,)
                    self._on_passed(key, packet)
                else:
                    work.append(WorkItem(key, stage, packet))
        except PipelineError as error:
            raise PipelineError(f"stage '{stage.stage}': {error}") from None
        self._close_if_complete(stage.stage)
        return work

    def _holds(self, stage: StageSpecification, packet: Packet) -> bool:
        if stage.when is None:
            return True
        condition = self._conditions.get(stage.stage)
        if condition is None:
            condition = self._conditions[stage.stage] = parse_condition(stage.when)
        run = {"session_id": packet.session_id, "pipeline": self._specification.name}
        return condition({"payload": packet.payload, "metadata": packet.metadata, "run": run})

    def _inputs(self, stage: StageSpecification) -> list[Packet]:
        needs = self._needs[stage.stage]
        if not needs:
            return [self._packet]
        return self._joined(needs)

    def _joined(self, needs: tuple[str, ...]) -> list[Packet]:
        """The packets of one stage; of several, one packet with the payload of each by name, a list if it gave many."""
        if len(needs) == 1 and needs[0] not in self._several_last():
            return list(self._outputs[needs[0]])
        metadata: dict[str, Any] = {}
        payloads: dict[str, Any] = {}
        for need in needs:
            packets = self._outputs[need]
            for packet in packets:
                metadata.update(packet.metadata)
            payloads[need] = packets[0].payload if len(packets) == 1 else [packet.payload for packet in packets]
        return [Packet(self._packet.session_id, payloads, metadata)]

    def _several_last(self) -> tuple[str, ...]:
        """The last stage, if it is one that gave another number of packets than one."""
        last = self._specification.last
        return last if len(last) == 1 and len(self._outputs.get(last[0], ())) != 1 else ()

    def _close_if_complete(self, name: str) -> bool:
        progress = self._open[name]
        if len(progress.outputs) < len(progress.packets):
            return False
        outputs = [progress.outputs[number] for number in range(len(progress.packets))]
        batches = self._stages[name].for_each
        if batches is None:
            self._outputs[name] = tuple(packet for packets in outputs for packet in packets)
        else:
            parts: list[list[Packet]] = [[] for _ in progress.inputs]
            for origin, packets in zip(progress.origins, outputs, strict=True):
                parts[origin].extend(packets)
            self._outputs[name] = tuple(
                _merged(packet, given, batches) for packet, given in zip(progress.inputs, parts, strict=True)
            )
        progress.packets = [Packet(self._packet.session_id)] * len(progress.packets)  # only their number counts now
        progress.inputs, progress.outputs = [], dict.fromkeys(progress.outputs, ())
        for follower in self._followers[name]:
            self._missing[follower].discard(name)
            if not self._missing[follower] and follower not in self._open and follower not in self._to_open:
                self._to_open.append(follower)
        return True


def _batches(packet: Packet, batches: ForEachSpecification) -> list[Packet]:
    records = list(read_records(packet.payload, batches.items))
    parts: list[Packet] = []
    for start in range(0, len(records), batches.batch):
        part = records[start : start + batches.batch]
        parts.append(packet.with_payload({**packet.payload, batches.items: part}))
    return parts


def _merged(packet: Packet, parts: list[Packet], batches: ForEachSpecification) -> Packet:
    """The results of the batches as one packet: their records one after the other, the rest as the last one has it."""
    payload, metadata = dict(packet.payload), dict(packet.metadata)
    records: list[Any] = []
    for part in parts:
        payload.update(part.payload)
        metadata.update(part.metadata)
        given = part.payload.get(batches.items)
        if isinstance(given, dict) and FILE_KEY in given:
            records.extend(read_records(part.payload, batches.items))
        elif isinstance(given, list):
            records.extend(given)
    payload[batches.items] = records
    return Packet(packet.session_id, payload, metadata)
