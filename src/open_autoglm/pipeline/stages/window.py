# SPDX-License-Identifier: Apache-2.0
"""`window`: windows over a stream of records, by count or by time, that go on from run to run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.amounts import seconds_of
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.record_fields import ID, RECORDS_SCHEMA, name_of, records_of, with_records
from open_autoglm.spelling import did_you_mean

_OWN: Final = (ID, "key", "start", "end", "count", "records")
_MOST_OVERLAP: Final = 1000
_NUMERIC: Final = frozenset({"sum", "mean", "min", "max"})


class Aggregate(BaseModel):
    """What a window says of a field: its sum, mean, min or max (numbers), its first or last value, or all as a list."""

    model_config = ConfigDict(extra="forbid")

    of: str
    function: Literal["sum", "mean", "min", "max", "first", "last", "list"]


class WindowConfig(BaseModel):
    """size: of a window, a number of records or, with `time`, a duration such as 10m. every: from one window's begin to
    the next one's; the size if not given, so that windows do not overlap. key: a field whose every value has windows
    of its own. time: the field with a record's time, ISO 8601 or seconds since 1970.

    lateness: how long records may come after later ones. late: what becomes of one that comes after the end of all its
    windows: `hold` moves it to `payload.late`, `fail` ends the run. flush: give out, at the end of each run, the
    windows that are not full yet; they are over then.
    """

    model_config = ConfigDict(extra="forbid")

    size: int | str
    every: int | str | None = None
    key: str | None = None
    time: str | None = None
    lateness: int | str = 0
    late: Literal["hold", "fail"] = "hold"
    aggregates: dict[str, Aggregate] = {}
    keep_records: bool = Field(default=True, description="Give each window its records.")
    flush: bool = False
    most_waiting: int = Field(default=50_000, ge=1, description="Records that may wait for the end of their windows.")

    @model_validator(mode="after")
    def _fits(self) -> WindowConfig:
        size, step, _ = self.amounts
        if step > size:
            raise ValueError("'every' is longer than 'size', so that records between windows would be in none")
        if size > step * _MOST_OVERLAP:
            raise ValueError(f"a record would be in more than {_MOST_OVERLAP} windows; make 'every' longer")
        if self.time is None and self.lateness:
            raise ValueError("lateness is for windows by time; name the field with 'time'")
        for name in self.aggregates:
            if name in _OWN:
                raise ValueError(f"a window has a field '{name}' of its own; call the aggregate otherwise")
        return self

    @property
    def amounts(self) -> tuple[float, float, float]:
        """Size, step and lateness: records, or seconds."""
        if self.time is None:
            for value in (self.size, self.size if self.every is None else self.every):
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise ValueError(f"{value!r} is no number of records; windows by time need the field 'time'")
            return float(self.size), float(self.size if self.every is None else self.every), 0.0
        size = seconds_of(self.size)
        step = size if self.every is None else seconds_of(self.every)
        return size, step, seconds_of(self.lateness) if self.lateness else 0.0

    def fingerprint(self) -> str:
        """Of the settings by which what waits was collected."""
        chosen = [self.amounts[:2], self.key, self.time, self.keep_records]
        chosen += [sorted((name, one.of) for name, one in self.aggregates.items())]
        return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:16]


class Window:
    """What waits for the end of its windows is the stage's cursor: it counts once the whole run is done.

    Windows by time end when a record comes that is later than their end and the lateness together. They begin at whole
    multiples of `every` since 1970, in UTC.
    """

    config_model = WindowConfig
    input_schema = RECORDS_SCHEMA

    def __init__(self, config: WindowConfig) -> None:
        self._config = config

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with the windows that have ended as its records."""
        config = self._config
        number = context.idempotency_key.rpartition("/")[2].partition("#")[0]
        if number not in ("0", context.stage):
            raise PipelineError(
                "several packets of one run come to this stage at once; windows need one after the other"
            )
        state = _State(config, context.cursor)
        late: list[dict[str, Any]] = []
        windows: list[dict[str, Any]] = []
        for record in records_of(packet):
            if config.key is not None and config.key not in record:
                raise PipelineError(f"{name_of(record)} has no field '{config.key}'{did_you_mean(config.key, record)}")
            key = None if config.key is None else record[config.key]
            if config.time is None:
                windows += state.count(key, record)
                continue
            if not state.place(key, record):
                if config.late == "fail":
                    raise PipelineError(f"{name_of(record)} comes after the end of its window; raise lateness")
                late.append(record)
            windows += state.ended()
        if config.flush:
            windows += state.flush()
        context.set_cursor(state.to_json())
        context.log.info("%d windows, %d late records, %d records wait", len(windows), len(late), state.num_waiting)
        return with_records(packet, context, windows, late=late, waiting=state.num_waiting)


