# SPDX-License-Identifier: Apache-2.0
"""What a pipeline is made of: its stages, what each needs, and how patient to be with it."""

from __future__ import annotations

import dataclasses
import heapq
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.packet import json_object
from open_autoglm.spelling import did_you_mean

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MOST_STAGES: Final = 1000
EXECUTORS: Final = ("local", "ray")
_LONGEST_SECONDS: Final = 366 * 24 * 3600.0


@dataclass(frozen=True)
class RetrySpecification:
    """How often a stage is tried, and how long to wait in between.

    attempts: in all, at least 1. Only crashes, time limits and unforeseen exceptions are tried again; an
        OpenAutoGLMError is a fault that the user has to mend.
    backoff_seconds: the wait after the first failure. backoff_factor: by what each later wait is longer.
    jitter: the share of each wait that is left to chance, so that many that failed together do not come back together.
    Raises PipelineError for values that make no sense.
    """

    attempts: int = 1
    backoff_seconds: float = 1.0
    backoff_factor: float = 2.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or isinstance(self.attempts, bool) or not 1 <= self.attempts <= 100:
            raise PipelineError(f"retry.attempts must be a whole number from 1 to 100, not {self.attempts!r}")
        _check_number(self.backoff_seconds, "retry.backoff_seconds", 0.0, _LONGEST_SECONDS)
        _check_number(self.backoff_factor, "retry.backoff_factor", 1.0, 100.0)
        _check_number(self.jitter, "retry.jitter", 0.0, 1.0)

    def wait_seconds(self, failures: int) -> float:
        """How long to wait after that many failures in a row, before chance takes its share; an hour at most."""
        return min(self.backoff_seconds * self.backoff_factor ** max(failures - 1, 0), 3600.0)

    def jittered_seconds(self, failures: int, chance: float) -> float:
        """The wait with chance's share taken off. chance: from 0 (the whole wait) to 1."""
        return self.wait_seconds(failures) * (1.0 - self.jitter * chance)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RetrySpecification:
        """The inverse of `to_dict`; missing keys keep their defaults. Raises PipelineError."""
        return cls(**_known_keys(values, cls, "retry"))


