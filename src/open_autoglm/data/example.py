# SPDX-License-Identifier: Apache-2.0
"""`Example`: the one shape into which every file shape is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from open_autoglm.chat.messages import Message, Role


@dataclass(frozen=True)
class Example:
    """A dialogue to learn from, or a piece of plain text (one assistant message, no user message).

    messages: in order; the last one is the answer to learn.
    source: where it came from, as `FILE:ROW`, rows counted from 1 as an editor counts lines.
    """

    messages: tuple[Message, ...]
    source: str = ""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All messages before the answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """What the model should say."""
        return self.messages[-1].content

    @property
    def input_text(self) -> str:
        """The last user message, or nothing for plain text."""
        for message in reversed(self.prompt):
            if message.role is Role.USER:
                return message.content
        return ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return {"messages": [message.to_dict() for message in self.messages], "source": self.source}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Example:
        """The inverse of `to_dict`."""
        return cls(tuple(Message.from_dict(message) for message in values["messages"]), values.get("source", ""))
