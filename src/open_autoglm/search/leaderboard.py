# SPDX-License-Identifier: Apache-2.0
"""The leaderboard: every trial, the final model and the cheap baselines, side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from open_autoglm.storage import read_json, write_json

EntryKind = Literal["baseline", "trial", "final"]
EntryState = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class Entry:
    """One row.

    score: the task's metric on the validation split; None where it was not measured (pruned trials).
    valid_loss: nats per validation example. parameters: of the model. seconds: spent training.
    """

    name: str
    kind: EntryKind
    score: float | None
    state: EntryState = "complete"
    valid_loss: float | None = None
    parameters: int | None = None
    seconds: float = 0.0
    choices: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Leaderboard:
    """Rows in the order they were made; `ranked` sorts them."""

    metric: str
    higher_is_better: bool
    entries: tuple[Entry, ...] = ()

    def with_entry(self, entry: Entry) -> Leaderboard:
        """A leaderboard that also has `entry`, which replaces a row of the same name."""
        kept = tuple(row for row in self.entries if row.name != entry.name)
        return Leaderboard(self.metric, self.higher_is_better, (*kept, entry))

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

    def winning_baseline(self) -> Entry | None:
        """The baseline that beats the final model, if one does."""
        final = next((row for row in self.entries if row.kind == "final"), None)
        best = next((row for row in self.ranked() if row.kind == "baseline" and row.score is not None), None)
        if final is None or final.score is None or best is None or best.score is None:
            return None
        ahead = best.score > final.score if self.higher_is_better else best.score < final.score
        return best if ahead else None

    def save(self, path: Path) -> None:
        """Write JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Leaderboard:
        """The inverse of `save`."""
        values = read_json(path)
        entries = tuple(Entry(**row) for row in values["entries"])
        return cls(values["metric"], bool(values["higher_is_better"]), entries)
