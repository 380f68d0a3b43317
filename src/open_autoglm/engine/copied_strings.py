# SPDX-License-Identifier: Apache-2.0
"""Strings of an answer that are runs of words of its input, followed beside a grammar that is the same for all inputs.

A grammar that holds the words of its input is compiled anew for each, which takes several milliseconds. Here the
grammar takes any string, and what an input adds is a walk over its text: the places at which what is written of a
string may stand. Only tokens that go on at one of them are left of the grammar's mask; they are found in a tree of the
vocabulary's bytes, of which few branches match. The tests hold the masks against those of the grammar with the words.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

_QUOTE, _BACKSLASH = b'"'[0], b"\\"[0]
_KEPT_STATES: Final = 4096


@dataclass(frozen=True, eq=False)
class CopyShape:
    """Where an answer has copied strings.

    copied: whether a string here is copied; else it is one of those that the schema lists. keys: of an object. items:
    of an array.
    """

    copied: bool = False
    keys: Mapping[str, CopyShape] = field(default_factory=dict)
    items: CopyShape | None = None

    @classmethod
    def of(cls, schema: Any) -> CopyShape | None:
        """The shape of a schema's answers; none where what a string is cannot be told from its place alone."""
        options = list(_options(schema))
        if any(not isinstance(one, dict) for one in options):
            return None
        listed = [value for one in options for value in _listed(one)]
        options = [one for one in options if not _listed(one)]
        strings = {bool(one.get("x-copied")) for one in options if one.get("type") == "string"}
        literals = any(isinstance(value, str) for value in listed)
        if any(isinstance(value, dict | list) for value in listed):
            return None
        objects = [one for one in options if one.get("type") == "object"]
        arrays = [one for one in options if one.get("type") == "array"]
        if strings == {False} or len(strings) > 1 or (strings and literals) or len(objects) > 1 or len(arrays) > 1:
            return None
        keys: dict[str, CopyShape] = {}
        for one in objects:
            if isinstance(one.get("additionalProperties"), dict):
                return None
            for name, inner in (one.get("properties") or {}).items():
                found = cls.of(inner)
                if found is None:
                    return None
                keys[name] = found
        items = None
        for one in arrays:
            if one.get("maxItems") != 0 and (items := cls.of(one.get("items"))) is None:
                return None
        return cls(copied=strings == {True}, keys=keys, items=items)


class TokenBytes:
    """The vocabulary as a tree of bytes. tokens: the bytes of each token; control tokens have none."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = tokens
        self.root = _Branch()
        self.crossing: list[int] = []
        """Tokens that go on behind a quotation mark: they may open a string and write into it."""
        for token_id, data in enumerate(tokens):
            if not data:
                continue
            branch = self.root
            for byte in data:
                found = branch.children.get(byte)
                if found is None:
                    found = branch.children[byte] = _Branch()
                branch = found
            branch.ends.append(token_id)
            if b'"' in data[:-1]:
                self.crossing.append(token_id)
        self.opening: dict[tuple[Any, ...], list[int]] = {}
        """By the place in the answer's structure, the crossing tokens that write into a copied string from there."""


class _Branch:
    """The tokens that go on as these bytes do. ends: those that end here."""

    __slots__ = ("_below", "children", "ends")

    def __init__(self) -> None:
        self.children: dict[int, _Branch] = {}
        self.ends: list[int] = []
        self._below: np.ndarray | None = None

    @property
    def below(self) -> np.ndarray:
        """int64[n], the tokens that end here or further on."""
        if self._below is None:
            self._below = np.array(list(self._walk()), dtype=np.int64)
        return self._below

    def _walk(self) -> Iterator[int]:
        left: list[_Branch] = [self]
        while left:
            branch = left.pop()
            yield from branch.ends
            left.extend(branch.children.values())


class CopiedWords:
    """The words of an input, as JSON writes them."""

    def __init__(self, words: Sequence[str]) -> None:
        starts: list[int] = []
        ends: set[int] = set()
        text = bytearray()
        for word in words:
            escaped = json.dumps(word, ensure_ascii=False)[1:-1]
            if not escaped[0].isspace():
                starts.append(len(text))
            text += escaped.encode()
            if not escaped[-1].isspace():
                ends.add(len(text))
        last = max(ends, default=0)  # no string ends behind it, so none goes there
        self.text, self.ends = bytes(text[:last]), frozenset(ends)
        self.starts = tuple([start for start in starts if start < last])

    def starts_behind(self, place: int) -> tuple[int, ...]:
        """The places where a string may begin that is copied from no earlier than `place`; all if there is none."""
        return self.starts[bisect_left(self.starts, place) :] or self.starts

    def after(self, places: Sequence[int], byte: int) -> tuple[int, ...]:
        """The places behind a byte."""
        text = self.text
        return tuple([place + 1 for place in places if place < len(text) and text[place] == byte])


