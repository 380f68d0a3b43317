# SPDX-License-Identifier: Apache-2.0
"""Fixtures: one tokenizer, one model and one bundle for the whole session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from open_autoglm.engine import LLM
from open_autoglm.models.glm import GlmForCausalLM
from tests.engine.tiny_bundle import EXTRACTION, make_bundle, make_config, make_model, make_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> GlmForCausalLM:
    return make_model(make_config(tokenizer))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def llm(model: GlmForCausalLM, tokenizer: Tokenizer) -> Iterator[LLM]:
    with LLM.from_model(model, tokenizer, task=EXTRACTION) as opened:
        yield opened
