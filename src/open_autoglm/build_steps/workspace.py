# SPDX-License-Identifier: Apache-2.0
"""What every step of a build needs of the run: data, tokens, tokenizer, and how to score a model."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer

from open_autoglm.chat.template import END_OF_TEXT, stop_token_ids
from open_autoglm.data import (
    Example,
    PreparedData,
    TokenizedExamples,
    encode_examples,
    spaced_twins,
    swap_slot_values,
    values_by_key,
)
from open_autoglm.data.bpe_dropout import Merges
from open_autoglm.data.field_tags import FieldTagger
from open_autoglm.data.word_dropout import drop_words
from open_autoglm.engine import LLM
from open_autoglm.evaluate import (
    Evaluation,
    engine_of,
    evaluate_answers,
    evaluate_calls,
    evaluate_perplexity,
    measure_latency,
    with_metric,
)
from open_autoglm.metrics import ChosenMetric
from open_autoglm.models.adapter_settings import AdapterSettings
from open_autoglm.models.adapters import attach_adapter
from open_autoglm.models.checkpoint import load_config, load_model
from open_autoglm.models.copying_initialization import share_embeddings
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.pipeline import Packet, StageContext
from open_autoglm.progress import ProgressBar
from open_autoglm.search.space import Candidate, Frame, SearchSpace, default_space
from open_autoglm.search.space_file import apply_space_file
from open_autoglm.task import METRICS, Task, TaskKind
from open_autoglm.train.augmented import AugmentedExamples, OtherPieces, TaggedExamples
from open_autoglm.train.optimizers import output_gain
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.trainer import ExampleSource, FixedExamples

_MIN_CONTEXT: Final = 512
_VOCABULARY_MULTIPLE: Final = 32
_RUNG_EXAMPLES: Final = 256
_RUNG_TOKENS: Final = 24_576
"""At which the examples for the validation loss end, long ones being few: it is computed about twenty times a build."""
_LEAST_RUNG_EXAMPLES: Final = 16
_TIMED_EXAMPLES: Final = 9
_LOOKED_AT: Final = 1_000_000
"""Tokens by which it is told how long prompts are beside answers."""
_MOST_PROMPT_WEIGHT: Final = 0.3
_EXTRACTION_PROMPT_WEIGHT: Final = 0.1
_FIELD_TAG_WEIGHT: Final = 0.5
SCORE_EXAMPLES: Final = 1000
"""Validation examples that decide between finished models."""


class Workspace:
    """What every step after the first needs of the run: data, tokens, tokenizer, and how to score a model."""

    def __init__(self, packet: Packet, context: StageContext) -> None:
        self._open(context.folder, packet.payload)

    @classmethod
    def at(cls, folder: Path, payload: Mapping[str, Any]) -> Workspace:
        """The workspace of a run folder, for processes that a step starts. payload: of the step's packet."""
        self = cls.__new__(cls)
        self._open(folder, payload)
        return self

    def _open(self, run_folder: Path, payload: Mapping[str, Any]) -> None:
        folder = run_folder / "data"
        self.folder = run_folder
        self.settings = payload["settings"]
        self.summary = payload["data"]
        self.metric = _metric_of(self.settings)
        self.prepared = PreparedData.load(folder)
        if self.metric is not None:
            self.prepared = replace(self.prepared, task=with_metric(self.prepared.task, self.metric))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.train = TokenizedExamples.load(folder / "train.tokens")
        self.mean_length = float(self.train.lengths.mean())
        looked_at = encode_examples(
            self.prepared.valid[:_RUNG_EXAMPLES],
            self.tokenizer,
            self.task,
            max_length=self.summary["max_length"],
        )
        within = int(np.searchsorted(looked_at.offsets, _RUNG_TOKENS, "right")) - 1
        self.rung_valid = looked_at.first(min(len(looked_at), max(within, _LEAST_RUNG_EXAMPLES)))
        self.base = optional_path(self.settings["base"])

    @property
    def task(self) -> Task:
        """What the data asks of a model, decided by the metric that the user chose."""
        return self.prepared.task

    def space(self, kept: Path | None = None) -> SearchSpace:
        """What may be searched here. kept: the file in which a search that was begun wrote its space down."""
        size = self.tokenizer.get_vocab_size()
        frame = Frame(
            vocab_size=-(-size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE,
            max_position_embeddings=max(_MIN_CONTEXT, _power_of_two(2 * self.summary["longest"])),
            eos_token_ids=stop_token_ids(self.tokenizer),
            pad_token_id=self.tokenizer.token_to_id(END_OF_TEXT) or 0,
        )
        base = load_config(self.base) if self.base is not None else None
        asked_adapter = self.settings.get("adapter")
        training = TrainingSettings(
            adapter=None if asked_adapter is None else AdapterSettings.from_dict(asked_adapter),
            prompt_loss_weight=self._prompt_weight(),
            field_tag_weight=_FIELD_TAG_WEIGHT if self.base is None and self._has_fields else 0.0,
        )
        space = default_space(self.task.kind, frame, seed=self.settings["seed"], base=base, training=training)
        asked = optional_path(self.settings.get("space"))
        file = kept if kept is not None and kept.exists() else asked
        return space if file is None else apply_space_file(space, file)

    def make_model(self, candidate: Candidate) -> GlmForCausalLM:
        """A model to train: from nothing, or the base checkpoint, with an adapter where one was asked for."""
        settings = candidate.settings
        generator = torch.Generator().manual_seed(settings.seed)
        if self.base is None:
            model = GlmForCausalLM(candidate.config)
            gain = output_gain(settings.width_transfer, candidate.config.hidden_size)
            model.initialize(generator, settings.initialization, output_gain=gain)
            if settings.initialization == "copying":
                share_embeddings(model, spaced_twins(self.tokenizer), generator)
            if settings.field_tag_weight and self._has_fields:
                model.attach_tag_head(self._field_tagger.count, generator)
            return model
        adapter = self.adapter_of(settings)
        bits = adapter.base_bits if adapter is not None and adapter.kind == "qlora" else None
        model = load_model(self.base, frozen_bits=bits)
        model.set_dropout(candidate.config.dropout)
        if adapter is not None:
            attach_adapter(model, adapter, generator)
        return model

    def adapter_of(self, settings: TrainingSettings) -> AdapterSettings | None:
        """The adapter that the settings name, or else the one that the user asked for."""
        if settings.adapter is not None:
            return settings.adapter
        asked = self.settings.get("adapter")
        return None if asked is None else AdapterSettings.from_dict(asked)

    def make_source(self, settings: TrainingSettings) -> ExampleSource:
        """The training examples, changed each epoch where the settings and the task ask for it."""
        source = self._make_source(settings)
        if settings.bpe_dropout:
            merges = Merges.of(self.tokenizer)
            source = OtherPieces(source, merges, settings.bpe_dropout, settings.seed, self.summary["max_length"])
        if settings.field_tag_weight and self._has_fields:
            source = TaggedExamples(source, self._field_tagger)
        return source

    def _make_source(self, settings: TrainingSettings) -> ExampleSource:
        match self.task.kind if settings.augmentation else None:
            case TaskKind.EXTRACTION:
                values = values_by_key(self.prepared.train)

                def change(example: Example, generator: random.Random) -> Example:
                    return swap_slot_values(example, values, generator)

            case TaskKind.CLASSIFICATION:
                change = drop_words
            case _:
                return FixedExamples(self.train)
        return AugmentedExamples(
            self.prepared.train,
            change,
            self.task,
            self.tokenizer,
            settings.augmentation,
            settings.seed,
            self.summary["max_length"],
        )

    def score(
        self,
        model: GlmForCausalLM,
        examples: Sequence[Example],
        *,
        title: str | None = None,
        with_intervals: bool = True,
        threads: int | None = None,
    ) -> Evaluation:
        """The task's metrics of a model, decoded by the engine; with a progress bar when `title` is given.

        For tools the metric is perplexity, by which trials can be told apart early; with a title, as for the test
        split, what the model calls is scored beside it. with_intervals: also say how sure each metric is.
        """
        model.eval()
        evaluation: Evaluation | None = None
        if self._is_likelihood:
            evaluation = evaluate_perplexity(
                model,
                self.tokenizer,
                examples,
                self.task,
                max_length=self.summary["max_length"],
                with_intervals=with_intervals,
            )
            if self.task.kind is not TaskKind.TOOL_CALLS or title is None:
                return evaluation
        shown: AbstractContextManager[Any] = ProgressBar(title, len(examples)) if title else nullcontext()
        with shown as bar, engine_of(model, self.tokenizer, self.task, threads=threads) as llm:
            on_progress: Callable[[int], None] | None = bar.update if bar is not None else None
            room = self.summary["answer_room"]
            if evaluation is not None:
                samples, _ = evaluate_calls(llm, examples, max_tokens=room, on_progress=on_progress)
                return evaluation.with_others(samples)
            return evaluate_answers(
                llm,
                examples,
                self.task,
                max_tokens=room,
                metric=self.metric,
                with_intervals=with_intervals,
                on_progress=on_progress,
            )[0]

    def latency(self, model: GlmForCausalLM, *, threads: int | None = None) -> float | None:
        """Median milliseconds of one answer alone on the engine, over some validation examples."""
        model.eval()
        with engine_of(model, self.tokenizer, self.task, threads=threads) as llm:
            return self._latency_of(llm)

    def latency_of_bundle(self, folder: Path) -> float | None:
        """The same of a bundle, opened as its users will open it."""
        with LLM(folder) as llm:
            return self._latency_of(llm)

    def _latency_of(self, llm: LLM) -> float | None:
        return measure_latency(llm, self.prepared.valid[:_TIMED_EXAMPLES], max_tokens=self.summary["answer_room"])

    def _prompt_weight(self) -> float:
        """What a token of a prompt counts in training.

        For a classification, all of them as much as the label, which says little about the words before it: guessing
        these too teaches what they have to do with each other. For an extraction from short inputs a little: names of
        towns are told from names of songs by what they stand beside.
        """
        if self.base is not None:
            return 0.0
        if self._has_fields:
            return _EXTRACTION_PROMPT_WEIGHT
        if self.task.kind is not TaskKind.CLASSIFICATION:
            return 0.0
        share = float(self.train.learn[:_LOOKED_AT].mean())
        return round(min(_MOST_PROMPT_WEIGHT, share / (1.0 - share)), 4)

    @property
    def _has_fields(self) -> bool:
        """Whether words of the inputs can be told by the field that they are copied to."""
        return self.task.kind is TaskKind.EXTRACTION and self.task.reads_twice

    @cached_property
    def _field_tagger(self) -> FieldTagger:
        return FieldTagger(self.tokenizer, self.train)

    @property
    def _is_likelihood(self) -> bool:
        return METRICS[self.task.kind] == "perplexity"


def with_result(packet: Packet, step: str, result: dict[str, Any]) -> Packet:
    """The packet with what a step found under the step's name."""
    return Packet(packet.session_id, {**packet.payload, step: json.loads(json.dumps(result))}, packet.metadata)


def since_process_start() -> float:
    """Seconds since the system started this process, most of which go into loading libraries; 0 where that is unknown.

    Steps count them as their own, since no budget is kept that leaves them out.
    """
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, up - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0


def optional_path(value: str | None) -> Path | None:
    """A path, or nothing."""
    return None if value is None else Path(value)


def use_threads(threads: int | None) -> None:
    """Let PyTorch use so many threads in this process; its own choice for None."""
    if threads is not None:
        torch.set_num_threads(threads)


def say(text: str) -> None:
    """A line on stderr."""
    ProgressBar("", 1).say(text)


def _metric_of(settings: Mapping[str, Any]) -> ChosenMetric | None:
    chosen = settings.get("metric")
    return None if chosen is None else ChosenMetric.from_dict(chosen)


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()
