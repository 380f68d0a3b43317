# SPDX-License-Identifier: Apache-2.0
"""The fused output matrix and cross-entropy give PyTorch's loss and gradients, whatever is cut where."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from open_autoglm.models import linear_cross_entropy as fused
from open_autoglm.models.linear_cross_entropy import can_fuse, linear_cross_entropy

SIZE, VOCABULARY = 24, 97


def inputs(rows: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, SIZE, generator=generator).mul_(scale).requires_grad_()
    weight = torch.randn(VOCABULARY, SIZE, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(0, VOCABULARY, (rows,), generator=generator), torch.rand(rows)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, counts: Tensor | None, smoothing: float) -> Tensor:
    losses = F.cross_entropy((hidden @ weight.T).float(), targets, reduction="none", label_smoothing=smoothing)
    return losses.sum() if counts is None else losses.dot(counts)


@pytest.mark.parametrize("rows", [0, 1, 16, 50])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("counted", [False, True])
def test_loss_and_gradients_are_pytorchs(
    rows: int, smoothing: float, counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_CACHED", 16 * VOCABULARY)  # so that fifty rows are four pieces, the last of two
    hidden, weight, targets, some = inputs(rows)
    counts = some if counted else None
    loss = linear_cross_entropy(hidden, weight, targets, counts, label_smoothing=smoothing)
    expected = plain(hidden, weight, targets, counts, smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(3 * loss, [hidden, weight])
    for mine, theirs in zip(found, torch.autograd.grad(3 * expected, [hidden, weight]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        again = linear_cross_entropy(hidden, weight, targets, counts, label_smoothing=smoothing)
    assert torch.equal(again, loss.detach())


def test_only_the_gradient_that_is_asked_for_is_computed() -> None:
    hidden, weight, targets, _ = inputs(20)
    (both, _) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), [hidden, weight])
    (alone,) = torch.autograd.grad(linear_cross_entropy(hidden, weight.detach(), targets), [hidden])
    assert torch.equal(alone, both)


def test_a_token_without_a_chance_has_a_loss_and_not_infinity() -> None:
    """Its share of the softmax is zero in float32."""
    hidden, weight, targets, _ = inputs(30, scale=400.0)
    loss, expected = linear_cross_entropy(hidden, weight, targets), plain(hidden, weight, targets, None, 0.0)
    assert float(expected.detach()) > 30 * 200
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for mine, theirs in zip(
        torch.autograd.grad(loss, [hidden, weight]), torch.autograd.grad(expected, [hidden, weight]), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)


def test_under_autocast_its_products_are_in_bfloat16() -> None:
    hidden, weight, targets, counts = inputs(40)
    exact = linear_cross_entropy(hidden, weight, targets, counts)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, counts)
        expected = plain(hidden, weight, targets, counts, 0.0)
    assert loss.dtype == torch.float32
    assert not torch.equal(loss, exact)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    found = torch.autograd.grad(loss, [hidden, weight])
    for mine, theirs in zip(found, torch.autograd.grad(expected, [hidden, weight]), strict=True):
        assert mine.dtype == torch.float32
        assert F.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.9999


def test_it_is_for_plain_matrices_in_float32() -> None:
    hidden = torch.zeros(2, SIZE)
    assert can_fuse(nn.Linear(SIZE, VOCABULARY, bias=False), hidden)
    assert not can_fuse(nn.Linear(SIZE, VOCABULARY), hidden)
    assert not can_fuse(nn.Linear(SIZE, VOCABULARY, bias=False, dtype=torch.bfloat16), hidden)
    assert not can_fuse(nn.Sequential(nn.Linear(SIZE, VOCABULARY, bias=False)), hidden)
