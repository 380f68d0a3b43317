# SPDX-License-Identifier: Apache-2.0
"""Documents from files, cut into passages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import DataError
from open_autoglm.pipeline.stages.text_cleaner import text_of_html
from open_autoglm.storage import explained, sha256_of_file
from open_autoglm.words import split_words

_LINES: Final = frozenset({".jsonl", ".ndjson"})
_HTML: Final = frozenset({".html", ".htm"})
_TEXT: Final = frozenset({".txt", ".md", ".rst"})
SUFFIXES: Final = _LINES | _HTML | _TEXT


@dataclass(frozen=True)
class Passage:
    """A piece of a document. id: DOCUMENT#NUMBER, from 1."""

    id: str
    document: str
    text: str


@dataclass(frozen=True)
class DocumentFiles:
    """The files of documents. left_out: those in the folder that are of no kind that is read."""

    root: Path
    files: tuple[Path, ...]
    left_out: tuple[Path, ...]

    @classmethod
    def find(cls, path: Path) -> DocumentFiles:
        """A file, or the files of a folder and of the folders in it; those whose name begins with a dot are not meant.

        Raises DataError when there is none.
        """
        if path.is_file():
            return cls(path.parent, (path,), ())
        if not path.is_dir():
            raise DataError(f"there are no documents at {path}: give a file of JSON lines or a folder")
        with explained(path, "read"):
            found = sorted(
                file
                for file in path.rglob("*")
                if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
        files = tuple(file for file in found if file.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f"{path} has no documents: files that end with {', '.join(sorted(SUFFIXES))}")
        return cls(path, files, tuple(file for file in found if file.suffix.lower() not in SUFFIXES))

    def signs(self) -> list[tuple[str, int, int]]:
        """What is different when a file was written, without reading it."""
        signs: list[tuple[str, int, int]] = []
        for file in self.files:
            with explained(file, "read"):
                status = file.stat()
            signs.append((str(file), status.st_size, status.st_mtime_ns))
        return signs

    def digest(self) -> str:
        """Of the names and the content of all files."""
        listing = [[str(file.relative_to(self.root)), sha256_of_file(file)] for file in self.files]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


@dataclass(frozen=True)
class PassageCutter:
    """Reads documents and cuts them. words: of a passage at most; overlap: words that two neighbours share.

    text, id: the fields of JSON lines.
    """

    words: int
    overlap: int
    text: str
    id: str

    def passages(self, found: DocumentFiles) -> Iterator[Passage]:
        """All passages, in the order of the files.

        Raises DataError that names the file and line of a document that cannot be read, or whose id was there before.
        """
        seen: dict[str, str] = {}
        for file in found.files:
            for place, identity, text in self._documents(file, found.root):
                if identity in seen:
                    raise DataError(f"{place}: the document '{identity}' was there before, in {seen[identity]}")
                seen[identity] = place
                for number, part in enumerate(self.cut(text), 1):
                    yield Passage(f"{identity}#{number}", identity, part)

    def cut(self, text: str) -> list[str]:
        """The passages of one text; none of one that holds no word."""
        pieces = split_words(text)
        places = [index for index, piece in enumerate(pieces) if not piece.isspace()]
        parts: list[str] = []
        for start in range(0, len(places), self.words - self.overlap):
            chosen = places[start : start + self.words]
            parts.append("".join(pieces[chosen[0] : chosen[-1] + 1]))
            if start + self.words >= len(places):
                break
        return parts

    def _documents(self, file: Path, root: Path) -> Iterator[tuple[str, str, str]]:
        """Place, id and text of each document of a file."""
        name, suffix = str(file.relative_to(root)), file.suffix.lower()
        try:
            with explained(file, "read"), file.open(encoding="utf-8-sig") as lines:
                if suffix not in _LINES:
                    text = lines.read()
                    yield str(file), name, text_of_html(text) if suffix in _HTML else text
                    return
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        place = f"{file}, line {number}"
                        identity, text = self._row(line, place, f"{name}:{number}")
                        yield place, identity, text
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8 text (byte {error.start})") from None

    def _row(self, line: str, place: str, otherwise: str) -> tuple[str, str]:
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: this is not JSON ({error})") from None
        if not isinstance(row, dict) or not isinstance(row.get(self.text), str):
            raise DataError(f"{place}: a document must be a mapping with a text in '{self.text}'")
        identity = row.get(self.id, otherwise)
        if isinstance(identity, bool) or not isinstance(identity, str | int):
            raise DataError(f"{place}: '{self.id}' is no text or number that could name the document")
        return str(identity), row[self.text]
