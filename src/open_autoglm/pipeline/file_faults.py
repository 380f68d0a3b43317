# SPDX-License-Identifier: Apache-2.0
"""The faults of a pipeline's file, gathered, each with the file, the line and the column."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from open_autoglm.errors import SpecificationError
from open_autoglm.pipeline.file_schema import SECTIONS
from open_autoglm.pipeline.secrets import Redactor
from open_autoglm.spelling import did_you_mean
from open_autoglm.yaml_document import Place, YamlDocument

_MOST_SHOWN: Final = 50


class FaultList:
    """Faults in the order of their lines; the same one is kept once."""

    def __init__(self) -> None:
        self._faults: dict[str, tuple[str, int, int]] = {}

    def add(self, document: YamlDocument, place: Place, message: str) -> None:
        """A fault of the value at a place."""
        line, column = document.position(place)
        self.add_at(document.path, line, column, f"{_written(document, place)}{message}")

    def add_at(self, path: Path, line: int | None, column: int | None, message: str) -> None:
        """A fault at a line and column of a file."""
        where = str(path) if line is None else f"{path}:{line}:{column}"
        self._faults.setdefault(f"{where}: {message}", (str(path), line or 0, column or 0))

    def add_flag(self, flag: str, message: str) -> None:
        """A fault of a flag of the command line."""
        self._faults.setdefault(f"{flag}: {message}", ("", 0, 0))

    def add_shape(self, document: YamlDocument, error: ValidationError) -> None:
        """The faults of the file's own shape."""
        for fault in error.errors(include_url=False, include_input=False):
            known = _existing(document, fault["loc"])
            if fault["type"] == "extra_forbidden":
                section = _section_at(known[:-1])
                names = section.model_fields if section is not None else {}
                self.add(document, known, f"unknown key{did_you_mean(str(fault['loc'][-1]), names)}")
            elif fault["type"] == "missing":
                self.add(document, known, f"'{fault['loc'][-1]}' is missing")
            else:
                self.add(document, known, _message(fault["msg"]))

    def add_config(
        self,
        document: YamlDocument,
        place: Place,
        error: ValidationError,
        model: type[BaseModel],
        redactor: Redactor,
    ) -> None:
        """The faults of a stage's settings, as the stage's own model sees them."""
        for fault in error.errors(include_url=False, include_input=False, include_context=False):
            where = (*place, *(part for part in fault["loc"] if isinstance(part, str | int)))
            if fault["type"] == "extra_forbidden":
                names = model.model_fields if len(fault["loc"]) == 1 else {}
                self.add(document, where, f"unknown setting{did_you_mean(str(fault['loc'][-1]), names)}")
            elif fault["type"] == "missing":
                self.add(document, where[:-1], f"'{fault['loc'][-1]}' is missing")
            else:
                self.add(document, where, redactor.text(_message(fault["msg"])))

    def error(self) -> SpecificationError:
        """All faults as one error."""
        faults = [fault for fault, _ in sorted(self._faults.items(), key=lambda item: item[1])]
        text = "\n".join(faults[:_MOST_SHOWN])
        if len(faults) > _MOST_SHOWN:
            text += f"\n... and {len(faults) - _MOST_SHOWN} more"
        return SpecificationError(text, tuple(faults))

    def raise_if_any(self) -> None:
        """Raise `error()` unless all is well."""
        if self._faults:
            raise self.error()


def _section_at(place: Place) -> type[BaseModel] | None:
    keys = [part for part in place if isinstance(part, str)]
    return SECTIONS.get(keys[-1] if keys else "")


def _message(text: str) -> str:
    text = text.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return text[:1].lower() + text[1:]


def _written(document: YamlDocument, place: Place) -> str:
    """The place as its reader knows it: a stage by its name."""
    value = document.value
    words: list[str] = []
    for part in place:
        value = _child(value, part)
        if isinstance(part, int) and words == ["pipeline"]:
            name = value.get("stage") if isinstance(value, dict) else None
            words = [f"stage '{name}'" if isinstance(name, str) else f"stage {part + 1}"]
        elif isinstance(part, int):
            words.append(f"{words.pop()}[{part}]" if words else str(part))
        else:
            words.append(part)
    return f"{'.'.join(words)}: " if words else ""


def _child(value: Any, part: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(part)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def _existing(document: YamlDocument, loc: Place) -> Place:
    """The parts of a path that lead to something; a union's choice, which pydantic puts between them, does not."""
    value, place = document.value, ()
    for part in loc:
        child = _child(value, part)
        if child is not None or (isinstance(value, dict) and part in value):
            value, place = child, (*place, part)
    return place
