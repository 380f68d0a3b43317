# SPDX-License-Identifier: Apache-2.0
"""Models in memory are scored alike by the native engine and by PyTorch, and how likely they find each example."""

import numpy as np
import pytest
import torch

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data import Example, encode_examples, train_tokenizer
from open_autoglm.engine import LLM
from open_autoglm.evaluate import (
    engine_of,
    evaluate_answers,
    evaluate_perplexity,
    measure_latency,
    nats_of_examples,
)
from open_autoglm.evaluate.engines import native_backend
from open_autoglm.models.checkpoint import quantize_in_place
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.search.space import Frame, architecture_of
from open_autoglm.task import Task, TaskKind
from open_autoglm.train.trainer import validation_loss

LABELS = ("red", "green", "blue")
EXAMPLES = [
    Example((Message(Role.USER, f"colour number {place}"), Message(Role.ASSISTANT, LABELS[place % 3])))
    for place in range(24)
]
TASK = Task(TaskKind.CLASSIFICATION, labels=LABELS)
TOKENIZER = train_tokenizer(EXAMPLES, TASK, 320)


@pytest.fixture
def model() -> GlmForCausalLM:
    frame = Frame(TOKENIZER.get_vocab_size(), 256, (0,), 0)
    made = GlmForCausalLM(architecture_of(frame, {"layers": 2, "hidden_size": 96}))
    made.initialize(torch.Generator().manual_seed(3))
    return made.eval()


def test_the_native_engine_gives_pytorchs_answers(model: GlmForCausalLM) -> None:
    found = []
    for backend in ("native", "torch"):
        with engine_of(model, TOKENIZER, TASK, threads=1, backend=backend) as llm:
            assert isinstance(llm, LLM)
            assert llm.engine.backend.name == backend
            evaluation, answers = evaluate_answers(llm, EXAMPLES, TASK, max_tokens=8)
            latency = measure_latency(llm, EXAMPLES, max_tokens=8, count=3)
            assert latency is not None
            assert latency > 0
        found.append((evaluation, answers))
    assert found[0] == found[1]
    evaluation, answers = found[0]
    assert set(answers) <= set(LABELS)
    low, high = evaluation.intervals["accuracy"]
    assert low <= evaluation.value <= high
    assert evaluation.to_dict()["intervals"]["accuracy"] == [low, high]


def test_int8_models_are_handed_over_as_they_are(model: GlmForCausalLM) -> None:
    backend = native_backend(quantize_in_place(model, "int8"), threads=1)
    assert backend is not None
    assert "int8" in backend.description


def test_other_layers_stay_with_pytorch(model: GlmForCausalLM) -> None:
    assert native_backend(quantize_in_place(model, "int4"), threads=1) is None
    with engine_of(model, TOKENIZER, TASK) as llm:
        assert llm.engine.backend.name == "torch"


def test_nats_add_up_to_the_loss_and_belong_to_their_examples(model: GlmForCausalLM) -> None:
    encoded = encode_examples(EXAMPLES, TOKENIZER, TASK, max_length=64)
    nats = nats_of_examples(model, encoded)
    assert nats.sum() == pytest.approx(validation_loss(model, encoded) * len(encoded), rel=1e-5)
    alone = [nats_of_examples(model, encode_examples([one], TOKENIZER, TASK, max_length=64))[0] for one in EXAMPLES[:4]]
    assert nats[:4] == pytest.approx(alone, rel=1e-4)
    found = evaluate_perplexity(model, TOKENIZER, EXAMPLES, Task(TaskKind.DIALOGUE), max_length=64)
    assert found.value == pytest.approx(np.exp(nats.sum() / encoded.learn.sum()), rel=1e-4)
    low, high = found.intervals["perplexity"]
    assert low < found.value < high
