# SPDX-License-Identifier: Apache-2.0
"""Grids, GPTQ and AWQ on single matrices, against plain formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from open_autoglm.compress.awq import error_by_moments, find_scales, round_by_awq
from open_autoglm.compress.gptq import GptqSettings, move_to_exact_outputs, round_by_gptq
from open_autoglm.compress.grids import RoundedMatrix, Rounding, fit_grid, round_to_grid
from open_autoglm.errors import CheckpointError
from tests.compress.samples import correlated_inputs


def random_weight(rows: int = 48, columns: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1


def output_error(rounded: RoundedMatrix, weight: torch.Tensor, inputs: torch.Tensor) -> float:
    return float(((rounded.values() - weight) @ inputs.T).square().sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, -1])
def test_a_grid_over_the_whole_range_is_within_half_a_step(bits: int, symmetric: bool, group_size: int) -> None:
    weight = random_weight()
    rounding = Rounding(bits, group_size, symmetric, "float16", search=False)
    rounded = round_to_grid(weight, fit_grid(weight, rounding), rounding)
    size = 64 if group_size == -1 else group_size
    assert rounded.grid.scales.shape == (48, 64 // size)
    step = rounded.grid.scales.repeat_interleave(size, dim=1)
    # A little more than half: the scale is rounded to float16, and the zero to a whole number.
    assert ((rounded.values() - weight).abs() <= 1.02 * step).all()
    assert ((rounded.values() - weight).abs() <= 0.51 * step).float().mean() > 0.98
    assert (rounded.grid.scales.half().float() == rounded.grid.scales).all()
    assert rounded.grid.zeros.min() >= 1
    if symmetric:
        assert (rounded.grid.zeros == 1 << bits - 1).all()
        assert rounded.codes.min() >= (1 if bits == 8 else 0)
    assert int(rounded.codes.max()) < 1 << bits


def test_the_search_finds_the_least_error_of_its_candidates() -> None:
    weight = random_weight()
    weight[0, 0] = 2.0  # an outlier that is better cut off
    found = {
        search: round_to_grid(weight, fit_grid(weight, rounding), rounding)
        for search in (False, True)
        if (rounding := Rounding(4, 32, False, "float32", search=search))
    }
    errors = {
        search: (matrix.values() - weight).square().view(48, 2, 32).sum(dim=2) for search, matrix in found.items()
    }
    assert (errors[True] <= errors[False] + 1e-12).all()
    assert errors[True].sum() < 0.93 * errors[False].sum()


def test_a_metric_moves_the_error_to_inputs_that_matter_less() -> None:
    weight, rounding = random_weight(), Rounding(4, 32, False)
    metric = torch.ones(64)
    metric[::7] = 1000.0
    plain = round_to_grid(weight, fit_grid(weight, rounding), rounding).values() - weight
    weighted = round_to_grid(weight, fit_grid(weight, rounding, metric), rounding).values() - weight
    assert (weighted.square() * metric).sum() < (plain.square() * metric).sum()


def reference_gptq(weight: np.ndarray, hessian: np.ndarray, rounded: RoundedMatrix, order: np.ndarray) -> np.ndarray:
    """The same rule without blocks or Cholesky: the inverse Hessian of the columns that are left, each time anew.

    Takes the grid of `rounded`, in float64. Returns int[rows, columns].
    """
    work, inverse = weight.astype(np.float64)[:, order], np.linalg.inv(hessian[np.ix_(order, order)])
    scales, zeros = rounded.grid.scales.double().numpy(), rounded.grid.zeros.double().numpy()
    codes = np.empty(weight.shape, dtype=np.int64)
    for place, column in enumerate(order):
        group = column // rounded.group_size
        code = np.clip(np.round(work[:, place] / scales[:, group]) + zeros[:, group], 0, 15)
        codes[:, column] = code
        error = (work[:, place] - (code - zeros[:, group]) * scales[:, group]) / inverse[place, place]
        work[:, place + 1 :] -= np.outer(error, inverse[place, place + 1 :])
        inverse -= np.outer(inverse[:, place], inverse[place]) / inverse[place, place]
    return codes


@pytest.mark.parametrize("activation_order", [True, False])
@pytest.mark.parametrize(("columns", "group_size"), [(64, 32), (320, 32), (256, 128), (160, -1), (192, 96)])
def test_gptq_makes_the_choices_of_the_plain_rule(columns: int, group_size: int, activation_order: bool) -> None:
    weight, inputs = random_weight(24, columns), correlated_inputs(600, columns)
    hessian = inputs.T @ inputs
    settings = GptqSettings(damping=0.01, activation_order=activation_order)
    rounding = Rounding(4, group_size, False)
    rounded, damping = round_by_gptq(weight, hessian, rounding, settings)
    assert damping == 0.01
    exact = hessian.double().numpy()
    order = np.argsort(-np.diag(hessian.numpy()), kind="stable") if activation_order else np.arange(columns)
    damped = exact + 0.01 * np.diag(exact).mean() * np.eye(columns)
    expected = reference_gptq(weight.numpy(), damped, rounded, order)
    # float32 and float64 differ where a weight lies between two codes, and what follows then differs a little too.
    assert (rounded.codes.numpy() == expected).mean() > 0.97
    nearest = round_to_grid(weight, fit_grid(weight, rounding), rounding)
    assert output_error(rounded, weight, inputs) < 0.6 * output_error(nearest, weight, inputs)


def test_gptq_takes_inputs_that_are_always_zero_or_too_few() -> None:
    weight, inputs = random_weight(), correlated_inputs(10, 64)
    inputs[:, 5] = 0.0
    rounded, _ = round_by_gptq(weight, inputs.T @ inputs, Rounding(4, 32), GptqSettings())
    assert torch.isfinite(rounded.values()).all()
    nearest = round_to_grid(weight, fit_grid(weight, Rounding(4, 32)), Rounding(4, 32))
    assert output_error(rounded, weight, inputs) < 0.5 * output_error(nearest, weight, inputs)
    with pytest.raises(CheckpointError, match="not finite"):
        round_by_gptq(weight, torch.full((64, 64), float("nan")), Rounding(4, 32), GptqSettings())


def test_a_matrix_moves_to_where_lost_inputs_give_the_exact_outputs() -> None:
    weight, exact = random_weight(), correlated_inputs(4000, 64)
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)) * exact.std(dim=0)
    seen = exact.clone()
    seen[:, ::2] += 0.3 * noise[:, ::2]  # what the layers before have lost
    hessian, drift = seen.T @ seen, (exact - seen).T @ seen
    moved = move_to_exact_outputs(weight, hessian, drift, len(seen))
    least = torch.linalg.lstsq(seen, exact @ weight.T).solution.T
    wanted = exact @ weight.T
    plain, mine, best = (float((wanted - seen @ matrix.T).square().sum()) for matrix in (weight, moved, least))
    assert best <= mine < 1.25 * best < 0.2 * plain
    assert torch.equal(move_to_exact_outputs(weight, hessian, torch.zeros(64, 64), len(seen)), weight)
    # Two tokens for each column say little; the matrix moves less, and what it does helps still.
    part, lost = seen[:128], exact[:128] - seen[:128]
    careful = move_to_exact_outputs(weight, part.T @ part, lost.T @ part, 128)
    assert mine < float((wanted - seen @ careful.T).square().sum()) < 0.9 * plain
    with pytest.raises(CheckpointError, match="not finite"):
        move_to_exact_outputs(weight, hessian, torch.full((64, 64), float("inf")), 10)


def test_channel_scales_lower_the_error_of_outputs() -> None:
    weight, inputs = random_weight(64, 128), correlated_inputs(800, 128)
    inputs[:, 3] *= 60  # a channel as large models have them
    hessian, rounding = inputs.T @ inputs, Rounding(4, 32, False)
    judge = error_by_moments([weight], hessian)
    found = find_scales([weight], inputs.abs().mean(dim=0), rounding, judge)
    assert 0 < found.power <= 1
    plain = Rounding(4, 32, False, search=False)
    scaled = round_to_grid(weight * found.scales, fit_grid(weight * found.scales, plain), plain).values() / found.scales
    unscaled = round_to_grid(weight, fit_grid(weight, plain), plain).values()
    measured = float(((scaled - weight) @ inputs.T).square().sum() / ((unscaled - weight) @ inputs.T).square().sum())
    assert measured == pytest.approx(found.error, rel=1e-3)
    assert found.error < 0.8


def test_clipping_by_output_error_beats_clipping_by_weight_error() -> None:
    weight, inputs = random_weight(64, 128), correlated_inputs(800, 128)
    rounding = Rounding(4, 32, False)
    by_outputs = round_by_awq(weight, inputs.T @ inputs, rounding)
    by_weights = round_to_grid(weight, fit_grid(weight, rounding), rounding)
    for group in range(4):
        part = slice(32 * group, 32 * group + 32)
        errors = [
            float(((m.values() - weight)[:, part] @ inputs[:, part].T).square().sum()) for m in (by_outputs, by_weights)
        ]
        assert errors[0] < errors[1]
