# SPDX-License-Identifier: Apache-2.0
"""From a file of data to a bundle: the five steps, in order, as one durable pipeline.

Each step is a function in `build_steps/`; the pipeline remembers which are done, so that the same call after a crash
goes on where it was.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from open_autoglm.data.files import find_files, find_split_files
from open_autoglm.errors import BudgetError, ConfigurationError, DataError
from open_autoglm.metrics import choose_metric
from open_autoglm.models.adapter_settings import AdapterSettings
from open_autoglm.models.adapter_targets import find_targets
from open_autoglm.models.weights import open_weights
from open_autoglm.pipeline import Packet, PipelineSpecification, RetrySpecification, StageSpecification, run_pipeline
from open_autoglm.pipeline.yaml_writing import write_pipeline
from open_autoglm.plugins.registry import PluginRegistry
from open_autoglm.spelling import did_you_mean
from open_autoglm.storage import FolderLock, sha256_of_file
from open_autoglm.targets import KNOWN_TARGETS, HardwareConstraint, resolve_target
from open_autoglm.task import TaskKind

STEPS: Final[dict[str, str]] = {
    "data": "open_autoglm.build_steps.read_data:read_data",
    "search": "open_autoglm.build_steps.search_models:search_models",
    "train": "open_autoglm.build_steps.train_winner:train_winner",
    "compress": "open_autoglm.build_steps.compress_model:compress_model",
    "bundle": "open_autoglm.build_steps.write_bundle:write_model_bundle",
}
"""The five steps: each needs the one before it."""

EXECUTORS: Final = ("auto", "inline", "process", "ray")
"""Where trials run: in the search's process, in processes of their own, or on a Ray cluster."""

MINIMUM_BUDGET: Final = 40.0
DEFAULT_TOLERANCE: Final = 0.01
_LIMIT_FACTOR: Final = 3.0
_LIMIT_EXTRA_SECONDS: Final = 1800.0
_LATER_SETTINGS: Final = (
    *("mask_pii", "remove_near_duplicates", "metric", "space", "hardware_constraint", "executor", "parallel_trials"),
    *("adapter", "license", "target_profile", "sampler", "tokenizer"),
)
"""Settings that are written down only where they are given, so that a run of an older version goes on."""

_MAX_LICENSE: Final = 200
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PLAIN_NAMES: Final = ("train", "training", "data", "dataset")


@dataclass(frozen=True)
class BuildResult:
    """What a build made.

    metrics: of the final model, as `SPLIT_METRIC`. seconds: of this call; a build that was finished before takes few.
    """

    bundle: Path
    task: str
    metrics: dict[str, float]
    seconds: float
    leaderboard: Path

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "bundle": str(self.bundle), "leaderboard": str(self.leaderboard)}


@dataclass(frozen=True)
class BuildSettings:
    """A build, as asked for.

    budget: seconds for everything. trials: how many to start; chosen from the budget if None. steps: train the
    winner for exactly so many optimiser steps and look at no clock, which makes a build repeatable. mask_pii,
    remove_near_duplicates: as `data.prepare` has them. metric: decides in place of the task's own, as
    `ChosenMetric.to_dict` has it. space: a file that changes what is searched. hardware_constraint: bounds that the
    model must keep to. executor, parallel_trials: where trials run, and how many at a time; chosen if None.
    adapter: fine-tune by an adapter on the frozen `base`. tolerance: what smaller
    weights may cost. license: of the model, an SPDX expression. target_profile: of a target that a file describes, as
    `Target.to_dict` has it. sampler: a plugin that proposes trials. tokenizer: a plugin that makes it.
    """

    train: Path
    out: Path
    valid: Path | None = None
    test: Path | None = None
    task: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    base: Path | None = None
    target: str = "cpu"
    budget: float = 900.0
    trials: int | None = None
    steps: int | None = None
    seed: int = 0
    mask_pii: bool = False
    remove_near_duplicates: bool = False
    metric: dict[str, Any] | None = None
    space: Path | None = None
    hardware_constraint: dict[str, float] = field(default_factory=dict)
    executor: str | None = None
    parallel_trials: int | None = None
    adapter: AdapterSettings | None = None
    tolerance: float = DEFAULT_TOLERANCE
    license: str | None = None
    target_profile: dict[str, Any] = field(default_factory=dict)
    sampler: str | None = None
    tokenizer: str | None = None

    def to_payload(self) -> dict[str, Any]:
        """JSON-ready, as the first step reads it; paths are absolute, and files named with their SHA-256."""
        payload = asdict(self)
        payload["adapter"] = None if self.adapter is None else self.adapter.to_dict()
        for name in _LATER_SETTINGS:
            if not payload[name]:
                del payload[name]
        if self.tolerance == DEFAULT_TOLERANCE:
            del payload["tolerance"]
        for name in ("train", "valid", "test", "base", "out", "space"):
            path = getattr(self, name)
            if name in payload:
                payload[name] = None if path is None else str(path.resolve())
        payload["digests"] = {
            name: " ".join(sha256_of_file(file) for file in find_files(path))
            for name, path in (("train", self.train), ("valid", self.valid), ("test", self.test))
            if path is not None
        }
        return payload


