# SPDX-License-Identifier: Apache-2.0
"""Texts that are nearly the same: MinHash signatures in bands, then the exact share of common shingles.

Written in NumPy over many texts at once, because the libraries that do this either hash text by text in Python
(datasketch, a minute for 100,000 rows) or cut texts at spaces, which Chinese has not. The texts are read in passes,
however many there are; about 150 bytes of each stay in memory.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from open_autoglm.data.keys import as_digests, digest_texts, first_places
from open_autoglm.data.shared_shingles import SharedShingles, distinct
from open_autoglm.data.signatures import SIGNATURE, BandKeys, sign
from open_autoglm.words import SPACELESS

ALIKE: Final = 0.75
"""Texts that share this part of their shingles (Jaccard) are nearly the same."""

_LETTERS: Final = 4
_CHARACTERS: Final = 2
_WINDOW: Final = 8
_READ_MOST: Final = 20_000
_BLOCK: Final = 1 << 18
_COMPARED: Final = 1 << 21
_ROUGHLY: Final = 0.5
_COMMON_SHARE: Final = 0.1
_COMMON_LEAST: Final = 10
_COMMON_SAMPLE: Final = 5_000
_NUMBERS_COUNT: Final = 200
_THREADS: Final = 2
_LETTERS_AND_DIGITS: Final = re.compile(r"[^\W_]+")
_ASCII_SIGNS: Final = bytes(code for code in range(128) if not chr(code).isalnum())
_ASCII_DIGITS: Final = b"0123456789"
# A digit, or an operator before one: with a set at the beginning, texts are searched several times faster.
_NUMBERS: Final = re.compile(r"[-+*/×÷^=<>\d](?:(?<=\d)|\s*\d)(?:[\d.,:/*+×÷^=<>-]*\d)?%?")
_MIX: Final = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
_BASE: Final = np.uint64(0x9E3779B97F4A7C15)
_SHIFT: Final = np.uint64(33)
_TOP: Final = np.uint64(32)
_LOW: Final = np.uint32(0xFFFF)


class Texts(Protocol):
    """Texts that may be too many for memory: they are gone through in order, and some are asked for again."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...

    def at(self, places: np.ndarray) -> Iterable[str]:
        """Those at some places. places: int64[n]."""
        ...


class _ListedTexts(list[str]):
    """Texts in memory."""

    def at(self, places: np.ndarray) -> Iterable[str]:
        return [self[place] for place in places.tolist()]


def plain_form(text: str) -> tuple[str, str]:
    """What is compared: letters and digits alone, in lower case and their usual width; and the numbers.

    The numbers are those of a short text, with their signs; none of a long one. A text of signs alone is itself.
    """
    text = text[:_READ_MOST]
    if text.isascii():
        text = text.lower()
        data = text.encode().translate(None, _ASCII_SIGNS)
        letters = data.decode() or text
        has_numbers = len(data.translate(None, _ASCII_DIGITS)) != len(data)
    else:
        text = unicodedata.normalize("NFKC", text).casefold()
        letters = "".join(_LETTERS_AND_DIGITS.findall(text)) or text
        has_numbers = True
    if not has_numbers or len(letters) >= _NUMBERS_COUNT:
        return letters, ""
    return letters, " ".join(_NUMBERS.findall(text))


def group_alike(texts: Texts | Sequence[str], folder: Path | None = None) -> np.ndarray:
    """Number the texts so that those which are nearly the same have the same number.

    Nearly the same are texts that differ in case, width, signs and spaces alone, and texts that share three quarters
    of their shingles (4 letters; 2 characters of Chinese), those left out that occur in a tenth of all texts, such
    as a form that every text has. Short texts that hold different numbers are different, since the number is then
    the point: `volume to 20`, `volume to 30`. Only the first 20,000 characters count.
    folder: for the temporary file that millions of texts take.
    Returns int64[n], the index of the first text of each one's group. Deterministic; groups are closed under
    likeness, so two texts of a group need not be alike themselves.
    Source: Broder 1997 (MinHash), Indyk & Motwani 1998 (banding): of pairs that share 75%, 99.9% are found.
    """
    known = _ListedTexts(texts) if isinstance(texts, Sequence) else texts
    if not len(known):
        return np.zeros(0, dtype=np.int64)
    comparison = _Comparison(known, folder)
    try:
        return comparison.groups()
    finally:
        comparison.close()


