# SPDX-License-Identifier: Apache-2.0
"""Files -> clean, split, canonical examples with their task and a report: the data step on one page.

Small data stays in memory; of large data only numbers do, and the examples are in a temporary file (`example_store`).
The code is the same for both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from open_autoglm.data.answers import canonical_examples, drop_unusable
from open_autoglm.data.changes import ChangeLog
from open_autoglm.data.cleaning import (
    clean_near_duplicates,
    clean_private,
    note_contradictions,
    note_duplicates,
    remove_duplicates,
    remove_leaks,
)
from open_autoglm.data.detection import Detection, check_sure, detect_task
from open_autoglm.data.doubts import note_doubts
from open_autoglm.data.example import Example
from open_autoglm.data.example_store import IN_MEMORY, ExampleStore, StoredExamples
from open_autoglm.data.findings import FindingKind, FindingLog
from open_autoglm.data.layouts import Layout, Shape, find_layout
from open_autoglm.data.prepared import SPLITS, PreparedData
from open_autoglm.data.reading import ReadFile, read_file
from open_autoglm.data.report import DataReport, FileReport, measure_lengths, name_language, summarise_output
from open_autoglm.data.rows import FileRows
from open_autoglm.data.schema import infer_answer_schema, infer_labels
from open_autoglm.data.splitting import split_examples
from open_autoglm.data.tool_calls import shared_tools
from open_autoglm.errors import ConfigurationError, DataError
from open_autoglm.task import Task, TaskKind

__all__ = ["PreparedData", "load_examples", "make_task", "prepare"]

Progress = Callable[[str, float], None]
"""Called with what is done at the moment, and the share of it that is done, between 0 and 1."""

_LEAST_EXAMPLES: Final = 4
_LOG: Final = logging.getLogger(__name__)


def prepare(
    train: Path,
    *,
    valid: Path | None = None,
    test: Path | None = None,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    mask_pii: bool = False,
    remove_near_duplicates: bool = False,
    scratch: Path | None = None,
    in_memory: int = IN_MEMORY,
    on_progress: Progress | None = None,
) -> PreparedData:
    """Read, understand, clean and split a data set.

    valid, test: files of the same shape; a tenth of the training examples each if not given. task: the kind, when
    the detected one is wrong. columns: `input` and `output` column, when the detected ones are wrong.
    Duplicates go from the training split, and so does what is also in a given valid or test file, which stay as
    they are but for their spelling (NFC, plain spaces, nothing invisible). Near-duplicates are noted, and stay on one
    side of a split that is made here. Labels and answer schema are inferred from the training split alone.
    mask_pii: put `[EMAIL]`, `[PHONE]`, ... in place of personal data and secrets, in all splits.
    remove_near_duplicates: take those out of train, and what is nearly in a given valid or test file.
    scratch: the folder for temporary files, the system's if None; they have no names there and vanish with the
    result. in_memory: how many bytes the examples may take, roughly, before they go there.
    Every change is in the report, and in `changes` so that it can be undone.
    Raises DataError for files or rows that cannot be used, ConfigurationError for an unknown task or column,
    StorageError when the disk refuses.
    """
    log, changes = FindingLog(), ChangeLog()
    wanted = TaskKind.of(task) if task is not None else None
    paths = {"train": train, "valid": valid, "test": test}
    _check_different(paths)
    store = ExampleStore(scratch, in_memory=in_memory)
    stages = _Stages(store, on_progress)
    files: dict[str, ReadFile] = {}
    for split, path in paths.items():
        if path is not None:
            known = files["train"].layout if files else None
            files[split] = read_file(
                path,
                store,
                partial(find_layout, chosen=columns, known=known),
                name=_name(path, paths),
                first=sum(len(file.raw) for file in files.values()),
                on_progress=stages.reading(path),
            )
            _check_same_shape(files["train"].layout, files[split])
            log.merge(files[split].repairs)
    found: dict[str, StoredExamples] = {}
    for split, file in files.items():
        log.merge(file.changes)
        changes.read(split, file.raw)
        changes.edited(file.raw, file.spelled, "one spelling")
        changes.removed(file.spelled, file.examples, "empty answer")
        found[split] = file.examples
    layout = files["train"].layout
    stages.begin("finding the task")
    detection = _detect(found["train"], layout, wanted, files["train"].file)
    kind = detection.kind
    for split, examples in found.items():
        stages.begin("checking answers", len(examples) if kind is TaskKind.EXTRACTION else 0)
        usable = drop_unusable(examples, kind, log)
        changes.removed(examples, usable, "answer is not JSON")
        private = files[split].private[usable.origins - files[split].first]
        found[split] = clean_private(usable, private, log, mask=mask_pii)
        changes.edited(usable, found[split], "masked")
    splits = _clean_and_split(
        found, kind, log, changes, stages, seed=seed, files=files, remove_near=remove_near_duplicates, folder=scratch
    )
    stages.begin("finding what the answers have in common", len(splits["train"]))
    result = make_task(kind, splits["train"], layout)
    stages.begin("writing answers in one form", sum(map(len, splits.values())))
    final = {split: canonical_examples(splits[split], result) for split in SPLITS}
    for split, examples in final.items():
        changes.edited(splits[split], examples, "canonical answer")
    stages.begin("looking at lengths and answers", len(final["train"]))
    note_doubts(final["train"], kind, log)
    _note_unseen_labels(result, final, log)
    report = DataReport(
        files=tuple(_report_file(split, file) for split, file in files.items()),
        task=kind.value,
        confidence=detection.confidence,
        reason=detection.reason,
        runner_up=detection.runner_up.value if detection.runner_up else None,
        language=name_language(f"{example.input_text} {example.answer}" for example in final["train"]),
        lengths=measure_lengths(final["train"]),
        split_sizes={split: len(final[split]) for split in SPLITS},
        findings=log.findings(),
        output=summarise_output(result, final["train"]),
        split_by=_explain_split(files),
    )
    stages.end()
    return PreparedData(final["train"], final["valid"], final["test"], result, report, changes.finish(final))


class _Stages:
    """Tells whoever waits what is done at the moment, and how much of it: by the examples that are read for it."""

    def __init__(self, store: ExampleStore, on_progress: Progress | None) -> None:
        self._store, self._on_progress = store, on_progress

    def begin(self, title: str, reads: int = 0) -> None:
        """A stage begins that reads about so many examples."""
        report, done = self._on_progress, 0
        if report is None:
            return

        def count(read: int) -> None:
            nonlocal done
            report(title, min(1.0, done / reads) if reads else 0.0)
            done += read

        report(title, 0.0)
        self._store.on_read = count

    def end(self) -> None:
        """All is done."""
        self._store.on_read = None

    def reading(self, path: Path) -> Callable[[float], None] | None:
        """For the stage that reads a file."""
        return None if self._on_progress is None else partial(self._on_progress, f"reading {path.name}")


def load_examples(
    path: Path,
    task: Task | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    scratch: Path | None = None,
    in_memory: int = IN_MEMORY,
) -> Sequence[Example]:
    """Read a file as the training file of `task` was read, its answers canonical by the same schema.

    For scoring: nothing is removed but rows that cannot be used, which a warning names. task: detected if None.
    scratch, in_memory: as of `prepare`; examples that take more are read from the disk as they are gone through.
    Raises DataError for a file that cannot be used, ConfigurationError for an unknown column.
    """
    store = ExampleStore(scratch, in_memory=in_memory)
    read = read_file(path, store, lambda file: find_layout(file, columns, known=_layout_of(task, file)))
    if not read.examples:
        raise DataError(f"{path}: no row has both an input and an answer")
    kind = task.kind if task is not None else detect_task(read.examples, read.layout).kind
    _check_fits(kind, read.layout, read.file)
    log = FindingLog()
    log.merge(read.repairs)
    log.merge(read.changes)
    examples = drop_unusable(read.examples, kind, log)
    for finding in log.findings():
        if finding.kind is FindingKind.DROP:
            _LOG.warning(
                "%s: %d rows left out, %s: %s", path, finding.count, finding.what, "; ".join(finding.rows.values())
            )
    examples = canonical_examples(examples, task or make_task(kind, examples, read.layout))
    return examples if store.is_on_disk else list(examples)


def make_task(kind: TaskKind, train: Sequence[Example], layout: Layout) -> Task:
    """The task of training examples. Raises DataError when there is only one label, or an answer is not JSON."""
    labels = infer_labels(train) if kind in (TaskKind.CLASSIFICATION, TaskKind.TABULAR) else ()
    if kind is TaskKind.TABULAR and len(labels) * 3 > len(train):
        labels = ()  # a number to estimate, not one of a few values
    if len(labels) == 1:
        raise DataError(
            f"all rows of '{layout.output_column}' have the one label '{labels[0][:80]}', so there is nothing to tell "
            "apart; give data with at least two labels, or another --task"
        )
    schema = infer_answer_schema(train) if kind is TaskKind.EXTRACTION else None
    tools = shared_tools(train) if kind is TaskKind.TOOL_CALLS else ()
    return Task(kind, labels, schema, layout.input_column, layout.output_column, tools)


def _check_different(paths: Mapping[str, Path | None]) -> None:
    given = [(split, path) for split, path in paths.items() if path is not None and path.exists()]
    for place, (split, path) in enumerate(given):
        for other, second in given[place + 1 :]:
            if path.samefile(second):
                raise ConfigurationError(
                    f"{second} is given for both the {split} and the {other} split; give different files, or leave "
                    f"--{other} out to have it split off"
                )


def _detect(examples: Sequence[Example], layout: Layout, wanted: TaskKind | None, file: FileRows) -> Detection:
    if not examples:
        raise DataError(f"{file.path}: no row has both an input and an answer, so there is nothing to learn")
    detection = detect_task(examples, layout)
    if wanted is None:
        check_sure(detection, file.path)
    if wanted is None or wanted is detection.kind:
        return detection
    _check_fits(wanted, layout, file)
    reason = f"chosen by --task; detected was {detection.kind.value}, because {detection.reason}"
    return Detection(wanted, 1.0, reason, detection.kind)


def _check_fits(kind: TaskKind, layout: Layout, file: FileRows) -> None:
    if (kind is TaskKind.PLAIN_TEXT) != (layout.shape is Shape.PLAIN_TEXT):
        raise DataError(
            f"{file.path}: plain text and question-answer pairs cannot stand for each other, and the task is "
            f"{kind.value}; choose columns with --columns (only output=NAME for plain text), or another --task"
        )


def _check_same_shape(first: Layout, read: ReadFile) -> None:
    other, file = read.layout, read.file
    if (first.shape is Shape.PLAIN_TEXT) != (other.shape is Shape.PLAIN_TEXT):
        raise DataError(
            f"{file.path} is not laid out like the training file (columns there: {', '.join(first.columns) or 'none'}; "
            f"here: {', '.join(file.columns) or 'none'})"
        )


def _clean_and_split(
    found: dict[str, StoredExamples],
    kind: TaskKind,
    log: FindingLog,
    changes: ChangeLog,
    stages: _Stages,
    *,
    seed: int,
    files: Mapping[str, ReadFile],
    remove_near: bool,
    folder: Path | None,
) -> dict[str, StoredExamples]:
    stages.begin("looking for duplicates")
    train = remove_duplicates(found["train"], log)
    changes.removed(found["train"], train, "duplicate")
    given = {split: found[split] for split in ("valid", "test") if split in found}
    for split, examples in given.items():
        if not examples:
            raise DataError(f"the {split} file has no row with both an input and an answer")
        note_duplicates(examples, log)
        before, train = train, remove_leaks(train, examples, split, log)
        changes.removed(before, train, f"also in the {split} split")
    note_contradictions(train, log)
    before = train
    stages.begin("looking for near-duplicates", len(train) + sum(map(len, given.values())))
    train, alike = clean_near_duplicates(train, given, kind, log, remove=remove_near, folder=folder)
    changes.removed(before, train, "nearly the same as another row")
    if len(train) < _LEAST_EXAMPLES:
        raise DataError(
            f"only {len(train)} usable and different training examples are left of {len(found['train'])}; at least "
            f"{_LEAST_EXAMPLES} are needed to train and to check, and hundreds to get anywhere"
        )
    stages.begin("splitting", len(train))
    times = files["train"].times
    rest, valid, test = split_examples(
        train,
        kind,
        valid="valid" not in given,
        test="test" not in given,
        seed=seed,
        alike=alike,
        times=times.times[train.origins] if times is not None and len(given) < len(SPLITS) - 1 else None,
    )
    return {"train": rest, "valid": given.get("valid", valid), "test": given.get("test", test)}


def _explain_split(files: Mapping[str, ReadFile]) -> str:
    made = [split for split in ("valid", "test") if split not in files]
    if not made:
        return "given files"
    times = files["train"].times
    how = f"the latest by '{times.column}'" if times else "at random, each label or form of answer with its share"
    return f"{' and '.join(made)}: {how}; what is nearly the same stays together"


def _note_unseen_labels(task: Task, splits: Mapping[str, Sequence[Example]], log: FindingLog) -> None:
    if task.kind is not TaskKind.CLASSIFICATION:
        return
    known = set(task.labels)
    for split in ("valid", "test"):
        for example in splits[split]:
            if example.answer not in known:
                log.note_source(
                    FindingKind.UNSEEN, f"label in the {split} split that train does not have; kept", example.source
                )


def _layout_of(task: Task | None, file: FileRows) -> Layout | None:
    """The two columns that the task was read from, where nothing but them is needed to read this file."""
    if task is not None and task.kind is TaskKind.PLAIN_TEXT and task.output_column in file.columns:
        return Layout(Shape.PLAIN_TEXT, None, task.output_column, by="the task")
    if task is None or task.input_column is None or task.output_column is None:
        return None
    if task.input_column == task.output_column or not {task.input_column, task.output_column} <= set(file.columns):
        return None
    found = None
    try:
        found = find_layout(file)
    except DataError:
        # Its content says nothing, as in a file of few rows; the columns of the task do.
        return Layout(Shape.PAIR, task.input_column, task.output_column, by="the task")
    if found.shape in (Shape.PASSAGE, Shape.ALPACA, Shape.DIALOGUE, Shape.TABLE, Shape.CHOICE, Shape.FIELDS):
        return found
    return replace(found, shape=Shape.PAIR, input_column=task.input_column, output_column=task.output_column)


def _report_file(split: str, read: ReadFile) -> FileReport:
    file, layout = read.file, read.layout
    used = tuple(column for column in file.columns if column in {*layout.columns, "system", "tools"})
    ignored = tuple(column for column in file.columns if column not in used)
    return FileReport(str(file.path), split, file.format, file.encoding, read.rows, used, ignored)


def _name(path: Path, paths: Mapping[str, Path | None]) -> str:
    """A file's name, with its folder's where two files share it."""
    same = [other for other in paths.values() if other is not None and other.name == path.name]
    return path.name if len(same) == 1 else f"{path.resolve().parent.name}/{path.name}"