def build(
    data: str | Path,
    *,
    out: str | Path | None = None,
    valid: str | Path | None = None,
    test: str | Path | None = None,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    base: str | Path | None = None,
    target: str | Path = "cpu",
    budget: str | float = "15m",
    trials: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    mask_pii: bool = False,
    remove_near_duplicates: bool = False,
    metric: str | None = None,
    space: str | Path | None = None,
    hardware_constraint: Mapping[str, float] | None = None,
    executor: str | None = None,
    parallel_trials: int | None = None,
    adapter: AdapterSettings | Mapping[str, Any] | str | None = None,
    tolerance: str | float = DEFAULT_TOLERANCE,
    license: str | None = None,  # noqa: A002 - the field's own word
    sampler: str | None = None,
    tokenizer: str | None = None,
) -> BuildResult:
    """Build a small GLM from a file of data.

    data: a file, or a folder with `train.*` and perhaps `valid.*` (or `dev.*`) and `test.*`. out: the run folder,
    `runs/NAME` if not given; a second call on the same folder continues there. budget: seconds, or like `15m`.
    mask_pii: train on `[EMAIL]`, `[PHONE]`, ... in place of personal data and secrets. remove_near_duplicates: take
    near-duplicates out of the training split. metric: the name of a metric, registered or ours, `FILE.yaml` of rules or
    `FILE.py:FUNCTION`. space: a YAML file that changes what is searched. hardware_constraint: `latency_ms`,
    `tokens_per_s`, `memory_mb`, `size_mb`, see `targets.HardwareConstraint`. executor: `inline`, `process` or `ray`.
    parallel_trials: at a time. sampler: a plugin that proposes what is tried, in place of TPE. tokenizer: a plugin that
    makes the tokenizer from the training split, in place of ours. target: the device that
    the model is for, one of `targets.KNOWN_TARGETS` or a YAML file; training runs here in any case, and with another
    target than `cpu` constraints are checked by estimates for it.
    adapter: `lora` or `qlora` to fine-tune the frozen `base` by an adapter, which is merged in the bundle and kept in
    the run folder; settings of it as `AdapterSettings` or its fields.
    tolerance: the share of the metric that smaller weights may cost and still be served by default, like `1%`.
    license: what the bundle says of itself, an SPDX expression.
    Raises an OpenAutoGLMError that says what to do: DataError, ConfigurationError, BudgetError, StorageError,
    RunLockedError, TrainingError, CheckpointError or PipelineError.
    """
    started = time.monotonic()
    settings = check_settings(
        data,
        out=out,
        valid=valid,
        test=test,
        task=task,
        columns=columns,
        base=base,
        target=target,
        budget=budget,
        trials=trials,
        steps=steps,
        seed=seed,
        mask_pii=mask_pii,
        remove_near_duplicates=remove_near_duplicates,
        metric=metric,
        space=space,
        hardware_constraint=hardware_constraint,
        executor=executor,
        parallel_trials=parallel_trials,
        adapter=adapter,
        tolerance=tolerance,
        license=license,
        sampler=sampler,
        tokenizer=tokenizer,
    )
    payload = settings.to_payload()
    lock = FolderLock(settings.out)
    lock.acquire()
    try:
        packet = run_pipeline(
            specify(settings, payload),
            Packet(session_id=settings.out.name, payload={"settings": payload}, metadata={}),
            folder=settings.out,
            modules=STEPS,
            lock=lock,
        )
    finally:
        lock.release()
    finished = packet.payload["bundle"]
    return BuildResult(
        bundle=settings.out / finished["folder"],
        task=finished["task"],
        metrics=finished["metrics"],
        seconds=round(time.monotonic() - started, 1),
        leaderboard=settings.out / "leaderboard.json",
    )


