# SPDX-License-Identifier: Apache-2.0
"""Which models read their input twice, and that they are served as they were trained."""

from dataclasses import replace

import pytest

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data import Example, PreparedData, encode_examples, train_tokenizer
from open_autoglm.data.read_twice import reads_twice
from open_autoglm.engine import LLM
from open_autoglm.task import Task, TaskKind
from tests.engine.tiny_bundle import make_config, make_model


def test_short_extractions_are_read_twice(snips: PreparedData) -> None:
    tokenizer = train_tokenizer(snips.train[:1500], snips.task)
    assert reads_twice(snips.train, tokenizer, snips.task, max_length=1024)
    assert not reads_twice(snips.train, tokenizer, snips.task, max_length=60)
    assert not reads_twice(snips.train, tokenizer, Task(TaskKind.CLASSIFICATION, labels=("a",)), max_length=1024)
    long = [
        replace(one, messages=(Message(Role.USER, one.messages[0].content * 9), one.messages[1]))
        for one in snips.train[:200]
    ]
    assert not reads_twice(long, tokenizer, snips.task, max_length=1024)


@pytest.mark.parametrize("twice", [False, True])
def test_prompts_are_served_as_they_were_trained(twice: bool) -> None:
    example = Example((Message(Role.USER, "play jazz"), Message(Role.ASSISTANT, '{"what": "jazz"}')), "rows:1")
    schema = {"type": "object", "properties": {"what": {"type": "string", "x-copied": True}}}
    task = Task(TaskKind.EXTRACTION, answer_schema=schema, reads_twice=twice)
    tokenizer = train_tokenizer([example] * 9, task)
    encoded = encode_examples([example], tokenizer, task, max_length=256)
    first = int(encoded.learn.argmax())  # of the answer, which begins after the assistant's token
    text = tokenizer.decode(encoded.token_ids[:first].tolist(), skip_special_tokens=False)
    assert text.count("play jazz") == 1 + twice
    assert Task.from_dict(task.to_dict()) == task
    with LLM.from_model(make_model(make_config(tokenizer)), tokenizer, task=task) as llm:
        answer = llm.chat("play jazz", max_tokens=4, temperature=0.0)
        opening = tokenizer.encode("\n", add_special_tokens=False).ids  # written for the model, as guided answers are
        assert answer.prompt_tokens == first + len(opening)
