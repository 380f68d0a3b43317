# SPDX-License-Identifier: Apache-2.0
"""Room for the end of a JSON answer: one that `max_tokens` would cut off is brought to its end instead.

Beside the answer goes a way to end it from where it is: strings are closed, what the schema requires is written with
the least that it takes, brackets are closed. A token behind which no such way has room is not taken; the way known so
far is then followed to its end. So the answer is valid, and nearly all of it is the model's: the way is a short one,
not always the shortest, so an answer that would have ended less than ten tokens early may be shortened as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

_MARGIN: Final = 16
"""Room for the end is looked after from twice the shortest answer and so many tokens before the last."""
_MOST_LEAST: Final = 1024
"""Tokens of the longest end that is looked for: its cost is part of each of the answer's last steps."""
_MOST_SEARCHED: Final = 64
"""Tokens of one way that no candidate gives, so that they are searched for in a mask."""
_MOST_TRIES: Final = 32
_MOST_NAMES: Final = 1024
_QUOTE, _BACKSLASH = b'"'[0], b"\\"[0]
_VALUES: Final = (b'""', b"null", b"0", b"[]", b"{}", b"false", b'"', b"{", b"[")


class Followed(Protocol):
    """A guide, as far as a way to the end needs it."""

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole, if it were to end here."""
        ...

    def copy(self) -> Followed:
        """A guide in the same state."""
        ...

    def takes(self, token_ids: Sequence[int]) -> bool:
        """Whether these tokens may come next."""
        ...

    def is_completed_by(self, token_ids: Sequence[int]) -> bool:
        """Whether these tokens may come next, and the answer is whole with them."""
        ...

    def accept(self, token_id: int) -> None:
        """Go on by a token."""
        ...

    def fill_mask(self, mask: np.ndarray, row: int) -> None:
        """Write the tokens that may come next, a bit each, into `mask[row]`."""
        ...


class EndingTokens:
    """A vocabulary, as the ends of answers are written with it.

    tokens: the bytes of each; control tokens have none. tokenize: cuts bytes into tokens.
    """

    def __init__(self, tokens: Sequence[bytes], tokenize: Callable[[bytes], list[int]]) -> None:
        self.tokens, self.tokenize = tokens, tokenize
        ends = [one for one, token in enumerate(tokens) if token and not token[1:].strip(b"}]")]
        ends.sort(key=lambda one: -len(tokens[one]))
        self.in_string = [[one] for one in ends if tokens[one][:1] == b'"']
        self.closing = [[one] for one in ends if tokens[one][:1] in (b"}", b"]")]
        self.closing += [tokenize(b", "), tokenize(b": ")]
        self.values = [tokenize(text) for text in _VALUES]
        self._by_length = np.argsort([-len(token) for token in tokens], kind="stable")

    def longest(self, guide: Followed) -> int | None:
        """The token of most bytes that may come next; none where only the end may."""
        mask = np.zeros((1, -(-len(self.tokens) // 32)), dtype=np.int32)
        guide.fill_mask(mask, 0)
        flags = np.unpackbits(mask.view(np.uint8)[0], bitorder="little", count=len(self.tokens))
        ordered = flags[self._by_length]
        found = int(self._by_length[int(np.argmax(ordered))])
        return found if ordered.any() and self.tokens[found] else None


class JsonForm:
    """What all answers of one schema share. least: tokens of the shortest answer that was found, once
    looked for; 0 if none was."""

    def __init__(self, tokens: EndingTokens, schema: Any) -> None:
        self.tokens = tokens
        self.least: int | None = None
        names = dict.fromkeys(_required_names(schema))
        self.names = [
            tokens.tokenize(f"{json.dumps(name, ensure_ascii=False)}: ".encode()) for name in list(names)[:_MOST_NAMES]
        ]
        """The keys that some object requires, as they are written."""


class JsonEnding:
    """Follows one answer and keeps room for its end. Used by one guide."""

    def __init__(self, form: JsonForm) -> None:
        self._form = form
        self._taken: list[int] = []
        self._way: list[int] | None = None
        self._tries_left = _MOST_TRIES
        self.is_followed = False
        """Whether the answer is on its way to the end: the tokens are no longer the model's."""

    def copy(self) -> JsonEnding:
        """The same state, for another answer to the same request."""
        made = JsonEnding(self._form)
        made._taken, made._way = self._taken.copy(), None if self._way is None else self._way.copy()
        made._tries_left, made.is_followed = self._tries_left, self.is_followed
        return made

    @property
    def has_ended(self) -> bool:
        """Whether the way was followed to its end."""
        return self.is_followed and not self._way

    def advance(self, token_id: int) -> None:
        """Note a token that was taken."""
        self._taken.append(token_id)

    def fit(self, guide: Followed, token_id: int, left: int) -> int:
        """The token to take in place of one that was chosen: the same as long as the answer can still be ended.

        guide: at the state before the token. left: tokens that may come behind it.
        """
        if not self._tries_left:
            return token_id
        if self.is_followed:
            return self._next() if self._way else token_id
        if self._form.least is None:
            found = None if self._taken else self._find(guide.copy(), _Place(), _MOST_LEAST)
            self._form.least = 0 if found is None else len(found)
        if left > 2 * self._form.least + _MARGIN:
            return token_id
        if self._way is None:
            self._way = self._find(guide.copy(), self._place(), left + 1)
        if not self._way:  # too long or too hard to find from here; from further on, it may not be
            self._tries_left -= 1
            return token_id
        if self._way[0] == token_id:
            return self._next()
        after = guide.copy()
        after.accept(token_id)
        # Within a string the same way is as good as before, which is told faster than found anew.
        if len(self._way) <= left and after.is_completed_by(self._way):
            return token_id
        place = self._place()
        place.read(self._form.tokens.tokens[token_id])
        found = self._find(after, place, left)
        if found is None:
            self.is_followed = True
            return self._next()
        self._way = found
        return token_id

    def _next(self) -> int:
        assert self._way
        return self._way.pop(0)

    def _place(self) -> _Place:
        place = _Place()
        for token_id in self._taken:
            place.read(self._form.tokens.tokens[token_id])
        return place

    def _find(self, guide: Followed, place: _Place, most: int) -> list[int] | None:
        """The tokens of a way to the end, at most so many; None if none is found. Moves guide and place."""
        tokens, names = self._form.tokens, self._form.names
        way: list[int] = []
        searched = following = 0
        while not guide.is_complete:
            step = next((one for one in self._candidates(place) if guide.takes(one)), None)
            if step is None and place.expects_key:
                # Most often the one that the schema requires behind the last.
                order = (*range(following, len(names)), *range(following))
                found = next((one for one in order if guide.takes(names[one])), None)
                if found is not None:
                    step, following = names[found], found + 1
            if step is None:
                searched += 1
                found = tokens.longest(guide) if searched <= _MOST_SEARCHED else None
                if found is None:
                    return None
                step = [found]
            way += step
            if len(way) > most:
                return None
            for token_id in step:
                guide.accept(token_id)
                place.read(tokens.tokens[token_id])
        return way

    def _candidates(self, place: _Place) -> Iterator[list[int]]:
        """What may be tried next, the best first."""
        tokens = self._form.tokens
        if place.in_string:
            yield from tokens.in_string
            return
        yield from tokens.closing
        if not place.expects_key:
            yield from tokens.values


