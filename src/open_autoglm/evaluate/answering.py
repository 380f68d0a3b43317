# SPDX-License-Identifier: Apache-2.0
"""Answers decoded by an engine under the task's guide, and compared with references."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from open_autoglm.chat.messages import Role, ToolCall
from open_autoglm.chat.tools import read_tools
from open_autoglm.data import Example
from open_autoglm.engine.request import Request, SamplingParams
from open_autoglm.errors import DataError, RequestError
from open_autoglm.evaluate.evaluation import Evaluation, metric_of
from open_autoglm.metrics import Calls, ChosenMetric, Resampled, Samples, answer_samples, call_samples
from open_autoglm.task import Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from open_autoglm.chat.parsing import ParsedAnswer
    from open_autoglm.engine import LLM

_BATCH: Final = 64
_ANSWER_ROOM: Final = 1.25
_MOST_TURNS: Final = 256
_ENCODED: Final = 4096


def evaluate_answers(
    llm: LLM,
    examples: Sequence[Example],
    task: Task,
    *,
    max_tokens: int,
    metric: ChosenMetric | None = None,
    with_intervals: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Evaluation, list[str]]:
    """Let the engine answer every example, greedily and under the task's guide, and score the answers.

    max_tokens: of one answer. metric: the user's own, scored beside the task's. An example that the model cannot take,
    such as one longer than its context, counts as answered wrongly. on_progress: called with how many are answered.
    Returns the scores and the answers. Raises DataError when there are no examples.
    """
    if not examples:
        raise DataError("there is nothing to evaluate: the file holds no examples")
    answers: list[str] = []
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        prompts = [list(example.prompt) for example in batch]
        completions = llm.chat(prompts, temperature=0.0, max_tokens=max_tokens, on_error="return")
        answers.extend(completion.text for completion in completions)
        if on_progress is not None:
            on_progress(len(answers))
    return score_texts(task, answers, [e.answer for e in examples], metric, with_intervals=with_intervals), answers


def score_texts(
    task: Task,
    answers: Sequence[str],
    references: Sequence[str],
    metric: ChosenMetric | None = None,
    *,
    with_intervals: bool = True,
) -> Evaluation:
    """The task's metrics of answers that something gave, and the user's own beside them.

    Raises ConfigurationError when the user's metric fails.
    """
    samples: dict[str, Resampled] = dict(answer_samples(task, answers, references))
    for chosen in (metric_of(task), metric):
        own = None if chosen is None else chosen.samples(answers, references)
        if chosen is not None and own is not None:
            samples[chosen.name] = own
    return Evaluation.of(task, samples, with_intervals=with_intervals)


def measure_latency(llm: LLM, examples: Sequence[Example], *, max_tokens: int, count: int = 12) -> float | None:
    """Median milliseconds of one answer, one request at a time, over some examples; None where all are refused."""
    seconds: list[float] = []
    for example in examples[: count + 1]:
        started = time.perf_counter()
        done = llm.chat([list(example.prompt)], temperature=0.0, max_tokens=max_tokens, on_error="return")[0]
        if done.finish_reason != "error":
            seconds.append(time.perf_counter() - started)
    warm = seconds[1:] or seconds
    return statistics.median(warm) * 1000 if warm else None


def evaluate_calls(
    llm: LLM,
    examples: Sequence[Example],
    *,
    max_tokens: int,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Samples], list[dict[str, Any]]]:
    """Let the engine speak each learnt turn of the assistant, greedily, and compare what it calls (`call_samples`).

    At most 256 turns, from all over the examples. max_tokens: of one turn. on_progress: called with how many examples'
    worth is done. A turn that the model cannot take, such as one longer than its context, counts as unreadable.
    Returns the scores, and for each turn its source, input, answer and reference. Raises DataError for no turns.
    """
    turns = [(example, place) for example in examples for place in _learnt_places(example)]
    if not turns:
        raise DataError("there is nothing to evaluate: the file holds no turn of the assistant")
    turns = turns[:: -(-len(turns) // _MOST_TURNS)]
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    answers: list[ParsedAnswer | None] = []
    for start in range(0, len(turns), _BATCH):
        asked: list[Request | None] = []
        for example, place in turns[start : start + _BATCH]:
            try:
                asked.append(llm.chat_request(example.messages[:place], params, tools=read_tools(example.tools)))
            except RequestError:
                asked.append(None)
        done = iter(llm.complete([request for request in asked if request is not None]))
        answers.extend(None if request is None else next(done).answer for request in asked)
        if on_progress is not None:
            on_progress(len(answers) * len(examples) // len(turns))
    references = [example.messages[place] for example, place in turns]
    scores = call_samples([_calls_of(answer) for answer in answers], [_pairs(turn.tool_calls) for turn in references])
    rows = [
        {
            "source": example.source,
            "input": next((m.content for m in reversed(example.messages[:place]) if m.content), ""),
            "answer": "" if answer is None else answer.message.readable,
            "reference": example.messages[place].readable,
        }
        for (example, place), answer in zip(turns, answers, strict=True)
    ]
    return scores, rows


def answer_room(examples: Iterable[Example], tokenizer: Tokenizer) -> int:
    """How many tokens an answer may take: a quarter more than the longest turn of `examples`, and 8."""
    left, longest = iter(examples), 0
    while some := list(itertools.islice(left, _ENCODED)):
        texts = [text for example in some for text in said(example)]
        longest = max(longest, *(len(found.ids) for found in tokenizer.encode_batch(texts, add_special_tokens=False)))
    return int(longest * _ANSWER_ROOM) + 8


def said(example: Example) -> list[str]:
    """What the assistant says in an example, reasoning and calls and all."""
    messages = [message for message in example.messages if message.role is Role.ASSISTANT and message.learn]
    return [f"{m.reasoning}\n{m.readable}" if m.reasoning else m.readable for m in messages or example.messages[-1:]]


def _calls_of(answer: ParsedAnswer | None) -> Calls | None:
    return None if answer is None or answer.problems else _pairs(answer.tool_calls)


def _pairs(calls: Sequence[ToolCall]) -> Calls:
    return [(call.name, call.values()) for call in calls]


def _learnt_places(example: Example) -> list[int]:
    """Where the assistant speaks and is to be learnt from; something must have been said before."""
    turns = enumerate(example.messages)
    return [place for place, message in turns if place and message.role is Role.ASSISTANT and message.learn]
