# SPDX-License-Identifier: Apache-2.0
"""Speeds that are measured: what is timed in the place of a model, and what is made of the times. No clock decides."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import open_autoglm.planning.stand_in
import open_autoglm.planning.timing as timing
from open_autoglm.engine.backends.native_backend import load_random
from open_autoglm.engine.batch import Batch
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.size import packed_bytes
from open_autoglm.planning.choosing import plan_model
from open_autoglm.planning.model_shape import PlannedModel
from open_autoglm.planning.setup import Setup
from open_autoglm.planning.speed import estimate_speed, read_bytes
from open_autoglm.planning.stand_in import StandIn, choose_stand_in, stand_in_bytes
from open_autoglm.planning.timing import MeasuredSpeeds, StepSeconds, measure_speed
from open_autoglm.targets import FORMATS, resolve_target
from tests.planning.test_choosing import BUILT, EDGE, MEASURED, NINE
from tests.planning.test_memory import DENSE, MIXTURE

HERE = replace(MEASURED, name="cpu")
SETUP = Setup("native", "int8", "bfloat16", 2, 8, 1024)
SANDWICH = replace(DENSE, architecture="Glm4ForCausalLM", tie_word_embeddings=True, head_dim=16)
# GLM-4.5-Air: 106 billion parameters.
AIR = ModelConfig(
    151552, 4096, 10944, 46, 96, 8, 128, architecture="Glm4MoeForCausalLM", max_position_embeddings=131072,
    attention_bias=True, tie_word_embeddings=False, partial_rotary_factor=0.5, num_experts=128, num_experts_per_tok=8,
    num_shared_experts=1, moe_intermediate_size=1408, first_k_dense_replace=1,
)  # fmt: skip


def chosen(config: ModelConfig, weights: str = "int8", seconds: float = 2.5) -> StandIn:
    setup = replace(SETUP, weights=weights)
    return choose_stand_in(config, setup, HERE, prompt=512, context=512, seconds=seconds, together=True)


def whole_prompt(length: int) -> Batch:
    return Batch(
        token_ids=np.arange(length),
        positions=np.arange(length),
        slot_mapping=np.arange(length),
        offsets=np.array([0, length]),
        context_lengths=np.array([length]),
        sequence_lengths=np.array([length]),
        block_tables=np.zeros((1, 1), dtype=np.int64),
        output_indices=np.array([length - 1]),
        block_size=16,
    )


def test_a_model_with_more_layers_takes_what_each_more_takes() -> None:
    small, large = StepSeconds(1.0, 0.1, 0.3), StepSeconds(2.0, 0.14, 0.42)
    whole = large.with_layers(20, small, 2)
    assert (whole.prefill, whole.decode_x1, whole.decode_x8) == pytest.approx((12.0, 0.54, 1.62))
    # A larger model that came out faster, because others were in the way of the smaller, costs no less than it did.
    assert small.with_layers(10, large, 2) == small
    assert large.or_better(StepSeconds(3.0, 0.1, 0.5)) == StepSeconds(2.0, 0.1, 0.42)


def test_times_of_decoding_go_with_what_is_read() -> None:
    large = StepSeconds(2.0, 0.14, 0.42)
    # Ten times as much is read for one answer, four times as much for eight.
    for found, expected in (
        (StepSeconds(9.0, 1.4, 1.68), (9.0, 1.4, 1.68)),
        (StepSeconds(9.0, 0.15, 0.43), (9.0, 1.12, 1.344)),
        (StepSeconds(9.0, 99.0, 99.0), (9.0, 1.75, 2.1)),
    ):
        whole = found.within(large, 10.0, 4.0)
        assert (whole.prefill, whole.decode_x1, whole.decode_x8) == pytest.approx(expected)


def test_a_small_model_is_timed_as_a_whole() -> None:
    assert chosen(BUILT) == StandIn((8,), chosen(BUILT).expert_bytes, chosen(BUILT).num_bytes)
    assert chosen(BUILT).num_bytes == pytest.approx(
        packed_bytes(replace(BUILT, tie_word_embeddings=True), "int8"), 0.01
    )


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("config", [EDGE, NINE, AIR], ids=["1.5b", "9b", "106b"])
def test_of_a_large_model_some_layers_are_timed(config: ModelConfig, weights: str) -> None:
    found = chosen(config, weights)
    smaller, larger = found.layers
    assert 1 + config.first_k_dense_replace <= smaller < larger < config.num_hidden_layers
    read = read_bytes(replace(config, num_hidden_layers=smaller), weights, 1)
    assert read > 2 * (HERE.cache or 0), "the smaller one would be found in the cache, the model would not"
    # As many bytes as the output matrix, and a few layers: bounded however large the model is.
    output = config.vocab_size * config.hidden_size * 4
    assert found.num_bytes < output + 4e9 < packed_bytes(AIR, "int4")
    more = chosen(config, weights, seconds=30)
    assert more.layers[-1] >= larger


def test_a_model_of_two_layers_cannot_be_cut() -> None:
    assert chosen(replace(NINE, num_hidden_layers=2), seconds=0.01).layers == (2,)
    assert chosen(replace(AIR, num_hidden_layers=3), seconds=0.01).layers == (3,)
    assert chosen(replace(AIR, num_hidden_layers=1), seconds=0.01).layers == (1,)
    assert chosen(replace(AIR, num_hidden_layers=4), seconds=0.01).layers == (2, 3)


def test_experts_take_turns_when_they_are_many() -> None:
    assert stand_in_bytes(AIR, "int4", 512 << 20) < 0.1 * packed_bytes(AIR, "int4")
    few = replace(AIR, num_hidden_layers=3)
    assert stand_in_bytes(few, "int4", 512 << 20) < 1.2e9 < 0.5 * packed_bytes(few, "int4")
    (shared,), (own,) = (
        load_random(MIXTURE, form="int8", kv_dtype="bfloat16", threads=1, expert_bytes=size) for size in (1, 1 << 30)
    )
    assert own.num_weight_bytes == pytest.approx(packed_bytes(MIXTURE, "int8"), rel=0.01)
    for backend in (shared, own):
        backend.allocate(1, 16)
        assert np.isfinite(backend.step(whole_prompt(7))).all()
        backend.close()


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("config", [DENSE, SANDWICH, MIXTURE], ids=["dense", "tied sandwich", "mixture"])
def test_random_weights_have_the_model_s_shapes_and_formats(config: ModelConfig, weights: str) -> None:
    shallow, backend = load_random(
        config, form=weights, kv_dtype="bfloat16", threads=1, expert_bytes=1 << 30, layers=(1, config.num_hidden_layers)
    )
    assert shallow.bytes_per_block(16) * config.num_hidden_layers == backend.bytes_per_block(16)
    assert backend.num_weight_bytes == pytest.approx(packed_bytes(config, weights), rel=0.01)
    assert f"{weights} weights" in backend.description
    backend.allocate(1, 16)
    logits = backend.step(whole_prompt(9))
    assert logits.shape == (1, config.vocab_size)
    assert np.isfinite(logits).all()
    assert logits.std() > 0
    # Its tokens are its own: the same prompt does not give the same twice.
    assert not np.array_equal(logits, backend.step(whole_prompt(9)))
    backend.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("layers", [(2,), (1, 2)])
def test_what_is_timed_is_said(layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, object]] = []

    def choose(*_: object, **asked: object) -> StandIn:
        seen.append(asked)
        return StandIn(layers, 1 << 20, 1 << 20)

    monkeypatch.setattr(timing, "choose_stand_in", choose)
    speed = measure_speed(DENSE, replace(SETUP, threads=1), HERE, prompt=48, context=40)
    assert speed is not None
    assert min(speed.prefill, speed.decode_x1, speed.decode_x8) > 0
    assert (speed.prompt_tokens, speed.context, speed.measured_layers) == (48, 40, layers[-1])
    assert speed.to_dict()["measured"] is True
    assert seen[0]["together"] is True
    speed = measure_speed(DENSE, replace(SETUP, threads=1), HERE, prompt=48, context=1, together=False)
    assert speed is not None and speed.decode_x1 > 0


@pytest.mark.usefixtures("at_once")
def test_where_nothing_can_be_timed_the_limits_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    pi = resolve_target("raspberry-pi-5")
    short = replace(BUILT, max_position_embeddings=16)
    limits = estimate_speed(BUILT, SETUP, pi)
    assert limits is not None and limits.to_dict()["measured"] is False
    assert MeasuredSpeeds().of(BUILT, SETUP, pi) == limits
    assert MeasuredSpeeds().alone(BUILT, SETUP, pi) == limits.decode_x1
    assert measure_speed(BUILT, replace(SETUP, backend="onnx"), HERE, prompt=8, context=8) is None
    assert measure_speed(short, replace(SETUP, context=16), HERE, prompt=8, context=8) is None
    assert measure_speed(BUILT, SETUP, replace(HERE, bandwidth=None), prompt=8, context=8) is None
    monkeypatch.setattr(timing, "available_memory", lambda: 1000)
    assert MeasuredSpeeds().of(BUILT, SETUP, HERE) == estimate_speed(BUILT, SETUP, HERE)


def test_each_setup_is_timed_once_and_all_with_one_context(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[tuple[str, str, bool]] = []
    slower = {"int8": 4.0, "int4": 3.0, "bfloat16": 2.0, "float32": 1.0}

    def measure(config: ModelConfig, setup: Setup, *_: object, together: bool, **lengths: int) -> object:
        assert lengths == {"prompt": 512, "context": 512}
        timed.append((setup.weights, setup.kv_dtype, together))
        found = estimate_speed(config, setup, HERE)
        assert found is not None
        return replace(found, decode_x1=slower[setup.weights], measured_layers=3)

    monkeypatch.setattr(timing, "measure_speed", measure)
    said: list[str] = []
    speeds = MeasuredSpeeds(lambda done, note: said.append(f"{done:.0f} {note}"))
    plan = plan_model(PlannedModel("edge", EDGE), HERE, speeds=speeds)
    assert plan.setup is not None and plan.setup.weights == "int8"
    assert plan.speed is not None and plan.speed.decode_x1 == 4.0
    assert len(timed) == len(set(timed)) == len(said) == 5
    assert [one for one in timed if one[2]] == [("int8", "bfloat16", True)]
    assert {weights for weights, _, _ in timed} == set(FORMATS)
    assert any("3.0 tokens/s for 4.0" in choice.reason for choice in plan.refused)
    assert any("random weights" in note and "3 of its 28 layers" in note for note in plan.notes)
    assert plan.to_dict()["speed"]["measured_layers"] == 3
    assert not any("random weights" in note for note in plan_model(PlannedModel("edge", EDGE), HERE).notes)


def test_timing_needs_no_torch() -> None:
    for module in (timing, open_autoglm.planning.stand_in):
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any("torch" in ast.unparse(node) for node in names)
