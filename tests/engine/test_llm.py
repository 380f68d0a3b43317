# SPDX-License-Identifier: Apache-2.0
"""`LLM`: from a bundle, a checkpoint, a name or memory; guided and free, one and many."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer

import open_autoglm
from open_autoglm.bundle import open_bundle
from open_autoglm.chat.messages import Message, Role
from open_autoglm.chat.template import CHAT_TEMPLATE, encode_text
from open_autoglm.engine import LLM, GuideSpec, SamplingParams
from open_autoglm.engine.model_paths import find_model
from open_autoglm.errors import BundleError, ConfigurationError, RequestError
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.task import Task, TaskKind
from tests.engine.tiny_bundle import CLASSIFICATION, DIALOGUE, LINES, make_bundle


def copied(completion_text: str, source: str) -> bool:
    answer = json.loads(completion_text)
    return all(value and value in source for value in answer["slots"].values())


def test_every_answer_of_a_task_is_valid_and_in_order(llm: LLM) -> None:
    one = llm.chat(LINES[0])
    assert one.finish_reason == "stop"
    assert copied(one.text, LINES[0])
    many = llm.chat([[Message(Role.USER, line)] for line in LINES], temperature=0.0, max_tokens=120)
    assert many[0].text == one.text
    for line, completion in zip(LINES, many, strict=True):
        assert copied(completion.text, line)
        assert list(json.loads(completion.text)) == ["intent", "slots"]
        assert completion.completion_tokens == len(completion.token_ids)
    again = llm.chat([{"role": "user", "content": LINES[1]}])
    assert again.text == many[1].text
    assert llm.chat(LINES[:2])[1].text == many[1].text
    assert llm.chat([{"role": "user", "content": [{"type": "text", "text": LINES[1]}]}]) == again


def test_many_conversations_do_not_hold_all_their_guides_at_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_work: list[int] = []
    with LLM(bundle, max_sequences=8) as llm:
        compile_guide = llm.compile_guide

        def counting(*arguments: Any) -> Any:
            stats = llm._engine.stats
            in_work.append(stats.num_waiting + stats.num_running)
            return compile_guide(*arguments)

        lines = [f"{LINES[number % len(LINES)]} {number}" for number in range(100)]
        alone = [llm.chat(line, max_tokens=8).text for line in lines[:3]]
        monkeypatch.setattr(llm, "compile_guide", counting)
        answers = llm.chat(lines, max_tokens=8)
    assert [answer.text for answer in answers[:3]] == alone
    assert len(in_work) == len(answers) == 100
    assert 0 < max(in_work) < 2 * 8


def test_prompts_are_the_templates_and_begin_the_answer(llm: LLM, tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "今天 <|assistant|> x"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "more"},
    ]
    request = llm.chat_request(messages, SamplingParams())
    from jinja2 import Template

    text = Template(CHAT_TEMPLATE).render(messages=messages, add_generation_prompt=True) + "\n"
    assert tokenizer.decode(list(request.prompt_token_ids), skip_special_tokens=False) == text
    control = tokenizer.token_to_id("<|assistant|>")
    assert list(request.prompt_token_ids).count(control) == 2, "the one that the user typed is plain text"


def test_free_answers_and_other_formats(llm: LLM) -> None:
    free = llm.chat("x", guided=False, max_tokens=8, ignore_eos=True)
    assert free.finish_reason == "length"
    assert free.completion_tokens == 8
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 22]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    answer = llm.chat("x", response_format=wanted, temperature=1.0, seed=3)
    assert answer.finish_reason == "stop"
    assert json.loads(answer.text)["n"] in (1, 22)
    assert llm.chat("x", response_format={"type": "text"}, max_tokens=8, ignore_eos=True).text == free.text


def test_generate_continues_texts_and_tokens(llm: LLM, model: GlmForCausalLM, tokenizer: Tokenizer) -> None:
    (by_text,) = llm.generate("play the song", max_tokens=12, ignore_eos=True, logprobs=2)
    begin = [tokenizer.token_to_id("[gMASK]"), tokenizer.token_to_id("<sop>")]
    ids = begin + encode_text("play the song", tokenizer)
    both = llm.generate(prompt_token_ids=[ids, ids[:3]], sampling_params=SamplingParams(max_tokens=12, ignore_eos=True))
    assert both[0].token_ids == by_text.token_ids
    assert llm.generate(prompt_token_ids=ids, max_tokens=12, ignore_eos=True)[0].token_ids == by_text.token_ids
    assert by_text.text == tokenizer.decode(list(by_text.token_ids))
    assert by_text.logprobs is not None
    assert len(by_text.logprobs) == 12
    assert by_text.logprobs[0].top[0][0] == by_text.token_ids[0]


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    (free,) = llm.generate("play", max_tokens=40, ignore_eos=True)
    stop = free.text[5:8]
    (ended,) = llm.generate("play", max_tokens=40, ignore_eos=True, stop=stop)
    assert ended.text == free.text[: free.text.index(stop)]
    assert ended.finish_reason == "stop"


@pytest.mark.parametrize(
    ("call", "parameter"),
    [
        (lambda llm: llm.chat([]), "messages"),
        (lambda llm: llm.chat([{"role": "robot", "content": "x"}]), "messages[0].role"),
        (lambda llm: llm.chat([{"role": "user"}]), "messages[0].content"),
        (lambda llm: llm.chat([{"role": "user", "content": "x", "tool_calls": []}]), "messages[0].tool_calls"),
        (lambda llm: llm.chat([{"role": "assistant", "content": "x", "tool_calls": False}]), "messages[0].tool_calls"),
        (lambda llm: llm.chat([{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content"),
        (lambda llm: llm.chat("\ud800"), "messages"),
        (lambda llm: llm.chat("x" * 100_000), "messages"),
        (lambda llm: llm.chat("x", max_tokens=1000), "max_tokens"),
        (lambda llm: llm.chat("x", temperatur=1), "temperatur"),
        (lambda llm: llm.chat("x", temperature=-1), "temperature"),
        (lambda llm: llm.generate(), "prompts"),
        (lambda llm: llm.generate("x", [1]), "prompts"),
        (lambda llm: llm.generate(prompt_token_ids=[["x"]]), "prompt_token_ids"),
        (lambda llm: llm.generate("x", sampling_params=SamplingParams(), top_k=1), "sampling_params"),
    ],
)
def test_invalid_calls_name_the_field_and_leave_nothing_behind(llm: LLM, call: Any, parameter: str) -> None:
    with pytest.raises(RequestError) as caught:
        call(llm)
    assert caught.value.parameter == parameter
    assert not llm.engine.has_unfinished
    assert llm.engine.stats.free_blocks == llm.engine.stats.total_blocks


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}},
            "is an image; the model reads text only",
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
            "is a sound; the model reads text only",
        ),
        ({"type": "text", "text": "x", "more": 1}, "must be a text part"),
        ({"type": ["text"]}, "must be a text part"),
        ("text", "must be a text part"),
    ],
)
def test_what_is_not_text_is_refused_in_words(llm: LLM, part: Any, message: str) -> None:
    content = [{"type": "text", "text": "what is this?"}, part]
    with pytest.raises(RequestError, match=rf"messages\[0\]\.content\[1\] {message}"):
        llm.chat([{"role": "user", "content": content}])


def test_one_bad_conversation_of_many_leaves_nothing_in_the_engine(llm: LLM) -> None:
    with pytest.raises(RequestError, match="at least one"):
        llm.chat([[Message(Role.USER, "x")], []])
    assert not llm.engine.has_unfinished
    short, long, again = llm.chat(["play the song", "龘" * 200, "play the song"], on_error="return")
    assert short == again
    assert short.finish_reason == "stop"
    assert (long.text, long.finish_reason) == ("", "error")
    assert long.error is not None
    assert "256" in long.error


def test_a_bundle_opens_verified_by_path_and_by_name(
    bundle: Path, llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_autoglm.LLM(bundle) as opened:
        assert opened.name == "tiny"
        assert opened.task == open_bundle(bundle).task
        assert opened.chat(LINES[0]).text == llm.chat(LINES[0]).text
    shutil.copytree(bundle, tmp_path / "runs" / "mine" / "bundle")
    monkeypatch.chdir(tmp_path)
    assert find_model("mine") == Path("runs/mine/bundle")
    assert find_model(tmp_path / "runs" / "mine") == tmp_path / "runs" / "mine" / "bundle"
    with open_autoglm.LLM("mine") as opened:
        assert opened.chat(LINES[0]).text == llm.chat(LINES[0]).text
    weights = tmp_path / "runs" / "mine" / "bundle" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.safetensors is not the file that was written"):
        LLM("mine")
    for wrong in ("nothing", "..", tmp_path / "no"):
        with pytest.raises(BundleError):
            LLM(wrong)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantised_weights_answer_alike(bundle: Path, quantize: str) -> None:
    prompt = [9, 8, 7, 100, 200, 201]
    with LLM(bundle) as exact, LLM(bundle, quantize=quantize) as rounded:
        ours, theirs = (
            item.generate(prompt_token_ids=prompt, max_tokens=1, logprobs=5, ignore_eos=True)[0]
            for item in (exact, rounded)
        )
    assert ours.logprobs is not None
    assert theirs.logprobs is not None
    difference = abs(ours.logprobs[0].logprob - theirs.logprobs[0].logprob)
    assert 0 < difference < (0.2 if quantize == "int8" else 2.0)


def test_bfloat16_and_unknown_weights(bundle: Path) -> None:
    with LLM(bundle, dtype="bfloat16") as half:
        assert half.chat(LINES[0]).finish_reason == "stop"
    with pytest.raises(ConfigurationError, match="int3"):
        LLM(bundle, quantize="int3")


def test_a_checkpoint_of_transformers_without_a_tokenizer_takes_tokens(tmp_path: Path) -> None:
    config = transformers.GlmConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, pad_token_id=0, eos_token_id=[1, 2],
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.GlmForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    prompt = [5, 6, 7, 8]
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
    with LLM(tmp_path, kv_blocks=32) as llm:
        (ours,) = llm.generate(prompt_token_ids=prompt, max_tokens=20, temperature=0.0, ignore_eos=True)
        assert list(ours.token_ids) == expected[0, 4:].tolist()
        assert ours.text == ""
        assert llm.task is None
        assert llm.default_temperature == 1.0
        with pytest.raises(RequestError, match=r"tokenizer\.json"):
            llm.chat("x")


def test_a_checkpoint_with_our_tokenizer_is_no_bundle_and_drops_the_answers_newline(
    bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "bundle.json").unlink()
    with LLM(tmp_path / "checkpoint") as llm:
        assert llm.task is None
        request = llm.chat_request("x", SamplingParams())
        assert request.drop_prefix == "\n"
        guided = llm.chat_request("x", SamplingParams(), GuideSpec.of("json_object"))
        assert guided.prompt_token_ids == (*request.prompt_token_ids, *encode_text("\n", llm.tokenizer or Tokenizer()))


def test_a_classifier_answers_with_its_labels_only(tmp_path: Path) -> None:
    with LLM(make_bundle(tmp_path, CLASSIFICATION)) as llm:
        answers = llm.chat(LINES, temperature=2.0)
        assert {answer.text for answer in answers} <= set(CLASSIFICATION.labels)


def test_plain_text_is_continued_and_dialogue_is_free(model: GlmForCausalLM, tokenizer: Tokenizer) -> None:
    with LLM.from_model(model, tokenizer, task=Task(TaskKind.PLAIN_TEXT)) as llm:
        request = llm.chat_request("play the song", SamplingParams())
        assert (
            tokenizer.decode(list(request.prompt_token_ids), skip_special_tokens=False) == "[gMASK]<sop>play the song"
        )
    with LLM.from_model(model, tokenizer, task=DIALOGUE) as llm:
        assert llm.chat("hello", max_tokens=4, ignore_eos=True).finish_reason == "length"