@dataclass(frozen=True)
class ResourceSpecification:
    """What a stage takes of the machine while it runs. cpu: cores or parts of one. memory: bytes. gpu: whole ones.

    executor: whose machine that is, the worker's (`local`) or a node of a cluster (`ray`).
    """

    cpu: float = 1.0
    memory: int = 0
    gpu: int = 0
    executor: str = "local"

    def __post_init__(self) -> None:
        _check_number(self.cpu, "resources.cpu", 0.0, 4096.0)
        _check_number(self.memory, "resources.memory", 0, 1 << 50)
        _check_number(self.gpu, "resources.gpu", 0, 1024)
        if self.executor not in EXECUTORS:
            raise PipelineError(
                f"resources.executor: there is no '{self.executor}'" + did_you_mean(str(self.executor), EXECUTORS)
            )

    @property
    def of_worker(self) -> ResourceSpecification:
        """What it takes of the worker's own machine: nothing where a cluster runs it."""
        return self if self.executor == "local" else ResourceSpecification(cpu=0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back. The executor only where it is not this machine."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value != "local"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ResourceSpecification:
        """The inverse of `to_dict`; missing keys keep their defaults. Raises PipelineError."""
        return cls(**_known_keys(values, cls, "resources"))


@dataclass(frozen=True)
class ForEachSpecification:
    """A stage that runs once for each batch of records. items: the payload's key of the records. batch: how many."""

    items: str = "records"
    batch: int = 100

    def __post_init__(self) -> None:
        if not isinstance(self.items, str) or not self.items:
            raise PipelineError(f"for_each.items must name the payload's key of the records, not {self.items!r}")
        if not isinstance(self.batch, int) or isinstance(self.batch, bool) or not 1 <= self.batch <= 1_000_000:
            raise PipelineError(f"for_each.batch must be a whole number from 1 to 1000000, not {self.batch!r}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ForEachSpecification:
        """The inverse of `to_dict`; missing keys keep their defaults. Raises PipelineError."""
        return cls(**_known_keys(values, cls, "for_each"))


@dataclass(frozen=True)
class StageSpecification:
    """One stage: a piece of work with a name.

    stage: its name, also that of its folder. module: the short name of the code, looked up in the caller's allow-list.
    needs: the stages whose output it takes; None when that was not said (see `PipelineSpecification.needs`).
    config: JSON settings for the code. timeout_seconds: for one attempt, None for no limit.
    when: a condition over the packet that comes in; where it does not hold, the packet goes on as it is.
    for_each: run once for each batch of records. resources: what it takes of the machine.
    Raises PipelineError for values that make no sense.
    """

    stage: str
    module: str
    needs: tuple[str, ...] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    timeout_seconds: float | None = None
    retry: RetrySpecification = field(default_factory=RetrySpecification)
    when: str | None = None
    for_each: ForEachSpecification | None = None
    resources: ResourceSpecification = field(default_factory=ResourceSpecification)

    def __post_init__(self) -> None:
        if not isinstance(self.stage, str) or not _NAME.fullmatch(self.stage):
            raise PipelineError(
                f"{self.stage!r} cannot name a stage: use up to 64 letters, digits, '_', '-' and '.', "
                "a letter or digit first"
            )
        if not isinstance(self.module, str) or not self.module:
            raise PipelineError(f"stage '{self.stage}': module must name the code to run, not {self.module!r}")
        if self.needs is not None:
            if isinstance(self.needs, str) or not all(isinstance(need, str) for need in self.needs):
                raise PipelineError(f"stage '{self.stage}': needs must be a list of stage names")
            object.__setattr__(self, "needs", tuple(dict.fromkeys(self.needs)))
        try:
            object.__setattr__(self, "config", json_object(self.config, "config"))
            if self.timeout_seconds is not None:
                _check_number(self.timeout_seconds, "timeout_seconds", 0.001, _LONGEST_SECONDS)
        except PipelineError as error:
            raise PipelineError(f"stage '{self.stage}': {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        values: dict[str, Any] = {
            "stage": self.stage,
            "module": self.module,
            "needs": None if self.needs is None else list(self.needs),
            "config": self.config,
            "timeout_seconds": self.timeout_seconds,
            "retry": self.retry.to_dict(),
        }
        if self.when is not None:
            values["when"] = self.when
        if self.for_each is not None:
            values["for_each"] = self.for_each.to_dict()
        if self.resources != ResourceSpecification():
            values["resources"] = self.resources.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StageSpecification:
        """The inverse of `to_dict`; missing keys keep their defaults. Raises PipelineError."""
        name = values.get("stage") if isinstance(values, Mapping) else None
        known = _known_keys(values, cls, "stage" if name is None else f"stage '{name}'")
        for key in ("stage", "module"):
            if key not in known:
                raise PipelineError(f"stage {name!r} has no '{key}'" if name else f"a stage has no '{key}'")
        if isinstance(known.get("retry"), Mapping):
            known["retry"] = RetrySpecification.from_dict(known["retry"])
        elif known.pop("retry", None) is not None:
            raise PipelineError(f"stage '{name}': retry must be a mapping such as {{attempts: 3}}")
        if known.get("needs") is not None:
            if not isinstance(known["needs"], list | tuple):
                raise PipelineError(f"stage '{name}': needs must be a list of stage names")
            known["needs"] = tuple(known["needs"])
        if known.get("config") is None:
            known.pop("config", None)
        for key, kind in (("for_each", ForEachSpecification), ("resources", ResourceSpecification)):
            if known.get(key) is None:
                known.pop(key, None)
            else:
                known[key] = kind.from_dict(known[key])
        return cls(**known)


@dataclass(frozen=True)
class PipelineSpecification:
    """Stages and the order that their needs give them.

    When no stage says what it needs, each needs the one before it: a plain list is a chain.
    Raises PipelineError for no stage or too many, two of one name, an unknown need, or a cycle.
    """

    name: str
    stages: tuple[StageSpecification, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise PipelineError(
                f"{self.name!r} cannot name a pipeline: use up to 64 letters, digits, '_', '-' and '.', "
                "a letter or digit first"
            )
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise PipelineError(f"pipeline '{self.name}' has no stages")
        if len(self.stages) > _MOST_STAGES:
            raise PipelineError(f"pipeline '{self.name}' has {len(self.stages)} stages; {_MOST_STAGES} is the limit")
        names: set[str] = set()
        for stage in self.stages:
            if stage.stage in names:
                raise PipelineError(f"pipeline '{self.name}' has two stages named '{stage.stage}'")
            names.add(stage.stage)
        for stage in self.stages:
            for need in stage.needs or ():
                if need not in names:
                    raise PipelineError(
                        f"stage '{stage.stage}' needs '{need}', which is no stage of this pipeline"
                        + did_you_mean(need, names)
                    )
        self._sort()

    @property
    def order(self) -> tuple[StageSpecification, ...]:
        """The stages, each after all that it needs; as written where that leaves a choice."""
        return self._sort()

    def stage(self, name: str) -> StageSpecification:
        """The stage of that name. Raises PipelineError if there is none."""
        for stage in self.stages:
            if stage.stage == name:
                return stage
        raise PipelineError(
            f"pipeline '{self.name}' has no stage '{name}'" + did_you_mean(name, [stage.stage for stage in self.stages])
        )

    @property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """What each stage needs, with the implicit chain filled in where no stage says anything."""
        if all(stage.needs is None for stage in self.stages):
            before: tuple[str, ...] = ()
            chain: dict[str, tuple[str, ...]] = {}
            for stage in self.stages:
                chain[stage.stage] = before
                before = (stage.stage,)
            return chain
        return {stage.stage: stage.needs or () for stage in self.stages}

    @property
    def last(self) -> tuple[str, ...]:
        """The stages that no other needs: their output is the pipeline's."""
        needed = {need for needs in self.needs.values() for need in needs}
        return tuple(stage.stage for stage in self.stages if stage.stage not in needed)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return {"name": self.name, "stages": [stage.to_dict() for stage in self.stages]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PipelineSpecification:
        """The inverse of `to_dict`. Raises PipelineError, naming the stage at fault."""
        known = _known_keys(values, cls, "the pipeline")
        stages = known.get("stages")
        if "name" not in known or not isinstance(stages, list | tuple):
            raise PipelineError("a pipeline needs a 'name' and a list of 'stages'")
        return cls(known["name"], tuple(StageSpecification.from_dict(stage) for stage in stages))

    def _sort(self) -> tuple[StageSpecification, ...]:
        waiting = {name: set(needs) for name, needs in self.needs.items()}
        needed_by: dict[str, list[str]] = {name: [] for name in waiting}
        for name, needs in waiting.items():
            for need in needs:
                needed_by[need].append(name)
        place = {stage.stage: index for index, stage in enumerate(self.stages)}
        ready = [place[name] for name, needs in waiting.items() if not needs]  # ascending, so already a heap
        ordered: list[StageSpecification] = []
        while ready:
            stage = self.stages[heapq.heappop(ready)]
            ordered.append(stage)
            for name in needed_by[stage.stage]:
                waiting[name].discard(stage.stage)
                if not waiting[name]:
                    heapq.heappush(ready, place[name])
        if len(ordered) < len(self.stages):
            raise PipelineError(f"pipeline '{self.name}' goes in a circle: {_cycle(waiting)}")
        return tuple(ordered)


def _cycle(waiting: Mapping[str, set[str]]) -> str:
    """One cycle among stages that wait for each other, written as a -> b -> a (an arrow means: needs)."""
    path: list[str] = [next(name for name, needs in waiting.items() if needs)]
    while True:
        following = min(need for need in waiting[path[-1]] if waiting[need])
        if following in path:
            return " -> ".join([*path[path.index(following) :], following])
        path.append(following)


def _known_keys(values: Any, kind: type[Any], name: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise PipelineError(f"{name} must be a mapping, not {type(values).__name__}")
    known: Sequence[str] = [item.name for item in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise PipelineError(f"{name} has the unknown key '{key}'" + did_you_mean(str(key), known))
    return dict(values)


def _check_number(value: Any, name: str, least: float, most: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not least <= value <= most:
        raise PipelineError(f"{name} must be a number from {least:g} to {most:g}, not {value!r}")