class CopiedStrings:
    """How far an answer is: its structure, and of the copied string that is open the places where it may stand.

    in_order: each string is copied from behind the one before it, where anything is left there.
    """

    def __init__(self, vocabulary: TokenBytes, shape: CopyShape, words: CopiedWords, *, in_order: bool = False) -> None:
        self._vocabulary, self._words, self._in_order = vocabulary, words, in_order
        self._place = _Place(shape)
        self._places: tuple[int, ...] = ()
        self._behind = 0

    def copy(self) -> CopiedStrings:
        """The same state, for another answer to the same input."""
        made = CopiedStrings.__new__(CopiedStrings)
        made._vocabulary, made._words, made._in_order = self._vocabulary, self._words, self._in_order
        made._place, made._places, made._behind = self._place.copy(), self._places, self._behind
        return made

    def takes(self, token_ids: Sequence[int]) -> bool:
        """Whether tokens that fit the grammar copy what is there."""
        probe, tokens = self.copy(), self._vocabulary.tokens
        for token_id in token_ids:
            found = probe._write(probe._place, tokens[token_id])
            if found is None:
                return False
            probe._places, probe._behind = found
        return True

    def advance(self, token_id: int) -> None:
        """Go on by a token that the masks allowed."""
        tokens = self._vocabulary.tokens
        if 0 <= token_id < len(tokens):
            self._places, self._behind = self._write(self._place, tokens[token_id]) or ((), self._behind)

    def restrict(self, mask: np.ndarray) -> None:
        """Leave of the grammar's tokens those that copy. mask: int32[ceil(vocab_size / 32)], a bit for each token."""
        bits = mask.view(np.uint8)
        if self._place.is_copied:
            allowed = np.zeros(8 * len(bits), dtype=np.uint8)
            self._collect(self._vocabulary.root, self._places, allowed)
            bits &= np.packbits(allowed, bitorder="little")
        for token_id in self._opening():
            byte, bit = token_id >> 3, 1 << (token_id & 7)
            if bits[byte] & bit and not self._fits(self._vocabulary.tokens[token_id]):
                bits[byte] &= 0xFF ^ bit

    def _collect(self, root: _Branch, places: Sequence[int], allowed: np.ndarray) -> None:
        """Mark what goes on in the input, and what ends the string and goes on as the grammar says."""
        text, ends = self._words.text, self._words.ends
        # Nothing is written before the first byte, so the string cannot end there even where a word does.
        can_end = self._place.is_written
        marked: list[int] = []
        left: list[tuple[_Branch, Sequence[int]]] = [(root, places)]
        while left:
            branch, places = left.pop()
            marked += branch.ends
            children = branch.children
            if can_end and _QUOTE in children and not ends.isdisjoint(places):
                allowed[children[_QUOTE].below] = 1
            can_end = True
            following: dict[int, list[int]] = {}
            for place in places:
                if place < len(text) and text[place] in children:
                    following.setdefault(text[place], []).append(place + 1)
            left += [(children[byte], found) for byte, found in following.items()]
        allowed[marked] = 1

    def _opening(self) -> list[int]:
        """The crossing tokens that write into a copied string which they open themselves, from this place on."""
        key = self._place.key()
        found = self._vocabulary.opening.get(key)
        if found is None:
            if len(self._vocabulary.opening) >= _KEPT_STATES:
                self._vocabulary.opening.clear()
            found = [
                token_id
                for token_id in self._vocabulary.crossing
                if self._place.copy().opens(self._vocabulary.tokens[token_id])
            ]
            self._vocabulary.opening[key] = found
        return found

    def _fits(self, data: bytes) -> bool:
        return self._write(self._place.copy(), data) is not None

    def _write(self, place: _Place, data: bytes) -> tuple[tuple[int, ...], int] | None:
        """The places after some bytes, which move `place`, and where the last string ended at the earliest.

        None if they copy what is not there.
        """
        words, places, behind = self._words, self._places, self._behind
        for byte in data:
            if place.is_copied:
                found = words.after(places, byte)
                # A quotation mark of the input comes behind a backslash, where no word ends: so it is one or the other.
                if byte == _QUOTE and not found:
                    ends = [one for one in places if one in words.ends] if place.is_written else []
                    if not ends:
                        return None
                    place.close()
                    places = ()
                    if self._in_order:
                        behind = min(ends)
                    continue
                if not found:
                    return None
                places = found
                place.is_written = True
                continue
            place.read(byte)
            if place.is_copied:
                places = words.starts_behind(behind)
        return places, behind


