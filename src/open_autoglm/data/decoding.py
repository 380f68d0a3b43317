# SPDX-License-Identifier: Apache-2.0
"""Bytes of a file -> text: UTF-8, UTF-16 by its mark, GB18030 where that is what the bytes look like."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from open_autoglm.errors import DataError

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with a byte order mark"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_COMPRESSED: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
)
_FREQUENT: Final = frozenset(
    "的一是不了在有我人这中大来上个国到说们为你地出就以时要会可也下得子生自年着过发后作家好多里天还小么都然没日于起成事只"
    "這個們為時會過後發來國說對學經點還沒從開關問樣嗎麼"
)
"""The characters that make up a third of any Chinese text, simplified or traditional."""
_FREQUENT_SHARE: Final = 0.1
_LEVEL_ONE_SHARE: Final = 0.8
_FEW: Final = 100


@dataclass(frozen=True)
class DecodedText:
    """The text of a file. encoding: what it was, for people. repaired: it was not plain UTF-8."""

    text: str
    encoding: str
    repaired: bool = False


def read_bytes(path: Path) -> bytes:
    """The content of a data file. Raises DataError when it is missing, a folder, unreadable, empty or compressed."""
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder; give the data file itself")
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is not a regular file; write the data to a file first")
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise DataError(f"{path} cannot be read: {reason}") from None
    if not data.strip():
        raise DataError(f"{path} is empty; give a file with data in it")
    for mark, name in _COMPRESSED:
        if data.startswith(mark):
            raise DataError(f"{path} is compressed ({name}); unpack it first and give the file inside")
    return data


def decode_text(data: bytes, path: Path) -> DecodedText:
    """Bytes -> text.

    Without a byte order mark, UTF-8 is tried first, then GB18030 if its characters are those of Chinese texts.
    Raises DataError, with the line of the first byte at fault, for binary files and other encodings.
    """
    for mark, codec, name in _MARKS:
        if data.startswith(mark):
            try:
                return DecodedText(_not_empty(data.decode(codec), path), name, repaired=True)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} begins with the byte order mark of {name.split()[0]}, but byte {error.start + 1} is not "
                    "valid in it; the file is damaged or cut off, save it again as UTF-8"
                ) from None
    if (place := data.find(b"\0")) >= 0:
        raise DataError(
            f"{path}, line {_line_of(data, place)}: a NUL byte; this is a binary file, not text. Give JSONL, JSON, "
            "CSV, TSV, Parquet or plain text"
        )
    try:
        return DecodedText(data.decode("utf-8"), "UTF-8")
    except UnicodeDecodeError as error:
        if (text := _decode_chinese(data)) is not None:
            return DecodedText(text, "GB18030", repaired=True)
        raise DataError(
            f"{path}, line {_line_of(data, error.start)}: byte 0x{data[error.start]:02x} is not UTF-8, and the file is "
            "not GB18030 either; it is binary, or in another encoding: save it as UTF-8"
        ) from None


def _decode_chinese(data: bytes) -> str | None:
    """GB18030, if the characters are those that Chinese is written with: other encodings give rare ones.

    A tenth of them must be among the most frequent ones; where there are few, most must be of the common 3,755.
    """
    try:
        text = data.decode("gb18030")
    except UnicodeDecodeError:
        return None
    wide = [character for character in text[:200_000] if character >= "\u2e80"]
    if not wide or len(wide) * 2 < sum(not character.isascii() for character in text[:200_000]):
        return None
    if len(wide) >= _FEW:
        plausible = sum(character in _FREQUENT for character in wide) >= _FREQUENT_SHARE * len(wide)
    else:
        plausible = sum(_is_common(character) for character in wide) >= _LEVEL_ONE_SHARE * len(wide)
    return text if plausible else None


def _is_common(character: str) -> bool:
    """In the first level of GB 2312, or its punctuation."""
    try:
        lead = character.encode("gb2312")[0]
    except UnicodeEncodeError:
        return False
    return lead <= 0xA3 or 0xB0 <= lead <= 0xD7


def _line_of(data: bytes, place: int) -> int:
    return data.count(b"\n", 0, place) + 1


def _not_empty(text: str, path: Path) -> str:
    if not text.strip():
        raise DataError(f"{path} is empty; give a file with data in it")
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise DataError(f"{path}, line {line}: a NUL character; this is a binary file, not text")
    return text
