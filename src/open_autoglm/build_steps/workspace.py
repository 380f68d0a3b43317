# SPDX-License-Identifier: Apache-2.0
"""What every step of a build needs of the run: data, tokens, tokenizer, and how to score a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer

from open_autoglm.chat.template import END_OF_TEXT, stop_token_ids
from open_autoglm.data import Example, PreparedData, TokenizedExamples, encode_examples, values_by_key
from open_autoglm.engine import LLM
from open_autoglm.evaluate import Evaluation, evaluate_answers, evaluate_calls, evaluate_perplexity
from open_autoglm.models.adapter_settings import AdapterSettings
from open_autoglm.models.adapters import attach_adapter
from open_autoglm.models.checkpoint import load_config, load_model
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.pipeline import Packet, StageContext
from open_autoglm.progress import ProgressBar
from open_autoglm.search.space import Candidate, SearchSpace
from open_autoglm.task import TaskKind
from open_autoglm.train.augmented import AugmentedExamples
from open_autoglm.train.optimizers import output_gain
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.trainer import ExampleSource, FixedExamples

_MIN_CONTEXT: Final = 512
_VOCABULARY_MULTIPLE: Final = 32
_RUNG_EXAMPLES: Final = 256
SCORE_EXAMPLES: Final = 1000
"""Validation examples that decide between finished models."""

STEP_START_SECONDS: Final = 4.0
"""What it takes until a step's process has loaded its libraries, which no step can measure of itself."""


class Workspace:
    """What every step after the first needs of the run: data, tokens, tokenizer, and how to score a model."""

    def __init__(self, packet: Packet, context: StageContext) -> None:
        folder = context.folder / "data"
        self.settings = packet.payload["settings"]
        self.summary = packet.payload["data"]
        self.prepared = PreparedData.load(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.train = TokenizedExamples.load(folder / "train.tokens")
        self.mean_length = float(self.train.lengths.mean())
        self.rung_valid = encode_examples(
            self.prepared.valid[:_RUNG_EXAMPLES],
            self.tokenizer,
            self.prepared.task,
            max_length=self.summary["max_length"],
        )
        self.base = optional_path(self.settings["base"])

    def space(self) -> SearchSpace:
        """What may be searched here."""
        size = self.tokenizer.get_vocab_size()
        context = max(_MIN_CONTEXT, _power_of_two(2 * self.summary["longest"]))
        return SearchSpace(
            task=self.prepared.task,
            vocab_size=-(-size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE,
            max_position_embeddings=context,
            eos_token_ids=stop_token_ids(self.tokenizer),
            pad_token_id=self.tokenizer.token_to_id(END_OF_TEXT) or 0,
            seed=self.settings["seed"],
            base=load_config(self.base) if self.base is not None else None,
        )

    def make_model(self, candidate: Candidate) -> GlmForCausalLM:
        """A model to train: from nothing, or the base checkpoint, with an adapter where one was asked for."""
        settings = candidate.settings
        generator = torch.Generator().manual_seed(settings.seed)
        if self.base is None:
            model = GlmForCausalLM(candidate.config)
            gain = output_gain(settings.width_transfer, candidate.config.hidden_size)
            model.initialize(generator, settings.initialization, output_gain=gain)
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
        """The training examples, with slot values swapped where the settings ask for it."""
        if settings.augmentation == 0:
            return FixedExamples(self.train)
        return AugmentedExamples(
            self.prepared.train,
            values_by_key(self.prepared.train),
            self.prepared.task,
            self.tokenizer,
            settings.augmentation,
            settings.seed,
            self.summary["max_length"],
        )

    def score(self, model: GlmForCausalLM, examples: Sequence[Example], *, title: str | None = None) -> Evaluation:
        """The task's metric of a model, decoded by the engine; with a progress bar when `title` is given.

        For tools the metric is perplexity, by which trials can be told apart early; with a title, as for the test
        split, what the model calls is scored beside it.
        """
        model.eval()
        task = self.prepared.task
        evaluation: Evaluation | None = None
        if task.metric == "perplexity":
            evaluation = evaluate_perplexity(
                model, self.tokenizer, examples, task, max_length=self.summary["max_length"]
            )
            if task.kind is not TaskKind.TOOL_CALLS or title is None:
                return evaluation
        shown: AbstractContextManager[Any] = ProgressBar(title, len(examples)) if title else nullcontext()
        with shown as bar, LLM.from_model(model, self.tokenizer, task=task) as llm:
            on_progress: Callable[[int], None] | None = bar.update if bar is not None else None
            room = self.summary["answer_room"]
            if evaluation is not None:
                scores, _ = evaluate_calls(llm, examples, max_tokens=room, on_progress=on_progress)
                return replace(evaluation, metrics={**evaluation.metrics, **scores})
            return evaluate_answers(llm, examples, task, max_tokens=room, on_progress=on_progress)[0]


def with_result(packet: Packet, step: str, result: dict[str, Any]) -> Packet:
    """The packet with what a step found under the step's name."""
    return Packet(packet.session_id, {**packet.payload, step: json.loads(json.dumps(result))}, packet.metadata)


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


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()
