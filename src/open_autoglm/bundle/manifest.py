# SPDX-License-Identifier: Apache-2.0
"""`bundle.json`: what a bundle says of itself, and reading it without trusting it."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Final, Literal, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from open_autoglm.errors import BundleError, OpenAutoGLMError
from open_autoglm.task import Task, TaskKind

MANIFEST: Final = "bundle.json"
SCHEMA_VERSION: Final = 2
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
SHA256_PATTERN: Final = "^[0-9a-f]{64}$"
_MAX_DEPTH: Final = 128
_MAX_NAME: Final = 200
_MAX_PATH: Final = 1024


def _printable(text: str) -> str:
    """Names are shown on terminals and in pages: control characters and lone surrogates have no place in them."""
    if not text.isprintable():
        raise ValueError("must be printable characters")
    return text


_Name = Annotated[str, Field(min_length=1, max_length=_MAX_NAME), AfterValidator(_printable)]
_Sha256 = Annotated[str, Field(pattern=SHA256_PATTERN)]
_Path = Annotated[str, Field(min_length=1, max_length=_MAX_PATH)]
Weights = Literal["float32", "int8", "int4"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Record):
    """One file of the bundle: its size in bytes and its SHA-256 in hexadecimal digits."""

    size: StrictInt = Field(ge=0, lt=1 << 62)
    sha256: _Sha256


class QuantizationRecord(_Record):
    """A compressed copy of the weights: where it lies, and what it costs in the task's metric.

    symmetric: none where the method says. metric_interval: 95% confidence interval of `metric_after`.
    """

    bits: Literal[4, 8]
    method: str
    group_size: int | None
    file: _Path
    size: int = Field(ge=0)
    metric_before: FiniteFloat | None
    metric_after: FiniteFloat | None
    symmetric: bool | None = None
    metric_interval: tuple[FiniteFloat, FiniteFloat] | None = None


class Parent(_Record):
    """What a bundle was made from, such as the checkpoint that was fine-tuned.

    sha256: of a bundle's `bundle.json`, or of the listing of a checkpoint's files (`lineage.describe_parent`).
    """

    name: _Name
    kind: Literal["bundle", "checkpoint"]
    sha256: _Sha256
    license: str | None = None


class Lineage(BaseModel):
    """Where a bundle comes from. Everything may be missing, and steps may add what they know; what is there is checked.

    built, seconds: the only values that differ between two builds of the same on one machine.
    data_sha256: of the examples as they were learnt. files_sha256: of the data files by split. data_report: the
    file of the bundle that holds the summary of the data report. code: version and SHA-256 of this package's sources.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    built: StrictStr | None = None
    data_sha256: _Sha256 | None = None
    files_sha256: dict[str, str] = Field(default_factory=dict)
    data_report: _Path | None = None
    seed: StrictInt | None = None
    search: dict[str, Any] = Field(default_factory=dict)
    code: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    parents: tuple[Parent, ...] = ()
    seconds: dict[str, FiniteFloat] = Field(default_factory=dict)


class _TaskRecord(BaseModel):
    """The types that `Task.from_dict` relies on."""

    model_config = ConfigDict(extra="allow")

    kind: TaskKind
    labels: list[StrictStr] | None = None
    answer_schema: dict[str, Any] | None = None
    input_column: str | None = None
    output_column: str | None = None
    tools: list[dict[str, Any]] | None = None
    reads_twice: bool = False


class BundleManifest(_Record):
    """`bundle.json`, version 2. Version 1 is read as well; it has no `chat_template` and looser lineage.

    default_weights: which weights an engine loads when it is not told. task: `Task.to_dict()`. chat_format: how
    conversations are laid out; chat_template: the same as a Jinja file of the bundle. metrics: of the split named in
    each key, such as `test_exact_match`. target: the device that it was built for. lineage: see `Lineage`.
    license: an SPDX expression, or `LicenseRef-…` for terms of the owner's own.
    """

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    name: _Name
    task: dict[str, Any]
    chat_format: Literal["glm-4-9b-chat"] = "glm-4-9b-chat"
    chat_template: _Path | None = None
    architecture: _Name
    parameters: int = Field(ge=0)
    default_weights: Weights = "float32"
    quantizations: dict[str, QuantizationRecord] = Field(default_factory=dict)
    target: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, FiniteFloat] = Field(default_factory=dict)
    lineage: dict[str, Any] = Field(default_factory=dict)
    license: _Name | None = None
    files: dict[_Path, FileRecord] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_parts(self) -> BundleManifest:
        parts: list[tuple[str, type[BaseModel], dict[str, Any]]] = [("task", _TaskRecord, self.task)]
        if self.schema_version >= 2:
            parts.append(("lineage", Lineage, self.lineage))
        for name, record, values in parts:
            try:
                record.model_validate(values)
            except ValidationError as error:
                raise ValueError(_first_fault(error, name)) from None
        try:
            Task.from_dict(self.task)
        except (OpenAutoGLMError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"task: {error}") from None
        return self

    @property
    def origin(self) -> Lineage:
        """The lineage by its fields; that of version 1 where it fits them."""
        try:
            return Lineage.model_validate(self.lineage)
        except ValidationError:
            return Lineage()

    @property
    def built_for(self) -> Task:
        """The task as an object."""
        return Task.from_dict(self.task)

    def check_references(self, where: object) -> None:
        """Raise BundleError if a part of the manifest names a file that it does not list. where: for the message."""
        named = {f"{name} weights": record.file for name, record in self.quantizations.items()}
        if self.chat_template is not None:
            named["a chat template"] = self.chat_template
        if self.schema_version >= 2 and self.origin.data_report is not None:
            named["a data report"] = self.origin.data_report
        for what, file in named.items():
            if file not in self.files:
                raise BundleError(f"{where}: {MANIFEST} offers {what} in {file!r}, which is not listed")


def parse_manifest(content: bytes, where: object) -> BundleManifest:
    """Read `bundle.json` from bytes of unknown origin. where: the file, for messages.

    Raises BundleError for what is not strict JSON (a key twice, NaN, nesting without end) or not a manifest.
    """
    if len(content) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{where} is larger than {MAX_MANIFEST_BYTES // 1024 // 1024} MiB; it is not ours")
    try:
        values = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not valid JSON ({_plain(str(error))})") from None
    if _depth_exceeds(values, _MAX_DEPTH):
        raise BundleError(f"{where} is nested more than {_MAX_DEPTH} levels deep; it is not ours")
    try:
        return BundleManifest.model_validate(values)
    except ValidationError as error:
        raise BundleError(_plain(f"{where}: {_first_fault(error)}")) from None


def _first_fault(error: ValidationError, *place: str) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    words = ".".join([*place, *map(str, first["loc"])])
    message = first["msg"].removeprefix("Value error, ")
    return f"{words}: {message}" if words else message


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"it has the key {twice[:80]!r} twice")
    return values


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


def _finite_float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is too large")
    return value


def _depth_exceeds(value: object, limit: int) -> bool:
    level: list[Any] = [value]
    for _ in range(limit):
        level = [inner for item in level for inner in _inner(item)]
        if not level:
            return False
    return True


def _inner(item: object) -> list[Any]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else []


def _plain(text: str) -> str:
    """A message that any terminal takes: what is not printable is written out."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text[:600])
