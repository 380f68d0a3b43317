# SPDX-License-Identifier: Apache-2.0
"""A student that learns from teachers on a data file, by the trainer of builds, and leaves a model of its own."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer

from open_autoglm.bundle import open_bundle
from open_autoglm.bundle.lineage import describe_parent
from open_autoglm.chat.detection import built_format, detect_format
from open_autoglm.chat.tokenizer_files import load_tokenizer
from open_autoglm.compress.derived_model import is_bundle
from open_autoglm.compress.distil_result import DISTILLATION_FILE, MODEL_FOLDERS, Learnt, write_student
from open_autoglm.compress.distil_settings import DistilSettings
from open_autoglm.compress.fake_quantization import fake_quantize
from open_autoglm.compress.int4_file import int4_plan
from open_autoglm.compress.layer_packing import PackingPlan, make_plan
from open_autoglm.compress.settings import QuantizationSettings
from open_autoglm.compress.students import loaded_student, new_student
from open_autoglm.data import TokenizedExamples, encode_examples, prepare
from open_autoglm.errors import CheckpointError, ConfigurationError, DataError
from open_autoglm.models.checkpoint import load_model
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.models.model_folder import load_config
from open_autoglm.storage import FolderLock, explained, read_json, write_json
from open_autoglm.task import Task
from open_autoglm.train.batches import plan_epoch
from open_autoglm.train.checkpoint import Progress
from open_autoglm.train.distillation import (
    Distillation,
    DistillationSettings,
    attach_projection,
    detach_projection,
    matching_layers,
)
from open_autoglm.train.loss import validation_loss
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.teachers import TeacherModels, cache_targets
from open_autoglm.train.trainer import FixedExamples, Schedule, Trainer

_SETTINGS_FILE: Final = "distil.json"
_EVALUATIONS: Final = 10
_WARM_UP: Final = 0.05

OnProgress = Callable[[str, int, int], None]
"""Called with what is done at the moment, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class DistilOutcome:
    """folder: of the student's bundle or checkpoint. report: the content of its `distillation.json`."""

    folder: Path
    report: dict[str, Any]


def distil(
    teachers: Sequence[Path],
    data: Path,
    out: Path,
    settings: DistilSettings,
    *,
    valid: Path | None = None,
    test: Path | None = None,
    columns: Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
) -> DistilOutcome:
    """Train a student on the data and on what the teachers say of it.

    teachers: folders of models with one tokenizer; of several, the mean of their probabilities is taught. The first one
    gives task, tokenizer and chat format. valid, test, columns: as `prepare` takes them. out: the folder of the run;
    the student is in its `bundle/` when the first teacher is a bundle, else in `model/`. The same call again goes on
    where it was killed.
    Raises ConfigurationError for settings that do not fit and for an `out` of another run, CheckpointError or
    BundleError for the models, DataError for the data, TrainingError when training cannot go on, RunLockedError when
    another process works on `out`.
    """
    started = time.monotonic()
    tokenizer = _shared_tokenizer(teachers)
    learning = DistillationSettings(settings.share, settings.temperature, settings.hidden)
    if learning.hidden and len(teachers) > 1:
        raise ConfigurationError("--hidden compares with one teacher's hidden states; give one teacher with it")
    folder = out / MODEL_FOLDERS[is_bundle(teachers[0])]
    given = Path(settings.student) if settings.student is not None and Path(settings.student).is_dir() else None
    student_folder = given or (teachers[0] if settings.qat and settings.student is None else None)
    state = _state_of([*teachers, *([given] if given else [])], data, valid, test, settings)
    with FolderLock(out):
        _check_run(out, state)
        if (folder / DISTILLATION_FILE).is_file():
            return DistilOutcome(folder, read_json(folder / DISTILLATION_FILE))
        examples = _read_data(teachers[0], tokenizer, data, valid, test, columns, settings)
        models = [load_model(teacher).requires_grad_(False) for teacher in teachers]
        student = _make_student(models[0], student_folder, settings)
        _check_vocabulary(student, tokenizer, student_folder)
        write_json(out / _SETTINGS_FILE, state)  # from here on the folder is this run's
        plan = _packing_plan(student, settings, is_bundle(teachers[0]))
        if plan is not None:
            fake_quantize(student, plan, tables=settings.layout is None and is_bundle(teachers[0]))
        objective = _objective(models, student, learning, tokenizer, examples, out, state, settings, on_progress)
        trainer = _train(student, examples, objective, out / "train", settings, student_folder is None, on_progress)
        detach_projection(student)
        learnt = Learnt(
            student,
            plan,
            progress=trainer.progress,
            losses={
                "valid": validation_loss(student.eval(), examples.valid),
                "teacher_valid": validation_loss(models[0], examples.valid),
                **({"test": validation_loss(student, examples.test)} if len(examples.test) else {}),
                **({"teacher_test": validation_loss(models[0], examples.test)} if len(examples.test) else {}),
            },
            data_sha256=examples.digest,
        )
        parents = [*teachers, *([given] if given else [])]
        seconds = round(time.monotonic() - started, 2)
        report = write_student(learnt, folder, parents, settings, seconds, is_bundle=is_bundle(teachers[0]))
        shutil.rmtree(out / "teacher", ignore_errors=True)
    return DistilOutcome(folder, report)


