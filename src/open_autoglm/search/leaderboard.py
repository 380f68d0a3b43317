# SPDX-License-Identifier: Apache-2.0
"""The leaderboard: every trial, the final model and the cheap baselines, side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from open_autoglm.errors import StorageError
from open_autoglm.storage import read_json, write_json

EntryKind = Literal["baseline", "trial", "final"]
EntryState = Literal["complete", "pruned", "failed"]

BOARD_FILE: Final = "leaderboard.json"
"""In a run's folder."""


@dataclass(frozen=True)
class Entry:
    """One row.

    score, interval: the task's metric on the validation split and its 95% confidence interval; None where it was not
    measured (pruned trials). valid_loss: nats per validation example. parameters: of the model. size_bytes: of its
    weights in int8. latency_ms: median of one answer alone, on the engine. seconds: spent training. curve: seconds and
    validation loss of each evaluation. choices: the values of the search's parameters.
    """

    name: str
    kind: EntryKind
    score: float | None
    state: EntryState = "complete"
    valid_loss: float | None = None
    parameters: int | None = None
    seconds: float = 0.0
    choices: dict[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    size_bytes: int | None = None
    latency_ms: float | None = None
    curve: tuple[tuple[float, float], ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Entry:
        """The inverse of `asdict`, through JSON."""
        interval = values.get("interval")
        curve = tuple((float(at), float(loss)) for at, loss in values.get("curve", ()))
        return cls(**{**values, "interval": tuple(interval) if interval else None, "curve": curve})


@dataclass(frozen=True)
class Leaderboard:
    """Rows in the order they were made; `ranked` sorts them.

    task: its kind. validation: how many examples the scores are over. front: an evolution's Pareto front, if there was
    one (`ParetoFront.to_dict`).
    """

    metric: str
    higher_is_better: bool
    entries: tuple[Entry, ...] = ()
    task: str = ""
    validation: int = 0
    front: dict[str, Any] | None = None

    def with_entry(self, entry: Entry) -> Leaderboard:
        """A leaderboard that also has `entry`, which replaces a row of the same name."""
        kept = tuple(row for row in self.entries if row.name != entry.name)
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return Leaderboard(**{**values, "entries": (*kept, entry)})

    def ranked(self) -> list[Entry]:
        """Best score first; rows without one last, by validation loss."""
        sign = -1 if self.higher_is_better else 1
        return sorted(
            self.entries,
            key=lambda row: (
                row.score is None,
                sign * row.score if row.score is not None else 0.0,
                row.valid_loss if row.valid_loss is not None else float("inf"),
            ),
        )

    def final(self) -> Entry | None:
        """The row of the model that the build made, once it is there."""
        return next((row for row in self.entries if row.kind == "final" and row.score is not None), None)

    def best_baseline(self) -> Entry | None:
        """The best of the baselines."""
        return next((row for row in self.ranked() if row.kind == "baseline" and row.score is not None), None)

    def winning_baseline(self) -> Entry | None:
        """The baseline that beats the final model, if one does."""
        final, best = self.final(), self.best_baseline()
        if final is None or final.score is None or best is None or best.score is None:
            return None
        ahead = best.score > final.score if self.higher_is_better else best.score < final.score
        return best if ahead else None

    def verdict(self) -> str:
        """What the board says, in words: who is ahead, whether the difference is sure, and what would help."""
        final, best = self.final(), self.best_baseline()
        if final is None or final.score is None:
            return "The build has not finished: there is no final model yet."
        mine = f"The model has {self.metric} {final.score:.4f}"
        if best is None or best.score is None:
            return f"{mine}; there is no baseline for this kind of task."
        other = f"the baseline '{best.name}' has {best.score:.4f}"
        unsure = _overlap(final.interval, best.interval)
        if self.winning_baseline() is None:
            if final.score == best.score:
                return f"{mine}, and {other}: as good, and it costs nothing to train. {self._help(best)}"
            doubt = self._doubt() if unsure else ""
            return f"{mine}; {other}.{doubt}"
        doubt = self._doubt() if unsure else ""
        return (
            f"{mine}, but {other}: until the model is ahead, the baseline is the better tool for this task."
            f"{doubt} {self._help(best)}"
        )

    def _doubt(self) -> str:
        number = f" of {self.validation} validation examples" if self.validation else ""
        return f" Their confidence intervals{number} overlap, so more validation data might turn this around."

    def _help(self, best: Entry) -> str:
        pieces = ["a longer --budget", "a GLM checkpoint to start from (--base), which knows the language already"]
        if self.task == "classification":
            pieces.append("more rows of the labels that are rare")
        return f"What would help: {'; '.join(pieces)}; more training data."

    def save(self, path: Path) -> None:
        """Write JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Leaderboard:
        """The inverse of `save`. Raises StorageError for a file that is something else."""
        values = read_json(path)
        try:
            entries = tuple(Entry.from_dict(row) for row in values["entries"])
            return cls(**{**values, "entries": entries})
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{path} is not a leaderboard: {error}") from None


def _overlap(one: tuple[float, float] | None, other: tuple[float, float] | None) -> bool:
    return one is not None and other is not None and one[0] <= other[1] and other[0] <= one[1]