class _Comparison:
    """All texts, by what is kept of each.

    forms: uint64[n, 2], digests of the plain forms. numbers: uint64[n], of the numbers in them. lengths: int32[n].
    marks: uint8[n, bands x rows], the low bytes of the signatures, which tell roughly how much two texts share.
    """

    def __init__(self, texts: Texts, folder: Path | None) -> None:
        count = len(texts)
        self._texts = texts
        self._common = _common(texts)
        self._perhaps_common = np.zeros(int(_LOW) + 1, dtype=np.bool_)
        self._perhaps_common[self._common & _LOW] = True
        self._lengths = np.zeros(count, dtype=np.int32)
        self._marks = np.empty((count, SIGNATURE), dtype=np.uint8)
        self._bands = BandKeys(count, folder)
        self._parents = np.arange(count)
        self._compared = SharedShingles(self._shingles_at)
        forms = bytearray()
        numbers = array("Q")
        with ThreadPoolExecutor(_THREADS) as pool:
            waiting: list[Future[None]] = []
            start = 0
            for block in _blocks(map(plain_form, texts)):
                letters = [text for text, _ in block]
                waiting.append(pool.submit(self._sign, start, letters))
                forms += b"".join(map(digest_texts, block))
                numbers.extend([_digest_number(number) if number else 0 for _, number in block])
                self._lengths[start : start + len(block)] = np.fromiter(map(len, letters), np.int32, len(letters))
                start += len(block)
                if len(waiting) > 2 * _THREADS:
                    waiting.pop(0).result()
            for future in waiting:
                future.result()
        self._numbers = np.array(numbers, dtype=np.uint64)
        self._same = first_places(as_digests(forms))

    def close(self) -> None:
        """Remove the temporary file, if there is one."""
        self._bands.close()

    def groups(self) -> np.ndarray:
        """int64[n], see `group_alike`."""
        different = np.flatnonzero(self._same == np.arange(len(self._same)))
        if len(different) > 1:
            with ThreadPoolExecutor(_THREADS) as pool:
                bands = [pool.submit(self._bands.repeated, band, different) for band in self._bands.numbers[:_THREADS]]
                for band in self._bands.numbers:
                    members, keys = bands.pop(0).result()
                    if band + _THREADS in self._bands.numbers:
                        bands.append(pool.submit(self._bands.repeated, band + _THREADS, different))
                    self._join_neighbours(members, keys)
        return self._parents[self._same]

    def _sign(self, start: int, letters: Sequence[str]) -> None:
        hashes, counts = self._shingles(letters)
        signatures = sign(hashes, counts)
        self._marks[start : start + len(letters)] = signatures.astype(np.uint8)
        self._bands.write(start, signatures)

    def _shingles(self, letters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Hashed shingles without the common ones, and how many each text has; a text with no others keeps all."""
        hashes, counts = _hash_block(letters)
        if not len(self._common):
            return hashes, counts
        owners = np.repeat(np.arange(len(counts)), counts)
        rare = np.ones(len(hashes), dtype=np.bool_)
        perhaps = np.flatnonzero(self._perhaps_common[hashes & _LOW])
        nearest = np.minimum(np.searchsorted(self._common, hashes[perhaps]), len(self._common) - 1)
        rare[perhaps] = self._common[nearest] != hashes[perhaps]
        left = np.bincount(owners, weights=rare, minlength=len(counts)).astype(np.int64)
        rare |= (left == 0)[owners]
        return hashes[rare], np.where(left == 0, counts, left)

    def _join_neighbours(self, members: np.ndarray, keys: np.ndarray) -> None:
        """Join the texts that agree in a band, as far as they stand near each other, and are alike indeed."""
        for distance in range(1, min(_WINDOW, len(members) - 1) + 1):
            same = np.flatnonzero(keys[distance:] == keys[:-distance])
            if not len(same):
                break
            one, other = members[same], members[same + distance]
            apart = (self._parents[one] != self._parents[other]) & (self._numbers[one] == self._numbers[other])
            one, other = one[apart], other[apart]
            for start in range(0, len(one), _BLOCK):
                self._join(one[start : start + _BLOCK], other[start : start + _BLOCK])

    def _join(self, one: np.ndarray, other: np.ndarray) -> None:
        roughly = (self._marks[one] == self._marks[other]).mean(axis=1) >= _ROUGHLY
        one, other = one[roughly], other[roughly]
        while len(one):
            sizes = np.cumsum(self._lengths[one].astype(np.int64) + self._lengths[other] + 2 * _LETTERS)
            enough = max(1, int(np.searchsorted(sizes, _COMPARED)))
            first, second = one[:enough], other[:enough]
            alike = self._compared.shares(first, second) >= ALIKE
            join_pairs(self._parents, first[alike], second[alike])
            one, other = one[enough:], other[enough:]
            apart = self._parents[one] != self._parents[other]
            one, other = one[apart], other[apart]

    def _shingles_at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._shingles([plain_form(text)[0] for text in self._texts.at(places)])


def join_pairs(parents: np.ndarray, one: np.ndarray, other: np.ndarray) -> None:
    """Make each pair of places members of one set; every place of `parents` then holds the least member of its set."""
    for first, second in zip(one.tolist(), other.tolist(), strict=True):
        left, right = find_root(parents, first), find_root(parents, second)
        parents[max(left, right)] = min(left, right)
    while len(one) and (parents[parents] != parents).any():
        parents[:] = parents[parents]


def find_root(parents: np.ndarray, place: int) -> int:
    """The least member of a set of places, each of which points to another one of its set or to itself."""
    while (above := int(parents[place])) != place:
        place = above
    return place


def _blocks(forms: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    block: list[tuple[str, str]] = []
    size = 0
    for form in forms:
        block.append(form)
        size += len(form[0]) + _LETTERS
        if size > _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _hash_block(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The shingles of some texts, end to end: uint32[total], and how many each text has: int64[n], at least one."""
    padding = "\0" * (_LETTERS - 1)
    joined = padding.join(texts) + padding
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    if joined.isascii():
        codes = np.frombuffer(joined.encode(), dtype=np.uint8).astype(np.uint64)
        short = None
    else:
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
        short = _spaceless_codes()[codes]
    codes += np.uint64(1)
    rolled = codes.copy()
    size = len(codes)
    for step in range(1, _LETTERS):
        mixed = rolled[: size - step] * _BASE
        mixed += codes[step:]
        if short is not None and step >= _CHARACTERS:
            # Past the end of a shingle nothing is mixed in, so that both sizes are hashed by the same pass.
            mixed = np.where(short[: size - step], rolled[: size - step], mixed)
        rolled[: size - step] = mixed
    starts = np.cumsum(lengths + _LETTERS - 1) - (lengths + _LETTERS - 1)
    if short is None:
        counts = np.maximum(lengths - (_LETTERS - 1), 1)
        chosen = rolled[np.arange(int(counts.sum())) + np.repeat(starts - (np.cumsum(counts) - counts), counts)]
    else:
        reach = np.where(short, _CHARACTERS, _LETTERS)
        owners = np.repeat(np.arange(len(texts)), lengths + _LETTERS - 1)
        ends = (starts + lengths)[owners]
        position = np.arange(size)
        whole = (position + reach <= ends) & (position < ends)
        whole[starts] = True
        chosen = rolled[whole]
        counts = np.bincount(owners[whole], minlength=len(texts))
    for factor in _MIX:
        chosen ^= chosen >> _SHIFT
        chosen *= factor
    return (chosen >> _TOP).astype(np.uint32), counts


@cache
def _spaceless_codes() -> np.ndarray:
    """bool[every code point], whether it is of a script without spaces."""
    table = np.zeros(0x110000, dtype=np.bool_)
    for place in range(0, len(SPACELESS), 3):
        table[ord(SPACELESS[place]) : ord(SPACELESS[place + 2]) + 1] = True
    return table


def _digest_number(text: str) -> int:
    """A number that is not 0 and stands for a text."""
    return int.from_bytes(digest_texts((text,))[:8], "little") | 1


def _common(texts: Texts) -> np.ndarray:
    """Sorted shingles that occur in a tenth of all different texts; for many texts, of a sample."""
    step = -(-len(texts) // _COMMON_SAMPLE)
    forms = dict.fromkeys(map(plain_form, texts.at(np.arange(0, len(texts), step))))
    pairs: list[np.ndarray] = []
    start = 0
    for block in _blocks(forms):
        hashes, counts = _hash_block([letters for letters, _ in block])
        owners = np.repeat(np.arange(start, start + len(block)), counts)
        pairs.append(distinct(owners.astype(np.uint64) << _TOP | hashes))
        start += len(block)
    ordered = np.sort(np.concatenate(pairs).astype(np.uint32))
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    values, seen = ordered[starts], np.diff(np.append(starts, len(ordered)))
    return values[seen >= max(_COMMON_LEAST, _COMMON_SHARE * len(forms))]