class _Place:
    """A place in the structure of a JSON text that a grammar holds valid. Other texts lead anywhere, and do not fail.

    is_copied: in a copied string. is_written: something of it is written.
    """

    __slots__ = ("_escaped", "_in_key", "_in_string", "_key", "_levels", "_value", "is_copied", "is_written")

    def __init__(self, shape: CopyShape) -> None:
        self._levels: list[tuple[CopyShape, bool, bool]] = []
        """The open objects and arrays: the shape, whether it is an object, whether a key comes next."""
        self._value: CopyShape | None = shape
        self._in_string = self._in_key = self._escaped = False
        self._key = b""
        self.is_copied = self.is_written = False

    def copy(self) -> _Place:
        made = _Place.__new__(_Place)
        made._levels, made._value = self._levels.copy(), self._value
        made._in_string, made._in_key, made._escaped = self._in_string, self._in_key, self._escaped
        made._key, made.is_copied, made.is_written = self._key, self.is_copied, self.is_written
        return made

    def key(self) -> tuple[Any, ...]:
        """What decides how it goes on, but for what is copied."""
        return (
            tuple(self._levels), self._value, self._in_string, self._in_key, self._escaped, self._key, self.is_copied,
        )  # fmt: skip

    def close(self) -> None:
        """The copied string has ended."""
        self.is_copied = self.is_written = False

    def opens(self, data: bytes) -> bool:
        """Whether some bytes write into a copied string that they open. Moves on."""
        escaped = False
        for index, byte in enumerate(data):
            if self.is_copied:
                if escaped or byte == _BACKSLASH:
                    escaped = not escaped
                elif byte == _QUOTE:
                    self.close()
                continue
            self.read(byte)
            if self.is_copied and index + 1 < len(data):
                return True
        return False

    def read(self, byte: int) -> None:
        """Go on by a byte outside of copied strings."""
        if self._in_string:
            self._read_string(byte)
            return
        match byte:
            case 0x7B | 0x5B:  # { [
                shape = self._value or _NOTHING
                is_object = byte == 0x7B
                self._levels.append((shape, is_object, is_object))
                self._value = None if is_object else shape.items
            case 0x7D | 0x5D:  # } ]
                del self._levels[-1:]
                self._value = None
            case 0x2C if self._levels:  # ,
                shape, is_object, _ = self._levels[-1]
                self._levels[-1] = (shape, is_object, is_object)
                self._value = None if is_object else shape.items
            case 0x22:
                self._open()

    def _open(self) -> None:
        self._in_key = bool(self._levels) and self._levels[-1][2]
        if not self._in_key and self._value is not None and self._value.copied:
            self.is_copied, self.is_written = True, False
            return
        self._in_string, self._key = True, b""

    def _read_string(self, byte: int) -> None:
        if self._escaped or byte == _BACKSLASH:
            self._escaped = not self._escaped
        elif byte == _QUOTE:
            self._in_string = False
            if self._in_key:
                shape, _, _ = self._levels[-1]
                self._levels[-1] = (shape, True, False)
                self._value = shape.keys.get(_text_of(self._key) or "")
                self._in_key, self._key = False, b""
            return
        if self._in_key:
            self._key += bytes((byte,))


_NOTHING: Final = CopyShape()


def _text_of(escaped: bytes) -> str | None:
    try:
        return json.loads(b'"' + escaped + b'"')
    except ValueError:
        return None


def _options(schema: Any) -> Iterator[Any]:
    """A schema without `anyOf` and lists of types, or several."""
    if not isinstance(schema, dict):
        yield schema
    elif "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from _options(one)
    elif isinstance(schema.get("type"), list):
        for kind in schema["type"]:
            yield from _options({**schema, "type": kind})
    else:
        yield schema


def _listed(schema: Mapping[str, Any]) -> list[Any]:
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))
