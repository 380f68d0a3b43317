# SPDX-License-Identifier: Apache-2.0
"""Rows that are a question and an answer with nothing to set right, as most are: read ten times faster than others."""

from __future__ import annotations

from collections.abc import KeysView, Sequence
from typing import Any, Final

from open_autoglm.data.column_names import TOOLS_NAMES
from open_autoglm.data.columns import find_named
from open_autoglm.data.layouts import Layout, Shape
from open_autoglm.data.normalisation import is_spelled

_SHAPES: Final = frozenset((Shape.PAIR, Shape.LABELLED, Shape.ALPACA))
_PARTS: Final = frozenset(("input", "second"))


class PlainRowReader:
    """Reads such rows as `shapes.RowReader` reads them, and leaves every other one to it."""

    def __init__(self, question: Sequence[str], answer: str) -> None:
        self._question, self._more, self._answer = question[0], tuple(question[1:]), answer
        self._known: KeysView[str] | None = None

    @classmethod
    def of(cls, layout: Layout) -> PlainRowReader | None:
        """The reader for a layout; None where no row of it is that plain."""
        source, target, extra = layout.input_column, layout.output_column, layout.extra
        if layout.shape not in _SHAPES or source is None or target is None or not extra.keys() <= _PARTS:
            return None
        return cls([source, *(extra[role] for role in ("input", "second") if role in extra)], target)

    def read(self, values: dict[str, Any] | str) -> tuple[str, str] | None:
        """Question and answer; None where the row is no such one."""
        if not isinstance(values, dict):
            return None
        question, answer = values.get(self._question), values.get(self._answer)
        if not isinstance(question, str) or not isinstance(answer, str) or not question or not answer:
            return None
        if not _is_settled(question) or not _is_settled(answer):
            return None
        if self._known != (columns := values.keys()):
            if find_named(TOOLS_NAMES, tuple(columns)) is not None:
                return None
            self._known = columns
        for column in self._more:
            text = values.get(column, "")
            if not isinstance(text, str) or not _is_settled(text):
                return None
            if text:
                question += f"\n{text}"
        return question, answer


def _is_settled(text: str) -> bool:
    return text.strip() == text and is_spelled(text)