@dataclass(frozen=True)
class _Examples:
    """The data in the teachers' tokens. digest: of the examples before that."""

    train: TokenizedExamples
    valid: TokenizedExamples
    test: TokenizedExamples
    digest: str


def _shared_tokenizer(teachers: Sequence[Path]) -> Tokenizer:
    """The tokenizer of all teachers. Raises CheckpointError, naming the two whose tokens differ."""
    if not teachers:
        raise ConfigurationError("there is no teacher; name the folder of a model")
    first = load_tokenizer(teachers[0])
    for other in teachers[1:]:
        if _meaning(load_tokenizer(other)) != _meaning(first):
            raise CheckpointError(
                f"{other} has another tokenizer than {teachers[0]}; teachers of one student must share theirs"
            )
    return first


def _meaning(tokenizer: Tokenizer) -> dict[str, Any]:
    """What decides the tokens of a text."""
    said = json.loads(tokenizer.to_str())
    return {key: value for key, value in said.items() if key not in ("padding", "truncation", "version")}


def _state_of(
    models: Sequence[Path], data: Path, valid: Path | None, test: Path | None, settings: DistilSettings
) -> dict[str, Any]:
    files: list[list[Any]] = []
    for path in (data, valid, test):
        if path is not None:
            with explained(path, "read"):
                found = path.stat()
            files.append([str(path.resolve()), found.st_size, found.st_mtime_ns])
    return {
        "models": [describe_parent(model).sha256 for model in models],
        "data": files,
        "settings": settings.to_dict(),
    }


def _check_run(out: Path, state: dict[str, Any]) -> None:
    """A run that was begun with the same goes on; anything else is left alone."""
    known = out / _SETTINGS_FILE
    if known.is_file():
        if read_json(known) != state:
            raise ConfigurationError(f"--out {out} holds a distillation with other settings; choose another folder")
        return
    if any(not item.name.startswith(".") for item in out.iterdir()):
        raise ConfigurationError(f"--out {out} holds something already; choose a new folder")


def _read_data(  # noqa: PLR0917
    teacher: Path,
    tokenizer: Tokenizer,
    data: Path,
    valid: Path | None,
    test: Path | None,
    columns: Mapping[str, str] | None,
    settings: DistilSettings,
) -> _Examples:
    task: Task | None = open_bundle(teacher).task if is_bundle(teacher) else None
    kind = None if task is None else task.kind.value
    prepared = prepare(data, valid=valid, test=test, task=kind, columns=columns, seed=settings.seed)
    if task is not None and task.labels is not None:
        unknown = sorted(set(prepared.task.labels or ()) - set(task.labels))
        if unknown:
            raise DataError(f"{data} has the label '{unknown[0]}', which {teacher} was not built for")
    chat_format = built_format(task) if task is not None else detect_format(teacher, tokenizer)
    longest = min(settings.max_length, load_config(teacher).max_position_embeddings)
    parts = [
        encode_examples(split, tokenizer, task or prepared.task, max_length=longest, chat_format=chat_format)
        for split in (prepared.train, prepared.valid, prepared.test or ())
    ]
    return _Examples(parts[0], parts[1], parts[2], prepared.digest())


