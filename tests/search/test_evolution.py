# SPDX-License-Identifier: Apache-2.0
"""Architectures under a constraint: the front is one, keeps the constraint, and an impossible one is said."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from open_autoglm.errors import ConfigurationError, EngineError
from open_autoglm.models.checkpoint import quantize_in_place, save_int8
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.models.size import int8_bytes
from open_autoglm.search.evolution import evolve, predicted_loss
from open_autoglm.search.latency_model import LatencyModel, Measurement, Workload, features, grid_of, measure
from open_autoglm.search.space import Frame, architecture_of, default_space
from open_autoglm.targets import HardwareConstraint
from open_autoglm.task import TaskKind

FRAME = Frame(512, 256, (0,), 0)
WORKLOAD = Workload(20, 30)
COSTS = np.array([5e-4, 2e-2, 8e-4, 5e-4, 3e-5])


def drawn(count: int) -> list[ModelConfig]:
    generator = np.random.default_rng(3)
    space = default_space(TaskKind.CLASSIFICATION, FRAME, seed=0).architectural()
    return [architecture_of(FRAME, space.draw(generator)) for _ in range(count)]


def measured(configs: list[ModelConfig], noise: float = 0.0) -> list[Measurement]:
    """Times that follow known costs, as the engine's do up to noise."""
    generator = np.random.default_rng(4)
    return [
        Measurement(
            config,
            float(np.dot(features(config, WORKLOAD), COSTS)) * (1 + noise * generator.normal()),
            int8_bytes(config),
        )
        for config in configs
    ]


def test_times_of_other_shapes_are_computed_from_a_few() -> None:
    configs = drawn(80)
    grid = grid_of(configs, 9)
    assert len(set(grid)) == 9
    exact = LatencyModel.fit(WORKLOAD, measured(grid))
    assert exact.error < 0.05
    model = LatencyModel.fit(WORKLOAD, measured(grid, noise=0.03))
    for found in measured(configs):
        assert model.seconds(found.config) == pytest.approx(found.seconds, rel=0.2)
    with pytest.raises(EngineError, match="at least four"):
        LatencyModel.fit(WORKLOAD, measured(configs[:3]))


def test_the_engine_is_measured_with_random_weights() -> None:
    small, large = (architecture_of(FRAME, {"layers": layers, "hidden_size": 96}) for layers in (2, 6))
    found = [measure(config, Workload(8, 4), threads=1) for config in (small, large)]
    assert all(one.seconds > 0 for one in found)
    assert found[1].weight_bytes > found[0].weight_bytes > 0.5 * int8_bytes(small)


@pytest.mark.parametrize("values", [{"layers": 3}, {"architecture": "Glm4ForCausalLM", "tie_word_embeddings": False}])
def test_the_size_is_that_of_the_file(values: dict[str, object], tmp_path: Path) -> None:
    config = architecture_of(FRAME, values)  # type: ignore[arg-type]
    path = save_int8(quantize_in_place(GlmForCausalLM(config), "int8"), tmp_path)
    assert int8_bytes(config) == pytest.approx(path.stat().st_size, rel=0.01)


def test_the_front_keeps_the_constraint_and_nobody_on_it_is_beaten(tmp_path: Path) -> None:
    space = default_space(TaskKind.CLASSIFICATION, FRAME, seed=1)
    model = LatencyModel.fit(WORKLOAD, measured(grid_of(drawn(80), 9)))
    every = [model.predict(config)["latency_ms"] for config in drawn(200)]
    constraint = HardwareConstraint(latency_ms=float(np.quantile(every, 0.4)), size_mb=1.0)
    front = evolve(space, model, constraint, flops=1e14, mean_length=40.0, generations=6)
    assert front.members
    for member in front.members:
        assert member.predicted["latency_ms"] <= (constraint.latency_ms or 0)
        assert member.predicted["size_mb"] <= 1.0
    for one, other in itertools.permutations(front.members, 2):
        assert not (one.loss <= other.loss and one.predicted["latency_ms"] <= other.predicted["latency_ms"])
    assert 1 <= len(front.chosen) <= 4
    assert front.chosen[0] == front.members[0].config
    best = min(
        predicted_loss(config, 1e14, 40.0)
        for config in drawn(400)
        if all(value <= 0 for value in constraint.violations(model.predict(config)).values())
    )
    assert front.members[0].loss <= best + 0.05
    again = evolve(space, model, constraint, flops=1e14, mean_length=40.0, generations=6)
    assert again.members == front.members
    front.save(tmp_path)
    values = json.loads((tmp_path / "pareto.json").read_text())
    assert [ModelConfig.from_dict(m["config"]) for m in values["members"] if m["chosen"]] == list(front.chosen)
    assert (tmp_path / "pareto.svg").read_text().startswith("<svg")


def test_a_constraint_that_nobody_meets_names_the_nearest() -> None:
    space = default_space(TaskKind.CLASSIFICATION, FRAME, seed=1)
    model = LatencyModel.fit(WORKLOAD, measured(grid_of(drawn(80), 9)))
    with pytest.raises(ConfigurationError, match=r"latency_ms 0\.001.*the nearest one has latency_ms") as caught:
        evolve(space, model, HardwareConstraint(latency_ms=0.001), flops=1e14, mean_length=40.0, generations=2)
    assert "--space" in str(caught.value)


def test_more_computation_favours_larger_models() -> None:
    configs = sorted(drawn(60), key=ModelConfig.num_decoder_parameters)
    best = [
        min(configs, key=lambda config, flops=flops: predicted_loss(config, flops, 40.0)).num_decoder_parameters()
        for flops in (1e11, 1e13, 1e16)
    ]
    assert best == sorted(best)
    assert best[0] < best[-1] == configs[-1].num_decoder_parameters()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"latency": 3}, "did you mean 'latency_ms'"),
        ({"size_mb": 0}, "above zero"),
        ({"size_mb": True}, "above zero"),
        ({"tokens_per_s": float("nan")}, "above zero"),
    ],
)
def test_constraints_that_make_no_sense(values: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        HardwareConstraint.of(values)


def test_violations_say_by_how_much() -> None:
    constraint = HardwareConstraint(latency_ms=10, tokens_per_s=100)
    assert constraint.violations({"latency_ms": 15.0, "tokens_per_s": 80.0, "memory_mb": 1.0, "size_mb": 1.0}) == {
        "latency_ms": 0.5,
        "tokens_per_s": pytest.approx(0.2),
    }
    assert not HardwareConstraint()
