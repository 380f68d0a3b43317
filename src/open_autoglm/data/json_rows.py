# SPDX-License-Identifier: Apache-2.0
"""JSON and JSON Lines -> numbered rows, with the line of every fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import DataError

Note = tuple[str, int | None]

_NOT_FINITE: Final = "NaN or Infinity read as null"


class _Decoder:
    """A JSON decoder that remembers whether it met NaN or Infinity, which JSON does not have."""

    def __init__(self) -> None:
        self.met_constant = False
        self._decoder = json.JSONDecoder(parse_constant=self._constant)

    def _constant(self, _: str) -> None:
        self.met_constant = True

    def decode(self, text: str, path: Path, line: int) -> Any:
        """The value. line: where `text` starts in the file. Raises DataError with line and column."""
        try:
            return self._decoder.decode(text)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {line + error.lineno - 1}, column {error.colno}: not valid JSON "
                f"({error.msg[:1].lower()}{error.msg[1:]})"
            ) from None
        except RecursionError:
            raise DataError(f"{path}, line {line}: JSON nested too deeply to be data; make it flatter") from None
        except ValueError as error:
            raise DataError(f"{path}, line {line}: not usable JSON ({str(error).split(';')[0].lower()})") from None


def read_json_lines(text: str, path: Path) -> tuple[list[tuple[int, Any]], list[Note]]:
    """One JSON value per line -> (line, object or text) and what was set right.

    Lines end at line feeds only: JSON texts may hold other separators of Unicode.
    Raises DataError for a line that is not JSON, or neither an object nor a string.
    """
    decoder = _Decoder()
    rows: list[tuple[int, Any]] = []
    notes: list[Note] = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        stripped = line.strip(" \t\r")
        if not stripped:
            notes.append(("blank line skipped", number))
            continue
        decoder.met_constant = False
        value = decoder.decode(stripped, path, number)
        if decoder.met_constant:
            notes.append((_NOT_FINITE, number))
        _check_row(value, path, f"line {number}")
        rows.append((number, value))
    return rows, notes


def read_json_value(text: str, path: Path) -> tuple[str, list[tuple[int, Any]], list[Note]]:
    """A whole JSON file -> its format, numbered rows, and what was set right.

    Takes an array, an object with one array of rows (such as `{"data": [...]}`), SQuAD's nesting, and JSON Lines
    under the name of JSON. Raises DataError for anything else.
    """
    decoder = _Decoder()
    try:
        value = decoder.decode(text, path, 1)
    except DataError:
        first, _, rest = text.strip().partition("\n")
        if rest.strip() and _is_object(first):
            rows, notes = read_json_lines(text, path)
            return "jsonl", rows, [("JSON Lines under the name of JSON", None), *notes]
        raise
    notes: list[Note] = [(_NOT_FINITE, None)] if decoder.met_constant else []
    if isinstance(value, dict):
        value = _rows_inside(value, path)
    if not isinstance(value, list):
        raise DataError(f"{path}: a single JSON {_name(value)}; give an array of objects, one per row")
    if any(isinstance(item, dict) and isinstance(item.get("paragraphs"), list) for item in value):
        return "squad", list(enumerate(_flatten_squad(value, path), start=1)), notes
    for number, item in enumerate(value, start=1):
        _check_row(item, path, f"row {number}")
    return "json", list(enumerate(value, start=1)), notes


def _rows_inside(value: dict[str, Any], path: Path) -> Any:
    """The one array of objects in an object."""
    arrays = {
        key: inner
        for key, inner in value.items()
        if isinstance(inner, list) and inner and all(isinstance(item, dict) for item in inner)
    }
    if "data" in arrays:
        return arrays["data"]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    found = f"several arrays of rows ({', '.join(arrays)})" if arrays else "no array of rows"
    raise DataError(f'{path}: a JSON object with {found}; give an array, or an object like {{"data": [...]}}')


def _flatten_squad(articles: list[Any], path: Path) -> list[dict[str, Any]]:
    """SQuAD's articles, paragraphs and questions -> one row per question, with its answers as a list of texts."""
    rows: list[dict[str, Any]] = []
    for place, article in enumerate(articles, start=1):
        try:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [answer["text"] for answer in question.get("answers") or []]
                    rows.append({"context": paragraph["context"], "question": question["question"], "answers": answers})
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}, article {place}: not as SQuAD nests them, paragraphs with `context` and `qas` with "
                f"`question` and `answers` ({type(error).__name__}: {error})"
            ) from None
    return rows


def _check_row(value: Any, path: Path, place: str) -> None:
    if not isinstance(value, dict | str):
        raise DataError(f"{path}, {place}: a JSON {_name(value)}, where an object (or a text) was expected")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _name(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "number")