class _State:
    """The records that wait, by key. watermark: windows that end here or before are over.

    starts: for windows by count, the number of the first record that waits, for each key.
    """

    def __init__(self, config: WindowConfig, cursor: Any) -> None:
        self._config = config
        self._size, self._step, self._lateness = config.amounts
        self._fields = {ID, *(one.of for one in config.aggregates.values())}
        self._waiting: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        self._starts: dict[str, int] = {}
        self._watermark = self._latest = -math.inf
        self._soonest = math.inf
        if cursor is None:
            return
        if cursor["settings"] != config.fingerprint():
            raise PipelineError(
                "the windows that wait were begun with other settings; give the stage another name to begin anew, "
                "or the settings it had"
            )
        self._waiting = {key: [(at, record) for at, record in rows] for key, rows in cursor["waiting"].items()}
        self._starts = dict(cursor["starts"])
        self._watermark = -math.inf if cursor["watermark"] is None else cursor["watermark"]
        self._latest = self._watermark + self._lateness
        self._soonest = self._soonest_of(at for rows in self._waiting.values() for at, _ in rows)

    @property
    def num_waiting(self) -> int:
        """Records of windows that are not over."""
        return sum(map(len, self._waiting.values()))

    def to_json(self) -> dict[str, Any]:
        """The inverse of the constructor. Raises PipelineError when too much waits."""
        if self.num_waiting > self._config.most_waiting:
            raise PipelineError(
                f"{self.num_waiting} records wait for the end of their windows, and config.most_waiting is "
                f"{self._config.most_waiting}; use smaller windows or raise it"
            )
        return {
            "settings": self._config.fingerprint(),
            "watermark": None if math.isinf(self._watermark) else self._watermark,
            "starts": self._starts,
            "waiting": {key: [[at, record] for at, record in rows] for key, rows in self._waiting.items()},
        }

    def count(self, key: Any, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Take a record of a window by count; give the window that it fills."""
        name = _key_text(key)
        rows = self._waiting.setdefault(name, [])
        rows.append((0.0, self._kept(record)))
        if len(rows) == int(self._size):
            start = self._starts.get(name, 0)
            yield self._window(key, start, start + len(rows), rows)
            self._starts[name] = start + int(self._step)
            self._waiting[name] = rows[int(self._step) :]

    def place(self, key: Any, record: dict[str, Any]) -> bool:
        """Take a record of a window by time; False if all its windows are over."""
        at = self._time(record)
        if self._end(self._windows_of(at)[1]) <= self._watermark:
            return False
        self._waiting.setdefault(_key_text(key), []).append((at, self._kept(record)))
        self._latest = max(self._latest, at)
        self._soonest = min(self._soonest, self._soonest_of((at,)))
        return True

    def ended(self) -> list[dict[str, Any]]:
        """The windows that are over since the record before, the earliest first."""
        return self._advance(self._latest - self._lateness)

    def flush(self) -> list[dict[str, Any]]:
        """All windows that have begun, and nothing waits any more."""
        if self._config.time is not None:
            ends = [self._end(self._windows_of(at)[1]) for rows in self._waiting.values() for at, _ in rows]
            windows = self._advance(max(ends, default=-math.inf))
            self._latest = max(self._latest, self._watermark)
            return windows
        windows = []
        for name, rows in self._waiting.items():
            start, key = self._starts.get(name, 0), json.loads(name)
            for begin in range(0, len(rows), int(self._step)):
                part = rows[begin : begin + int(self._size)]
                windows.append(self._window(key, start + begin, start + begin + len(part), part))
            self._starts[name] = start + len(rows)
        self._waiting = {}
        return windows

    def _advance(self, watermark: float) -> list[dict[str, Any]]:
        if watermark <= self._watermark:
            return []
        before, self._watermark = self._watermark, watermark
        if watermark < self._soonest:
            return []
        found: list[tuple[int, str, list[tuple[float, dict[str, Any]]]]] = []
        for name, rows in list(self._waiting.items()):
            windows: dict[int, list[tuple[float, dict[str, Any]]]] = {}
            for row in rows:
                first, last = self._windows_of(row[0])
                for number in range(first, last + 1):
                    if before < self._end(number) <= watermark:
                        windows.setdefault(number, []).append(row)
            found += [(number, name, members) for number, members in windows.items()]
            kept = [row for row in rows if self._end(self._windows_of(row[0])[1]) > watermark]
            if kept:
                self._waiting[name] = kept
            else:
                del self._waiting[name]
        self._soonest = self._soonest_of(at for rows in self._waiting.values() for at, _ in rows)
        found.sort(key=lambda one: one[:2])
        return [
            self._window(json.loads(name), _iso(number * self._step), _iso(self._end(number)), sorted(rows, key=_at))
            for number, name, rows in found
        ]

    def _soonest_of(self, times: Iterable[float]) -> float:
        """The end of the window, of those that hold one of the times and are not over, that is over first."""
        soonest = math.inf
        for at in times:
            first, last = self._windows_of(at)
            ends = (self._end(number) for number in range(first, last + 1))
            soonest = min(soonest, next(end for end in ends if end > self._watermark))
        return soonest

    def _windows_of(self, at: float) -> tuple[int, int]:
        """The numbers of the first and last window that hold a time; window n begins at n times the step."""
        last = math.floor(at / self._step)
        first = math.floor((at - self._size) / self._step) + 1
        return min(first, last), last

    def _end(self, number: int) -> float:
        return number * self._step + self._size

    def _time(self, record: Mapping[str, Any]) -> float:
        field = self._config.time or ""
        if field not in record:
            raise PipelineError(f"{name_of(record)} has no field '{field}'{did_you_mean(field, record)}")
        value = record[field]
        try:
            if isinstance(value, str):
                found = datetime.fromisoformat(value)
                return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
            if not isinstance(value, bool) and isinstance(value, int | float) and abs(value) < 1e11:
                return float(value)
        except (ValueError, OverflowError):
            pass
        raise PipelineError(
            f"{name_of(record)}: {value!r} in '{field}' is no time; write it like 2026-01-31T12:00:00Z, or as seconds"
        )

    def _kept(self, record: dict[str, Any]) -> dict[str, Any]:
        if self._config.keep_records:
            return record
        return {name: value for name, value in record.items() if name in self._fields}

    def _window(
        self, key: Any, start: int | str, end: int | str, rows: Sequence[tuple[float, dict[str, Any]]]
    ) -> dict[str, Any]:
        records = [record for _, record in rows]
        identity = str(start) if self._config.key is None else f"{key}@{start}"
        window: dict[str, Any] = {ID: identity, "key": key, "start": start, "end": end, "count": len(records)}
        for name, aggregate in self._config.aggregates.items():
            window[name] = _aggregated(aggregate, records)
        if self._config.keep_records:
            window["records"] = records
        return window


def _aggregated(aggregate: Aggregate, records: Sequence[Mapping[str, Any]]) -> Any:
    """null where no record has the field."""
    values = [record[aggregate.of] for record in records if record.get(aggregate.of) is not None]
    if aggregate.function == "list":
        return values
    if aggregate.function in _NUMERIC:
        for record in records:
            value = record.get(aggregate.of)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise PipelineError(
                    f"{name_of(record)}: '{aggregate.of}' is no number, so it has no {aggregate.function}"
                )
    if not values:
        return None
    if aggregate.function in ("first", "last"):
        return values[0 if aggregate.function == "first" else -1]
    if aggregate.function in ("min", "max"):
        return min(values) if aggregate.function == "min" else max(values)
    total = sum(values) if all(isinstance(value, int) for value in values) else math.fsum(values)
    return total if aggregate.function == "sum" else total / len(values)


def _at(row: tuple[float, Any]) -> float:
    return row[0]


def _key_text(key: Any) -> str:
    return json.dumps(key, ensure_ascii=False, sort_keys=True)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