def _make_student(teacher: GlmForCausalLM, folder: Path | None, settings: DistilSettings) -> GlmForCausalLM:
    if folder is not None:
        return loaded_student(folder)
    return new_student(teacher.config, settings.student, settings.seed)


def _check_vocabulary(student: GlmForCausalLM, tokenizer: Tokenizer, folder: Path | None) -> None:
    if student.config.vocab_size < tokenizer.get_vocab_size():
        raise CheckpointError(
            f"{folder} has {student.config.vocab_size} tokens, fewer than the teacher's {tokenizer.get_vocab_size()}; "
            "a student must share its teacher's tokenizer"
        )
    if folder is not None and _meaning(load_tokenizer(folder)) != _meaning(tokenizer):
        raise CheckpointError(f"{folder} has another tokenizer than its teacher; a student must share it")


def _packing_plan(student: GlmForCausalLM, settings: DistilSettings, to_bundle: bool) -> PackingPlan | None:
    if not settings.qat:
        return None
    layout: Any = settings.layout or "awq"
    symmetric = layout == "compressed-tensors"
    wanted = QuantizationSettings("rtn", 4, settings.group_size, symmetric, layout)
    if settings.layout is None and to_bundle:
        return int4_plan(student.config, wanted)
    return make_plan(wanted, student.config, "float32")


def _objective(  # noqa: PLR0917
    models: list[GlmForCausalLM],
    student: GlmForCausalLM,
    learning: DistillationSettings,
    tokenizer: Tokenizer,
    examples: _Examples,
    out: Path,
    state: dict[str, Any],
    settings: DistilSettings,
    on_progress: OnProgress | None,
) -> Distillation:
    vocabulary = tokenizer.get_vocab_size()
    mine: list[int] = []
    theirs: list[int] = []
    if learning.hidden:
        mine, theirs = matching_layers(student.config.num_hidden_layers, models[0].config.num_hidden_layers)
        generator = torch.Generator().manual_seed(settings.seed)
        attach_projection(student, models[0].config.hidden_size, generator)
    teacher: Any = TeacherModels(models, learning.temperature, vocabulary, theirs)
    if settings.cache_top:
        digest = hashlib.sha256(json.dumps([state, examples.digest], sort_keys=True).encode()).hexdigest()
        teacher = cache_targets(
            teacher,
            examples.train,
            out / "teacher",
            top=min(settings.cache_top, vocabulary),
            state=digest,
            on_progress=None if on_progress is None else lambda done, total: on_progress("asking", done, total),
        )
    return Distillation(teacher, learning, vocabulary, mine)


def _train(  # noqa: PLR0917
    student: GlmForCausalLM,
    examples: _Examples,
    objective: Distillation,
    folder: Path,
    settings: DistilSettings,
    is_new: bool,
    on_progress: OnProgress | None,
) -> Trainer:
    tokens = settings.tokens_per_batch
    per_epoch = len(plan_epoch(examples.train.lengths, tokens, seed=settings.seed, epoch=0))
    steps = settings.steps or max(1, math.ceil(settings.epochs * per_epoch))
    training = TrainingSettings(
        learning_rate=settings.rate(is_new=is_new),
        tokens_per_batch=tokens,
        warmup_steps=max(1, round(_WARM_UP * steps)),
        dropout=0.0,
        weight_decay=0.1 if is_new else 0.0,
        seed=settings.seed,
    )
    trainer = Trainer(student, training, FixedExamples(examples.train), examples.valid, folder, objective=objective)
    every = max(1, steps // _EVALUATIONS)
    schedule = Schedule(steps, decay_from=0, evaluate_every=every, checkpoint_every=every)

    def tell(progress: Progress, loss: float) -> None:
        del loss
        if on_progress is not None:
            on_progress("training", progress.step, steps)

    trainer.run(schedule, tell)
    trainer.load_best()
    trainer.curves.close()
    return trainer
