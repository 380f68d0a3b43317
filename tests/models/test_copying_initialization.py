# SPDX-License-Identifier: Apache-2.0
"""A model that begins with `copying` repeats what it has read before it has learnt anything."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from open_autoglm.models.config import ModelConfig
from open_autoglm.models.copying_initialization import share_embeddings
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences

LENGTH = 40


def config(architecture: str = "GlmForCausalLM", **changes: object) -> ModelConfig:
    values: dict[str, object] = {
        "vocab_size": 512, "hidden_size": 192, "intermediate_size": 480, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32, "architecture": architecture,
        "max_position_embeddings": 512, "partial_rotary_factor": 0.5, "attention_bias": True,
        "tie_word_embeddings": True, "eos_token_ids": (0,), "pad_token_id": 0,
    }  # fmt: skip
    return ModelConfig(**{**values, **changes})  # pyright: ignore[reportArgumentType]


def made(settings: ModelConfig, scheme: str = "copying") -> GlmForCausalLM:
    model = GlmForCausalLM(settings)
    model.initialize(torch.Generator().manual_seed(0), scheme)
    return model.eval()


def repeated(count: int, generator: torch.Generator) -> Tensor:
    """int64[count, 2 * LENGTH]: different random tokens, twice."""
    rows = torch.stack([torch.randperm(500, generator=generator)[:LENGTH] + 10 for _ in range(count)])
    return torch.cat([rows, rows], dim=1)


class Watched:
    """Attention over one sequence that keeps the weights of the first head of each layer."""

    def __init__(self, length: int) -> None:
        self._packed = PackedSequences(torch.tensor([length]))
        self.positions, self.lengths = self._packed.positions, self._packed.lengths
        self.weights: list[Tensor] = []

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query[:, 0] @ key[:, 0].T / query.shape[-1] ** 0.5
        hidden = torch.ones_like(scores).triu(1).bool()
        self.weights.append(scores.masked_fill(hidden, -torch.inf).softmax(-1))
        return self._packed(layer, query, key, value)


@pytest.mark.parametrize("architecture", ["GlmForCausalLM", "Glm4ForCausalLM"])
@pytest.mark.parametrize("rotary", [0.5, 1.0])
@torch.no_grad()
def test_one_head_looks_back_and_the_next_finds_what_followed(architecture: str, rotary: float) -> None:
    model = made(config(architecture, partial_rotary_factor=rotary))
    row = repeated(1, torch.Generator().manual_seed(1))[0]
    watched = Watched(len(row))
    model(row, watched)
    back, found = watched.weights[:2]
    places = torch.arange(3, len(row))
    assert back[places, places - 1].mean() > 0.5
    # In the second half the token after the same one of the first half is the one that is looked at most.
    second = torch.arange(LENGTH, 2 * LENGTH - 1)
    hits = found[second].argmax(-1) == second - LENGTH + 1
    assert hits.float().mean() > 0.25  # by chance 0.02


@pytest.mark.parametrize("architecture", ["GlmForCausalLM", "Glm4ForCausalLM"])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_repetition_is_expected_before_any_training(architecture: str, tied: bool) -> None:
    def gain(scheme: str) -> float:
        """By how many nats tokens of the second half are likelier than those of the first."""
        model = made(config(architecture, tie_word_embeddings=tied), scheme)
        rows = repeated(8, torch.Generator().manual_seed(2))
        hidden = model(rows.flatten(), PackedSequences(torch.full((8,), 2 * LENGTH)))
        losses = F.cross_entropy(model.logits(hidden)[:-1], rows.flatten()[1:], reduction="none")
        losses = F.pad(losses, (0, 1)).view(8, -1)
        return float(losses[:, 5 : LENGTH - 1].mean() - losses[:, LENGTH + 5 : -1].mean())

    assert gain("copying") > 0.7
    assert abs(gain("scaled_normal")) < 0.3


def test_models_that_cannot_look_back_are_made_too() -> None:
    for settings in (config(num_hidden_layers=1), config(attention_bias=False), config(num_key_value_heads=6)):
        row = torch.arange(10, 40)
        logits = made(settings).logits(made(settings)(row, PackedSequences(torch.tensor([30]))))
        assert torch.isfinite(logits).all()
        assert 0.2 < logits.std() < 5


def test_the_same_seed_makes_the_same_weights() -> None:
    first, second = made(config()).state_dict(), made(config()).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_twins_begin_alike() -> None:
    model = made(config(tie_word_embeddings=False))
    share_embeddings(model, [(100, 50), (101, 51)], torch.Generator().manual_seed(3))
    weight = model.model.embed_tokens.weight
    assert F.cosine_similarity(weight[100], weight[50], dim=0) > 0.8
    assert abs(F.cosine_similarity(weight[100], weight[51], dim=0)) < 0.4
    assert torch.equal(model.lm_head.weight, weight)
