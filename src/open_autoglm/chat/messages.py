# SPDX-License-Identifier: Apache-2.0
"""What people and models say to each other, before any template."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from open_autoglm.errors import DataError


class Role(StrEnum):
    """Who speaks. `observation` is what a tool answered; OpenAI calls it `tool`."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    OBSERVATION = "observation"

    @classmethod
    def of(cls, name: str) -> Role:
        """The role that a file or a client means by `name`. Raises DataError for an unknown one."""
        try:
            return _ALIASES[name.strip().lower()]
        except KeyError:
            raise DataError(f"unknown role '{name}'; known: {', '.join(sorted(_ALIASES))}") from None


_ALIASES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "human": Role.USER,
    "assistant": Role.ASSISTANT,
    "gpt": Role.ASSISTANT,
    "bot": Role.ASSISTANT,
    "function_call": Role.ASSISTANT,
    "observation": Role.OBSERVATION,
    "tool": Role.OBSERVATION,
    "function": Role.OBSERVATION,
}


@dataclass(frozen=True)
class Message:
    """One turn.

    metadata: what follows the role on its line in GLM's templates, such as the name of the tool called.
    learn: whether training takes its loss on this turn (assistant turns only).
    """

    role: Role
    content: str
    metadata: str = ""
    learn: bool = True

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        values: dict[str, Any] = {"role": self.role.value, "content": self.content}
        if self.metadata:
            values["metadata"] = self.metadata
        if not self.learn:
            values["learn"] = False
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Message:
        """The inverse of `to_dict`."""
        return cls(Role(values["role"]), values["content"], values.get("metadata", ""), bool(values.get("learn", True)))
