# SPDX-License-Identifier: Apache-2.0
"""Plans: what is chosen fits, what is refused has a reason, and where nothing fits it says what would."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from open_autoglm.errors import BundleError, CheckpointError, ConfigurationError
from open_autoglm.models.config import ModelConfig
from open_autoglm.planning.choosing import plan_model
from open_autoglm.planning.fitting import usable_memory
from open_autoglm.planning.memory import estimate_memory
from open_autoglm.planning.model_shape import PlannedModel, read_model
from open_autoglm.planning.setup import Setup
from open_autoglm.planning.speed import estimate_speed, read_bytes, step_seconds
from open_autoglm.targets import KNOWN_TARGETS, Target, resolve_target

EDGE = ModelConfig(
    vocab_size=59264,
    hidden_size=2048,
    intermediate_size=6144,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=128,
    max_position_embeddings=8192,
    tie_word_embeddings=False,
)
NINE = replace(
    EDGE, vocab_size=151552, hidden_size=4096, intermediate_size=13696, num_hidden_layers=40, num_attention_heads=32,
    num_key_value_heads=2, max_position_embeddings=131072,
)  # fmt: skip
BUILT = replace(
    EDGE, vocab_size=8192, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
    num_key_value_heads=2, head_dim=64, max_position_embeddings=65536,
)  # fmt: skip
EXPERTS = replace(
    BUILT, architecture="Glm4MoeForCausalLM", num_experts=16, num_experts_per_tok=2, num_shared_experts=1,
    moe_intermediate_size=256, first_k_dense_replace=1,
)  # fmt: skip
# The machine of bench/results/engine_*.json, as it was measured in those runs.
MEASURED = Target(
    "the machine of the records", "AMD EPYC", 2, 25_276_514_304, ("avx2",), bandwidth=39e9, cache=33_554_432,
    rates={"float32": 204e9, "bfloat16": 204e9, "int8": 391e9, "int4": 605e9},
)  # fmt: skip
RECORDS = Path(__file__).parents[2] / "bench" / "results"


@pytest.mark.parametrize("name", KNOWN_TARGETS[1:])
@pytest.mark.parametrize("config", [BUILT, EDGE, NINE, EXPERTS], ids=["built", "edge", "9b", "experts"])
def test_what_is_chosen_fits_and_every_part_has_a_reason(config: ModelConfig, name: str) -> None:
    target = resolve_target(name)
    plan = plan_model(PlannedModel("model", config), target, others=map(resolve_target, KNOWN_TARGETS[1:]))
    json.dumps(plan.to_dict())
    assert {choice.value for choice in plan.refused if choice.what == "weights"} >= {"float32"}
    assert all(choice.reason for choice in (*plan.choices, *plan.refused))
    if plan.setup is None or plan.memory is None:
        assert plan.would_fit
        assert not plan.command
        return
    assert plan.memory.total <= plan.usable_memory < target.memory
    assert plan.speed is not None
    assert 0 < plan.speed.decode_x1 < plan.speed.decode_x8 < 8 * plan.speed.decode_x1 * 1.001
    assert [choice.what for choice in plan.choices] == ["backend", "weights", "KV cache", "context", "batch", "threads"]
    assert plan.command[:2] == ("open-autoglm", "serve")
    assert (plan.setup.backend == "torch") == (target.kind == "nvidia-gpu")


@pytest.mark.parametrize(
    ("record", "config", "weights"),
    [("engine_built-19m_int8", BUILT, "int8"), ("engine_edge-1.5b_int4", EDGE, "int4")],
)
def test_speeds_are_those_of_the_engine_on_a_quiet_machine(record: str, config: ModelConfig, weights: str) -> None:
    """The records are files: no clock is looked at here."""
    found = json.loads((RECORDS / f"{record}.json").read_text())
    limits = found["limits"]
    rates = {name: limits[f"{short}_gops"] * 1e9 for name, short in (("float32", "f32"), (weights, weights))}
    target = replace(MEASURED, bandwidth=limits["read_gb_per_s"] * 1e9, rates=rates)
    setup = Setup("native", weights, "bfloat16", 2, 8, 4096)
    speed = estimate_speed(replace(config, attention_bias=True), setup, target, prompt_tokens=512, context=24)
    assert speed is not None
    for column, estimate in (
        ("prefill 512", speed.prefill), ("decode x1", speed.decode_x1), ("decode x8", speed.decode_x8),
    ):  # fmt: skip
        assert estimate == pytest.approx(found["columns"][column]["engine"]["median"], rel=0.2), column


def test_a_long_context_takes_longer_and_a_smaller_cache_less() -> None:
    setup = Setup("native", "int4", "bfloat16", 2, 1, 8192)
    short, long = (step_seconds(EDGE, setup, MEASURED, sequences=1, tokens=1, context=size) for size in (16, 8192))
    # bench/results/long_context_edge-1.5b_int4.json: 35 ms of attention at 8,192 tokens
    assert long - short == pytest.approx(0.0355, rel=0.2)
    rounded = replace(setup, kv_dtype="int8")
    assert step_seconds(EDGE, rounded, MEASURED, sequences=1, tokens=1, context=8192) < long


def test_of_experts_only_those_that_are_chosen_are_read() -> None:
    one, many = read_bytes(EXPERTS, "int8", 1), read_bytes(EXPERTS, "int8", 1000)
    assert one < 0.5 * many
    assert many == pytest.approx(EXPERTS.num_parameters() - EXPERTS.vocab_size * EXPERTS.hidden_size, rel=0.03)


def test_formats_follow_memory_and_speed() -> None:
    edge = PlannedModel("edge", EDGE)
    pi = resolve_target("raspberry-pi-5")
    slow = plan_model(edge, pi)
    assert slow.setup is not None and slow.setup.weights == "int4"
    assert "slower than people read" in slow.choices[1].reason
    fast = plan_model(edge, resolve_target("laptop"))
    assert fast.setup is not None and fast.setup.weights == "int8"
    gpu = plan_model(edge, resolve_target("h100"))
    assert gpu.setup is not None and gpu.setup.weights == "bfloat16"
    tight = plan_model(edge, resolve_target("laptop"), max_memory=1_600_000_000)
    assert tight.setup is not None and tight.setup.weights == "int4"
    assert any("int8" in choice.value and "takes" in choice.reason for choice in tight.refused)


def test_what_was_asked_for_is_kept() -> None:
    laptop, edge = resolve_target("laptop"), PlannedModel("edge", EDGE)
    plan = plan_model(edge, laptop, context=4000, concurrency=5)
    assert plan.setup is not None
    assert (plan.setup.context, plan.setup.sequences) == (4000, 5)
    assert plan.command[plan.command.index("--kv-blocks") + 1] == str(5 * 250)
    # So much cache that bfloat16 does not fit beside the weights.
    room = estimate_memory(EDGE, replace(plan.setup, context=8192, sequences=16)).total - 1
    tight = plan_model(edge, laptop, context=8192, concurrency=16, max_memory=room)
    assert tight.setup is not None
    assert (tight.setup.weights, tight.setup.kv_dtype) == ("int8", "int8")


def test_a_context_that_nobody_asked_for_is_shortened() -> None:
    plan = plan_model(PlannedModel("edge", EDGE), resolve_target("laptop"), max_memory=1_300_000_000)
    assert plan.setup is not None
    assert 2048 <= plan.setup.context < 8192
    assert "did not fit" in plan.choices[3].reason


def test_when_nothing_fits_it_says_what_would() -> None:
    pi = resolve_target("raspberry-pi-4")
    nine = PlannedModel("nine", NINE)
    plan = plan_model(nine, pi, context=4096, concurrency=4, others=map(resolve_target, KNOWN_TARGETS[1:]))
    assert not plan.fits
    assert plan.memory is None
    targets = next(line for line in plan.would_fit if line.startswith("another target"))
    for name in KNOWN_TARGETS[1:]:
        fits = plan_model(nine, resolve_target(name), context=4096, concurrency=4).fits
        assert (f" {name}" in targets.replace(",", " ")) == fits, name
    edge = PlannedModel("edge", EDGE)
    full = plan_model(edge, resolve_target("laptop"), context=8192, concurrency=64, max_memory=3_000_000_000)
    assert not full.fits
    fewer = next(line for line in full.would_fit if line.startswith("--concurrency"))
    count = int(fewer.split()[1].rstrip(","))
    for concurrency, fits in ((count, True), (count + 1, False)):
        again = plan_model(
            edge, resolve_target("laptop"), context=8192, concurrency=concurrency, max_memory=3_000_000_000
        )
        assert again.fits is fits, concurrency


def test_where_the_faster_backend_does_not_fit_the_smaller_one_is_taken() -> None:
    pi, edge = resolve_target("raspberry-pi-4"), PlannedModel("edge", EDGE)
    roomy, tight = plan_model(edge, pi), plan_model(edge, pi, max_memory=1_300_000_000)
    assert roomy.setup is not None and roomy.setup.backend == "onnx"
    assert tight.setup is not None and tight.setup.backend == "native"
    assert roomy.memory is not None and roomy.memory.total > 1_300_000_000


def test_a_rounded_checkpoint_and_a_bundle_keep_their_formats() -> None:
    laptop = resolve_target("laptop")
    stored = plan_model(PlannedModel("stored", EDGE, stored_bits=4), laptop)
    assert stored.setup is not None and stored.setup.weights == "int4"
    assert "--quantize" not in stored.command
    bundle = PlannedModel("bundle", BUILT, default="int4", losses={"int4": 0.002, "int8": 0.0001}, ready=("int4",))
    plan = plan_model(bundle, laptop)
    assert plan.setup is not None and plan.setup.weights == "int4"
    assert any("0.01% of the metric" in choice.reason for choice in plan.refused)


def test_numbers_that_make_no_sense() -> None:
    laptop, edge = resolve_target("laptop"), PlannedModel("edge", EDGE)
    for asked, said in (
        ({"context": 0}, "--context must be at least 1"),
        ({"context": 9000}, "more than the 8192 tokens"),
        ({"concurrency": 65}, "at most 64"),
        ({"max_memory": -1}, "--max-memory"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            plan_model(edge, laptop, **asked)
    assert usable_memory(replace(laptop, memory=1)) == 0


def test_models_are_read_without_weights(tmp_path: Path) -> None:
    folder = tmp_path / "somewhere"
    folder.mkdir()
    file = folder / "config.json"
    file.write_text(json.dumps(EDGE.to_hf()))
    assert read_model(folder).config.hidden_size == read_model(file).config.hidden_size == 2048
    assert read_model(file).name == "somewhere"
    file.write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        read_model(file)
    file.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        read_model(file)
    with pytest.raises(BundleError, match="there is no model"):
        read_model(tmp_path / "nothing")