def specify(settings: BuildSettings, payload: Mapping[str, Any]) -> PipelineSpecification:
    """The build as a pipeline: five stages in a row, each tried twice, each under a time limit."""
    names = list(STEPS)
    limit = settings.budget * _LIMIT_FACTOR + _LIMIT_EXTRA_SECONDS
    stages = tuple(
        StageSpecification(
            stage=name,
            module=name,
            needs=tuple(names[index - 1 : index]) if index else (),
            config=dict(payload) if name == "data" else {},
            timeout_seconds=limit if settings.steps is None else None,
            retry=RetrySpecification(attempts=2, backoff_seconds=1.0, backoff_factor=2.0),
        )
        for index, name in enumerate(names)
    )
    return PipelineSpecification(name="build", stages=stages)


def as_file(settings: BuildSettings) -> str:
    """The build as a pipeline's file that `open-autoglm run` takes; the run's folder is in place of `--out`."""
    made = specify(settings, settings.to_payload())
    stages = tuple(replace(stage, module=f"build.{stage.module}") for stage in made.stages)
    return (
        "# As a pipeline: open-autoglm run FILE. Checkpoints and the bundle go into the run's folder, which\n"
        "# `open-autoglm show RUN` names.\n"
    ) + write_pipeline(PipelineSpecification(made.name, stages))


def check_settings(
    data: str | Path,
    *,
    out: str | Path | None,
    valid: str | Path | None,
    test: str | Path | None,
    task: str | None,
    columns: Mapping[str, str] | None,
    base: str | Path | None,
    target: str | Path,
    budget: str | float,
    trials: int | None,
    steps: int | None,
    seed: int,
    mask_pii: bool = False,
    remove_near_duplicates: bool = False,
    metric: str | None = None,
    space: str | Path | None = None,
    hardware_constraint: Mapping[str, float] | None = None,
    executor: str | None = None,
    parallel_trials: int | None = None,
    adapter: AdapterSettings | Mapping[str, Any] | str | None = None,
    tolerance: str | float = DEFAULT_TOLERANCE,
    license: str | None = None,  # noqa: A002 - the field's own word
    sampler: str | None = None,
    tokenizer: str | None = None,
) -> BuildSettings:
    """Everything that can be found wrong before any work. Raises ConfigurationError, DataError or BudgetError."""
    train, found_valid, found_test = find_splits(Path(data))
    seconds = parse_budget(budget)
    if steps is None and seconds < MINIMUM_BUDGET:
        raise BudgetError(
            f"a budget of {seconds:g} s is too short to train anything; --budget {MINIMUM_BUDGET:.0f}s is the least "
            "that can work, and --budget 5m gives a small model a fair chance"
        )
    counts = (("trials", trials, 1), ("steps", steps, 1), ("seed", seed, 0), ("parallel-trials", parallel_trials, 1))
    for name, value, least in counts:
        if value is not None and value < least:
            raise ConfigurationError(f"--{name} must be at least {least}, not {value}")
    if license is not None and not (license.isprintable() and 0 < len(license.strip()) <= _MAX_LICENSE):
        raise ConfigurationError("--license must be a few printable words, such as Apache-2.0 or LicenseRef-Internal")
    device = resolve_target(target)
    chosen_valid = Path(valid) if valid is not None else found_valid
    chosen_test = Path(test) if test is not None else found_test
    for flag, path in (("DATA", train), ("--valid", chosen_valid), ("--test", chosen_test)):
        if path is not None and not all(file.is_file() for file in find_files(path)):
            raise DataError(f"{flag}: there is no file {path}")
    if base is not None and not Path(base).is_dir():
        raise ConfigurationError(f"--base: {base} is not a folder; give the folder of a GLM checkpoint")
    if executor is not None and executor not in EXECUTORS:
        raise ConfigurationError(f"unknown executor '{executor}'{did_you_mean(executor, EXECUTORS)}")
    if sampler is not None:
        PluginRegistry().make("sampler", sampler)
    if tokenizer is not None:
        if base is not None:
            raise ConfigurationError(
                "--tokenizer makes a vocabulary, and --base has one already; leave out one of them"
            )
        PluginRegistry().make("tokenizer", tokenizer)
    constraint = HardwareConstraint.of(hardware_constraint or {})
    if constraint and base is not None:
        raise ConfigurationError(
            "a hardware constraint chooses the architecture, and --base has one already; leave out one of them"
        )
    if space is not None and not Path(space).is_file():
        raise ConfigurationError(f"--space: there is no file {space}")
    return BuildSettings(
        train=train,
        out=Path(out) if out is not None else Path("runs") / _run_name(train),
        valid=chosen_valid,
        test=chosen_test,
        task=TaskKind.of(task).value if task is not None else None,
        columns=dict(columns or {}),
        base=Path(base) if base is not None else None,
        target=device.name,
        target_profile={} if target in KNOWN_TARGETS else device.to_dict(),
        budget=seconds,
        trials=trials,
        steps=steps,
        seed=seed,
        mask_pii=mask_pii,
        remove_near_duplicates=remove_near_duplicates,
        metric=None if metric is None else choose_metric(metric).to_dict(),
        space=None if space is None else Path(space),
        hardware_constraint=constraint.to_dict(),
        executor=None if executor == "auto" else executor,
        parallel_trials=parallel_trials,
        adapter=_check_adapter(adapter, base),
        tolerance=parse_tolerance(tolerance),
        license=license,
        sampler=sampler,
        tokenizer=tokenizer,
    )


