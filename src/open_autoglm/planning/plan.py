# SPDX-License-Identifier: Apache-2.0
"""What a plan says: the choice with a reason for each part of it, what was refused, and what it will take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from open_autoglm.planning.memory import MemoryEstimate
from open_autoglm.planning.setup import Setup
from open_autoglm.planning.speed import SpeedEstimate
from open_autoglm.targets import Target


@dataclass(frozen=True)
class Choice:
    """A part of the choice. what: `weights`, `context`, ... reason: one sentence."""

    what: str
    value: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """How to run a model on a target, or why that cannot be.

    setup, memory: None when nothing fits; speed: None also where the target's speed is not known. usable_memory: bytes
    that the model may take. choices, refused: one sentence each. would_fit: when nothing does, what would. notes: what
    to know of the estimates. command: that serves the model so.
    """

    model: str
    parameters: int
    target: Target
    usable_memory: int
    setup: Setup | None
    memory: MemoryEstimate | None
    speed: SpeedEstimate | None
    choices: tuple[Choice, ...]
    refused: tuple[Choice, ...]
    would_fit: tuple[str, ...]
    notes: tuple[str, ...]
    command: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether there is a way."""
        return self.setup is not None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "target": self.target.to_dict(),
            "usable_memory": self.usable_memory,
            "fits": self.fits,
            "setup": None if self.setup is None else asdict(self.setup),
            "memory": None if self.memory is None else self.memory.to_dict(),
            "speed": None if self.speed is None else self.speed.to_dict(),
            "choices": [asdict(choice) for choice in self.choices],
            "refused": [asdict(choice) for choice in self.refused],
            "would_fit": list(self.would_fit),
            "notes": list(self.notes),
            "command": list(self.command),
        }
