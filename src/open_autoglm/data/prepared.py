# SPDX-License-Identifier: Apache-2.0
"""What the data step hands on, saved and read again: in memory while it is small, from its files when it is large."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, Final

from open_autoglm.data.changes import save_changes
from open_autoglm.data.encoding import TokenizedExamples
from open_autoglm.data.example import Example, pack_plain
from open_autoglm.data.example_store import SavedExamples, StoredExamples
from open_autoglm.data.findings import FindingKind, FindingLog
from open_autoglm.data.report import DataReport
from open_autoglm.errors import StorageError
from open_autoglm.storage import explained, read_json, replacing, write_json
from open_autoglm.task import Task

SPLITS: Final = ("train", "valid", "test")
_IN_MEMORY: Final = 64 << 20
_digest_encode: Final = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode
_encode: Final = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class PreparedData:
    """What the data step hands on: three splits with canonical answers, the task, and the report.

    Splits that are too large for memory are read from disk as they are gone through: see `example_store`.
    changes: what was done to the examples since they were read, as `changes.Changes` has it; not read back.
    """

    train: Sequence[Example]
    valid: Sequence[Example]
    test: Sequence[Example]
    task: Task
    report: DataReport
    changes: Iterable[dict[str, Any]] = field(default=(), compare=False, repr=False)

    def digest(self) -> str:
        """SHA-256 over the examples of all splits; where the rows came from does not count."""
        total = hashlib.sha256()
        for split in SPLITS:
            total.update(f"{split}\n".encode())
            for example in getattr(self, split):
                messages = [message.to_dict() for message in example.messages]
                total.update(_digest_encode(messages).encode() + b"\n")
        return total.hexdigest()

    def with_shortened(self, tokenized: Mapping[str, TokenizedExamples]) -> PreparedData:
        """The same with a finding for each example that was too long for the model.

        tokenized: by split, what `encode_examples` made of it.
        """
        log = FindingLog()
        for split, tokens in tokenized.items():
            examples: Sequence[Example] = getattr(self, split)
            for index in tokens.shortened.tolist():
                what = "longer than the model's context; shortened"
                log.note_source(FindingKind.SHORTENED, what, examples[index].source)
        return replace(self, report=replace(self.report, findings=(*self.report.findings, *log.findings())))

    def save(self, folder: Path) -> None:
        """Write one JSON Lines file per split, `task.json`, `report.json` and `changes.jsonl`. Raises StorageError."""
        for split in SPLITS:
            with replacing(folder / f"{split}.jsonl") as temporary, temporary.open("w", encoding="utf-8") as file:
                file.writelines(_to_lines(getattr(self, split)))
        write_json(folder / "report.json", self.report.to_dict())
        write_json(folder / "task.json", self.task.to_dict())
        if self.changes:
            save_changes(self.changes, folder)

    @classmethod
    def load(cls, folder: Path, *, in_memory: int = _IN_MEMORY) -> PreparedData:
        """The inverse of `save`. Raises StorageError for a folder that holds something else.

        in_memory: of how many bytes a split may be to be read at once; others stay in their files.
        """
        try:
            splits = {split: _load_examples(folder / f"{split}.jsonl", in_memory) for split in SPLITS}
            task = Task.from_dict(read_json(folder / "task.json"))
            report = DataReport.from_dict(read_json(folder / "report.json"))
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"{folder} does not hold prepared data ({type(error).__name__}: {error}); prepare the data again"
            ) from None
        return cls(splits["train"], splits["valid"], splits["test"], task, report)


def _to_lines(examples: Sequence[Example]) -> Iterator[str]:
    """`Example.to_dict` as JSON Lines; of examples with nothing but roles and texts put together at once."""
    for entry in examples.entries() if isinstance(examples, StoredExamples) else examples:
        if not isinstance(entry, Example):
            plain = entry
        elif (plain := pack_plain(entry)) is None:
            yield f"{_encode(entry.to_dict())}\n"
            continue
        parts = iter(plain)
        source = encode_basestring(next(parts))
        said = [
            f'{{"role": "{role}", "content": {encode_basestring(text)}}}'
            for role, text in zip(parts, parts, strict=True)
        ]
        yield f'{{"messages": [{", ".join(said)}], "source": {source}}}\n'


def _load_examples(path: Path, in_memory: int) -> Sequence[Example]:
    with explained(path, "read"):
        is_small = path.stat().st_size <= in_memory
        text = path.read_text(encoding="utf-8") if is_small else ""
    if not is_small:
        return SavedExamples(path)
    values: Iterable[Any] = map(json.loads, text.removesuffix("\n").split("\n") if text else ())
    return tuple(map(Example.from_dict, values))
