# SPDX-License-Identifier: Apache-2.0
"""The functions with gradients of their own compute what autograd makes of the plain formulas."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences
from open_autoglm.models.rotary_embedding import rotate
from open_autoglm.models.training_functions import (
    can_use,
    gated_silu,
    root_mean_square_norm,
    rotate_pairs,
    short_attention,
)

GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=dtype).requires_grad_()


def assert_same(ours: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor) -> None:
    """The same result and the same gradients, for float32; inputs get a random gradient."""
    found, expected = ours(*inputs), plain(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn(expected.shape, generator=GENERATOR)
    for mine, theirs in zip(
        torch.autograd.grad(found, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 24), (3, 5, 16)])
def test_norm(shape: tuple[int, ...]) -> None:
    assert_same(
        lambda hidden, weight: root_mean_square_norm(hidden, weight, 1e-5),
        lambda hidden, weight: F.rms_norm(hidden, hidden.shape[-1:], weight, 1e-5),
        random(*shape), random(shape[-1]),
    )  # fmt: skip


def test_gated_silu() -> None:
    assert_same(gated_silu, lambda both: F.silu(both[:, :12]) * both[:, 12:], random(9, 24))


@pytest.mark.parametrize("rotary", [16, 8])
def test_rotation(rotary: int) -> None:
    angles = torch.rand(6, 1, rotary // 2, generator=GENERATOR) * 6

    def plain(heads: Tensor) -> Tensor:
        with torch.no_grad():
            matrix = torch.zeros(6, 16, 16)
            for token in range(6):
                matrix[token] = torch.eye(16)
                for pair in range(rotary // 2):
                    cosine, sine = angles[token, 0, pair].cos(), angles[token, 0, pair].sin()
                    place = slice(2 * pair, 2 * pair + 2)
                    matrix[token, place, place] = torch.tensor([[cosine, -sine], [sine, cosine]])
        return torch.einsum("tij,thj->thi", matrix, heads)

    heads = random(6, 3, 16)
    assert_same(lambda heads: rotate_pairs(heads, angles.cos(), angles.sin()), plain, heads)
    in_use = rotate(heads.detach(), angles.cos(), angles.sin(), interleaved=True)
    torch.testing.assert_close(in_use, plain(heads).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", [[5, 9, 2], [4, 4], [1], [30, 1, 1, 17]])
def test_attention(key_heads: int, lengths: list[int]) -> None:
    total = sum(lengths)
    packed = PackedSequences(torch.tensor(lengths))

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = []
        for rows in torch.arange(total).split(lengths):
            q, k, v = (item[rows].transpose(0, 1) for item in (query, key, value))
            k, v = (item.repeat_interleave(4 // key_heads, dim=0) for item in (k, v))
            scores = q @ k.mT / math.sqrt(8)
            scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), float("-inf"))
            parts.append((scores.softmax(-1) @ v).transpose(0, 1))
        return torch.cat(parts)

    layout = packed._layout(4, key_heads)
    inputs = (random(total, 4, 8), random(total, key_heads, 8), random(total, key_heads, 8))
    assert_same(lambda *all_three: short_attention(*all_three, layout), plain, *inputs)
    with torch.no_grad():
        torch.testing.assert_close(packed(0, *inputs), plain(*inputs), rtol=1e-5, atol=1e-5)


def test_they_are_for_float32_that_needs_a_gradient() -> None:
    assert can_use(random(2, 2))
    assert not can_use(random(2, 2).detach())
    rounded = random(2, 2, dtype=torch.bfloat16)
    assert not can_use(rounded)
    with torch.autocast("cpu", torch.bfloat16):
        assert can_use(rounded)


def test_under_autocast_they_compute_in_float32() -> None:
    """What autocast rounds are the products of layers, and nothing between them."""
    packed = PackedSequences(torch.tensor([5, 9, 2]))
    exact = [random(16, heads, 8) for heads in (4, 2, 2)]
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    with torch.autocast("cpu", torch.bfloat16):
        found = packed(0, *rounded)
    expected = packed(0, *(tensor.float() for tensor in rounded))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    direction = torch.randn(found.shape, generator=GENERATOR)
    for mine, theirs in zip(
        torch.autograd.grad(found, rounded, direction), torch.autograd.grad(expected, rounded, direction), strict=True
    ):
        assert mine.dtype == torch.bfloat16
        assert torch.equal(mine, theirs)


def test_a_model_under_autocast_has_nearly_the_gradient_of_float32() -> None:
    """Its products round to eight bits; what is between them would round as often again."""
    config = ModelConfig(96, 64, 96, 3, 4, 2, 16, architecture="Glm4ForCausalLM")
    model = GlmForCausalLM(config).train()
    model.initialize(torch.Generator().manual_seed(1))
    token_ids = torch.randint(0, config.vocab_size, (60,), generator=GENERATOR)
    gradients: list[Tensor] = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden = model(token_ids, PackedSequences(torch.tensor([20, 33, 7])))
            loss = F.cross_entropy(model.logits(hidden).float(), token_ids)
        found = torch.autograd.grad(loss, list(model.parameters()))
        gradients.append(torch.cat([part.flatten() for part in found]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.999
