# SPDX-License-Identifier: Apache-2.0
"""The space of a data set, and the user's file that changes it."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_autoglm.errors import ConfigurationError
from open_autoglm.models.config import ModelConfig
from open_autoglm.search.space import ARCHITECTURE, Frame, SearchSpace, architecture_of, default_space
from open_autoglm.search.space_file import apply_space_file
from open_autoglm.task import TaskKind

FRAME = Frame(vocab_size=64, max_position_embeddings=128, eos_token_ids=(0,), pad_token_id=0)


def make_space(base: ModelConfig | None = None, kind: TaskKind = TaskKind.EXTRACTION) -> SearchSpace:
    return default_space(kind, FRAME, seed=5, base=base)


@given(st.integers(0, 2**32 - 1))
def test_every_proposal_is_a_model_that_can_be_built(seed: int) -> None:
    space = make_space()
    values = space.parameters.draw(np.random.default_rng(seed))
    found = space.candidate(values)
    assert found.config.hidden_size == values["hidden_size"]
    assert found.config.num_hidden_layers == values["layers"]
    assert found.config.num_attention_heads % found.config.num_key_value_heads == 0
    assert found.settings.learning_rate == pytest.approx(values["learning_rate"])
    assert found.settings.seed == 5
    assert found.config.dropout == found.settings.dropout == values["dropout"]


def test_the_first_trial_is_inside_the_space_and_a_base_keeps_its_architecture() -> None:
    for kind in (TaskKind.EXTRACTION, TaskKind.CLASSIFICATION, TaskKind.SUMMARISATION):
        space = make_space(kind=kind)
        assert space.parameters.check(space.defaults) == space.defaults
        assert (space.candidate(space.defaults).settings.augmentation > 0) == (kind is not TaskKind.SUMMARISATION)
    base = ModelConfig(64, 64, 96, 2, 2, 2, 32, architecture="Glm4ForCausalLM")
    space = make_space(base)
    found = space.candidate(space.defaults)
    assert found.config == base
    assert found.settings.learning_rate < 1e-4
    assert not {parameter.name for parameter in ARCHITECTURE} & set(space.parameters.names)


def test_a_front_takes_the_place_of_the_architecture() -> None:
    front = tuple(architecture_of(FRAME, {"layers": layers}) for layers in (2, 4))
    space = make_space().with_front(front)
    assert space.parameters.names[0] == "front"
    assert "layers" not in space.parameters.names
    assert space.candidate(space.defaults).config.num_hidden_layers == 2
    assert space.candidate({**space.defaults, "front": 1}).config.num_hidden_layers == 4
    alone = make_space().with_front(front[1:])
    assert alone.candidate(alone.defaults).config.num_hidden_layers == 4


def test_what_is_printed_can_be_given_back(tmp_path: Path) -> None:
    space = make_space()
    file = tmp_path / "space.yaml"
    file.write_text(json.dumps(space.to_dict()))
    again = apply_space_file(space, file)
    assert again.parameters == space.parameters
    assert again.defaults == space.defaults


def test_a_file_replaces_adds_and_fixes(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        """
parameters:
  learning_rate: {log_uniform: [1e-4, 1e-3], default: 5e-4}
  layers: {integer: [4, 8], step: 2}
  gradient_clip: {categorical: [0.5, 1.0]}
  architecture: Glm4ForCausalLM
  warmup_steps: {integer: [10, 50], step: 10, when: {layers: [4, 6]}}
  weight_decay: 1e-2
"""
    )
    space = apply_space_file(make_space(), file)
    found = space.candidate(space.defaults)
    assert found.config.architecture == "Glm4ForCausalLM"
    assert found.config.num_hidden_layers == 4  # the nearest to the usual 3
    assert found.settings.learning_rate == 5e-4
    assert found.settings.weight_decay == 0.01
    assert found.settings.gradient_clip == 1.0
    deep = space.candidate({**space.defaults, "layers": 8})
    assert deep.settings.warmup_steps == 60  # does not apply: as the settings have it
    assert "architecture" not in space.parameters.names
    assert space.to_dict()["parameters"]["architecture"] == "Glm4ForCausalLM"


FAULTS = {
    "learning_rate: {log_uniform: [1e-4, 1e-3]}": (1, "this must be 'parameters:'"),
    "parameters:\n  learning_rat: 0.1": (2, "did you mean 'learning_rate'"),
    "parameters:\n  dropout:\n    uniform: [0.2, 0.1]": (2, "must be less than"),
    "parameters:\n  dropout:\n    uniform: [0.1]": (3, "two numbers"),
    "parameters:\n  dropout:\n    uniform: [0.1, many]": (3, "'many' is not a number"),
    "parameters:\n  dropout: {unifrom: [0.1, 0.2]}": (2, "did you mean 'uniform'"),
    "parameters:\n  dropout: {step: 0.1}": (2, "exactly one of"),
    "parameters:\n  layers: {integer: [2, 5], step: 2}": (2, "do not lead"),
    "parameters:\n  layers: {integer: [2, 5], default: 9}": (2, "between 2 and 5"),
    "parameters:\n  layers: three": (2, "must be a whole number"),
    "parameters:\n  tie_word_embeddings: 3": (2, "must be true or false"),
    "parameters:\n  architecture: {categorical: [Llama]}": (2, "unknown architecture"),
    "parameters:\n  dropout: {uniform: [0.5, 2.0]}": (2, "between 0 and 1"),
    "parameters:\n  dropout:\n    uniform: [0.1, 0.2]\n    when: {colour: red}": (2, "not a parameter before it"),
    "parameters:\n  dropout: 0.1\n  dropout: 0.2": (3, "comes twice"),
    "parameters: [dropout]": (1, "names, each with"),
    "parameters:\n  dropout: {categorical: 3}": (2, "list of choices"),
    "parameters:\n  dropout: {categorical: [0.1], step: 1}": (2, "no such thing"),
}


@pytest.mark.parametrize("text", FAULTS)
def test_faults_name_file_line_and_field(text: str, tmp_path: Path) -> None:
    line, words = FAULTS[text]
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        apply_space_file(make_space(), file)
    assert f"{file}, line {line}:" in str(caught.value)
    assert words in str(caught.value)