class _Place:
    """Where a JSON text is: within a string, before a key, or elsewhere."""

    __slots__ = ("_escaped", "_in_object", "expects_key", "in_string")

    def __init__(self) -> None:
        self._in_object: list[bool] = []
        self.in_string = self.expects_key = self._escaped = False

    def read(self, data: bytes) -> None:
        """Go on by some bytes."""
        for byte in data:
            if self.in_string:
                if self._escaped or byte == _BACKSLASH:
                    self._escaped = not self._escaped
                elif byte == _QUOTE:
                    self.in_string = False
                continue
            match byte:
                case 0x22:
                    self.in_string, self.expects_key = True, False
                case 0x7B | 0x5B:  # { [
                    self._in_object.append(byte == 0x7B)
                    self.expects_key = byte == 0x7B
                case 0x7D | 0x5D:  # } ]
                    del self._in_object[-1:]
                    self.expects_key = False
                case 0x2C:  # ,
                    self.expects_key = self._in_object[-1:] == [True]


def _required_names(schema: Any) -> Iterator[str]:
    """The keys that a schema requires anywhere in it."""
    left = [schema]
    while left:
        one = left.pop()
        if isinstance(one, Mapping):
            required = one.get("required")
            if isinstance(required, list | tuple):
                yield from (name for name in required if isinstance(name, str))
            left.extend(one.values())
        elif isinstance(one, list | tuple):
            left.extend(one)