def _check_adapter(
    adapter: AdapterSettings | Mapping[str, Any] | str | None, base: str | Path | None
) -> AdapterSettings | None:
    if adapter is None:
        return None
    if isinstance(adapter, str):
        settings = AdapterSettings(kind=adapter)
    else:
        settings = adapter if isinstance(adapter, AdapterSettings) else AdapterSettings.from_dict(adapter)
    if base is None:
        raise ConfigurationError("--adapter needs --base: give the folder of the GLM checkpoint to fine-tune")
    with open_weights(Path(base)) as reader:
        find_targets(reader.config, settings.targets)
    if settings.kind == "soft_prompt":
        raise ConfigurationError(
            "--adapter soft_prompt: a bundle has no place for a soft prompt, for no weight holds it; use lora or qlora"
        )
    return settings


def find_splits(path: Path) -> tuple[Path, Path | None, Path | None]:
    """The training, validation and test file that a path stands for: itself, or the files of a folder by their names.

    A folder without a `train.*` is training data as a whole. Raises DataError when a split has two files.
    """
    if not path.is_dir():
        return path, None, None
    found = find_split_files(path)
    if not found:
        return path, None, None
    return found["train"], found.get("valid"), found.get("test")


def parse_budget(budget: str | float) -> float:
    """`900`, `"900"`, `"15m"`, `"1h30m"` -> seconds. Raises ConfigurationError for anything else."""
    if isinstance(budget, int | float):
        seconds = float(budget)
    else:
        text = budget.strip().lower()
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        elif re.fullmatch(r"\d+(\.\d+)?", text):
            seconds = float(text)
        else:
            raise ConfigurationError(f"--budget '{budget}' is not a time; write it like 90s, 15m or 1h30m")
    if not 0 < seconds < 1e7:
        raise ConfigurationError(f"--budget must be more than zero and less than 115 days, not {budget}")
    return seconds


def parse_tolerance(tolerance: str | float) -> float:
    """`0.01`, `"0.01"`, `"1%"` -> a share. Raises ConfigurationError for anything but 0 to 100%."""
    text = str(tolerance).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = float("nan")
    if not 0 <= share <= 1:
        raise ConfigurationError(f"--tolerance '{tolerance}' is not a share; write it like 1% or 0.01")
    return share


def _run_name(train: Path) -> str:
    stem = train.name.partition(".")[0] or "data"
    name = train.resolve().parent.name if stem.lower() in _PLAIN_NAMES else stem
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"
