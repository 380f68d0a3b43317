# SPDX-License-Identifier: Apache-2.0
"""A plugin of each kind, begun by `plugin new` and switched on, is what the product then uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from open_autoglm.build_pipeline import check_settings
from open_autoglm.chat.messages import Message, Role
from open_autoglm.chat.template import CONTROL_TOKENS
from open_autoglm.cli import create_app
from open_autoglm.data import Example, encode_examples
from open_autoglm.data.files import find_files
from open_autoglm.data.plugin_tokenizer import train_plugin_tokenizer
from open_autoglm.data.readers import read_rows
from open_autoglm.engine import LLM
from open_autoglm.engine.loading import open_model
from open_autoglm.errors import ConfigurationError, DataError, OpenAutoGLMError, SpecificationError
from open_autoglm.metrics import ChosenMetric, choose_metric
from open_autoglm.pipeline.catalog import default_catalog
from open_autoglm.pipeline.yaml_file import read_pipeline
from open_autoglm.plugins.made_tokenizer import read_made_tokenizer
from open_autoglm.plugins.registry import PluginRegistry
from open_autoglm.search.executors import InlineExecutor
from open_autoglm.search.plan import plan_by_steps
from open_autoglm.search.tuner import Tuner
from open_autoglm.task import Task, TaskKind
from tests.compress.samples import dequantized, load_tensors
from tests.engine.tiny_bundle import CLASSIFICATION, make_bundle
from tests.search.trial_benches import Quiet, TinyBench, small_space


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPEN_AUTOGLM_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("OPEN_AUTOGLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: object) -> Any:
    result = CliRunner().invoke(create_app(), [str(argument) for argument in arguments])
    if isinstance(result.exception, OpenAutoGLMError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout.splitlines()[-1]) if "--json" in arguments else result.stdout


def switch_on(kind: str, name: str, **changes: str) -> Path:
    """A scaffold, some of its text changed, switched on; returns its file of code."""
    command("plugin", "new", kind, name)
    code = Path("plugins") / name / f"{name}.py"
    text = code.read_text()
    for before, after in changes.values():
        assert before in text
        text = text.replace(before, after)
    code.write_text(text)
    command("plugin", "enable", name)
    return code.resolve()


def test_a_reader_reads_its_files() -> None:
    Path("data").mkdir()
    Path("data/a.lines").write_text("one\ntwo\n")
    before = read_rows(Path("data/a.lines"))
    assert [row.values for row in before.rows] == ["one\ntwo\n"], "a file of an unknown kind is text"
    with pytest.raises(DataError, match="without data files"):
        find_files(Path("data"))
    code = switch_on("reader", "lines")
    after = read_rows(Path("data"))
    assert after.format == "lines"
    assert [(row.number, row.values) for row in after.rows] == [(1, {"text": "one"}), (2, {"text": "two"})]
    code.write_text(code.read_text().replace("yield {", "raise ValueError('line 1 is odd')\n                yield {"))
    with pytest.raises(DataError, match=r"a\.lines: the reader 'lines' cannot read it: ValueError: line 1 is odd"):
        read_rows(Path("data/a.lines"))


def test_a_metric_decides(tmp_path: Path) -> None:
    switch_on("metric", "mine", other=("answer == reference", "len(answer) > 0"))
    chosen = ChosenMetric.from_dict(json.loads(json.dumps(choose_metric("mine").to_dict())))
    bundle = make_bundle(tmp_path / "bundle", CLASSIFICATION)
    rows = [{"text": f"my card {number}", "label": "card lost"} for number in range(4)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = command("eval", bundle, "rows.jsonl", "--metric", "mine", "--json")
    assert found["metric"] == "mine"
    assert found["metrics"]["mine"] == 1.0, "every answer is a label, so none is empty"
    code = Path("plugins/mine/mine.py")
    code.write_text(code.read_text() + "\n# another version\n")
    with pytest.raises(ConfigurationError, match="was changed since the build was begun"):
        chosen.samples(["a"], ["a"])
    with pytest.raises(ConfigurationError, match="unknown metric 'mined'"):
        choose_metric("mined")


def test_a_source_a_cleaner_and_a_sink_in_a_pipeline() -> None:
    pipeline = Path("p.yaml")
    pipeline.write_text(
        "name: p\npipeline:\n"
        "- {stage: fetch, module: source, config: {plugin: mine, settings: {records: [{id: 1, body: '  a   b '}]}}}\n"
        "- {stage: clean, module: text_cleaner, config: {collapse_spaces: false, cleaners: [tidy]}}\n"
        "- {stage: store, module: sink, config: {plugin: folder, settings: {folder: out}}}\n"
    )
    with pytest.raises(SpecificationError) as caught:
        read_pipeline(pipeline, default_catalog())
    assert [fault.partition(": ")[0].rpartition("/")[2] for fault in caught.value.faults] == [
        "p.yaml:3:43",
        "p.yaml:5:41",
    ]
    switch_on("source", "mine")
    switch_on("cleaner", "tidy")
    switch_on("sink", "folder")
    for expected in (['{"id": 1, "body": "a b"}\n'], ['{"id": 1, "body": "a b"}\n', ""]):
        command("run", pipeline)
        assert sorted((path.read_text() for path in Path("out").glob("*.jsonl")), reverse=True) == expected


def test_a_sampler_proposes_the_trials(tmp_path: Path) -> None:
    switch_on("sampler", "dice")
    space, plan = small_space(), plan_by_steps(27, 4)
    tuner = Tuner(
        tmp_path / "search", space, plan, InlineExecutor(TinyBench()), mean_length=8.0, watcher=Quiet(), sampler="dice"
    )
    tuner.run()
    chosen = [entry.choices for entry in tuner.entries()]
    dice = PluginRegistry().make("sampler", "dice")
    parameters = [{"name": one.name, **one.to_dict()} for one in space.parameters.parameters]
    assert chosen[0] == space.defaults
    assert chosen[1:] == [dice.propose(parameters, [], space.seed * 10_007 + number) for number in (1, 2, 3)]
    Path("rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    with pytest.raises(ConfigurationError, match="no sampler 'disc' that is enabled and works; did you mean 'dice'"):
        check_settings(
            "rows.jsonl", out=None, valid=None, test=None, task=None, columns=None, base=None, target="cpu",
            budget=60, trials=None, steps=None, seed=0, sampler="disc",
        )  # fmt: skip


def test_a_tokenizer_is_the_models(tmp_path: Path) -> None:
    switch_on("tokenizer", "digits")
    train = [example("play 1975 by abba in 2024 naïve", "music"), example("book 12 seats at 18:45", "table")] * 20
    tokenizer = train_plugin_tokenizer("digits", train)
    tokens = tokenizer.encode("1975").tokens
    assert tokens == ["1", "9", "7", "5"]
    assert all(tokenizer.token_to_id(token) is not None for token in CONTROL_TOKENS)
    encoded = encode_examples(train, tokenizer, Task(TaskKind.CLASSIFICATION, labels=("music", "table")), max_length=99)
    first = encoded.token_ids[encoded.offsets[0] : encoded.offsets[1]].tolist()
    assert tokenizer.decode(first, skip_special_tokens=False).count("1975 by abba in 2024 naïve") == 1
    made = PluginRegistry().make("tokenizer", "digits").train(["abc"] * 9, 300)
    lossy = json.loads(made)
    lossy["normalizer"] = {"type": "Lowercase"}
    with pytest.raises(ConfigurationError, match="back for 'ABC'"):
        read_made_tokenizer(json.dumps(lossy), 300, ["ABC"])
    with pytest.raises(ConfigurationError, match="where at most 100 were asked for"):
        read_made_tokenizer(made, 100, [])
    Path("rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    given: dict[str, Any] = {
        "out": None, "valid": None, "test": None, "task": None, "columns": None, "base": None, "target": "cpu",
        "budget": 60, "trials": None, "steps": None, "seed": 0,
    }  # fmt: skip
    assert check_settings("rows.jsonl", **given, tokenizer="digits").to_payload()["tokenizer"] == "digits"
    with pytest.raises(
        ConfigurationError, match="no tokenizer 'digit' that is enabled and works; did you mean 'digits'"
    ):
        check_settings("rows.jsonl", **given, tokenizer="digit")
    with pytest.raises(ConfigurationError, match="leave out one of them"):
        check_settings("rows.jsonl", **{**given, "base": str(tmp_path)}, tokenizer="digits")


def example(text: str, answer: str) -> Example:
    return Example((Message(Role.USER, text), Message(Role.ASSISTANT, answer)))


def test_a_backend_computes(tmp_path: Path) -> None:
    marker = tmp_path / "loaded"
    bundle = make_bundle(tmp_path / "bundle")
    with LLM(bundle) as llm:
        expected = llm.chat(["play a song"], max_tokens=8, temperature=0.0)[0].text
    with pytest.raises(ConfigurationError, match=r"--backend: there is no 'mine'; choose one of: auto, native"):
        command("chat", bundle, "--backend", "mine")
    switch_on(
        "backend",
        "mine",
        note=("return load", f"open({str(marker)!r}, 'w').write(str(options))\n        return load"),
    )
    with LLM(bundle, backend="mine") as llm:
        assert llm.chat(["play a song"], max_tokens=8, temperature=0.0)[0].text == expected
    assert "'weights': 'float32'" in marker.read_text()
    digests = []
    for backend in ("mine", "auto"):
        loaded = open_model(bundle, backend=backend)
        loaded.backend.close()
        digests.append(loaded.digest)
    assert digests[0] != digests[1], "answers of one are not kept for the other"


def test_a_quantizer_rounds(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    code = switch_on("quantizer", "mine")
    arguments = ("quantize", bundle, "--method", "mine", "--group-size", "32", "--bits", "8", "--json")
    report = command(*arguments, "--out", tmp_path / "out")
    assert {row["method"] for row in report["matrices"]} == {"mine"}
    assert len(report["settings"]["plugin"]) == 64
    exact, rounded = load_tensors(bundle), load_tensors(tmp_path / "out")
    name = "model.layers.0.mlp.down_proj"
    weights = exact[f"{name}.weight"].float().numpy()
    middle = 1 << 7
    groups = weights.reshape(len(weights), -1, 32)
    scales = (np.abs(groups).max(axis=2, keepdims=True) / (middle - 1)).astype(np.float16).astype(np.float32)
    by_hand = (np.rint(groups / scales) * scales).reshape(weights.shape)
    assert np.abs(dequantized(rounded, name, "compressed-tensors", 8) - by_hand).max() <= scales.max() * 1.01
    with LLM(tmp_path / "out") as llm:
        assert llm.chat(["play a song"], max_tokens=4)[0].finish_reason in ("length", "stop")
    code.write_text(code.read_text().replace("np.full(scales.shape, middle, np.float32)", "0 * scales"))
    with pytest.raises(ConfigurationError, match="the quantizer 'mine', a plugin, gave zeros that are not"):
        command(*arguments, "--out", tmp_path / "other")


def test_a_queue_starts_runs_under_its_own_scheme() -> None:
    Path("inbox").mkdir()
    Path("inbox/a.json").write_text('{"id": 7, "body": "hello"}')
    switch_on("queue", "my_folder")
    Path("p.yaml").write_text(
        "name: p\ntrigger: {queue: 'my_folder://?folder=inbox'}\npipeline:\n"
        "- {stage: write, module: file_sink, config: {path: out/}}\n"
    )
    command("worker", "p.yaml", "--until-idle")
    assert [path.read_text() for path in Path("out").glob("*.jsonl")] == ['{"id": 7, "body": "hello"}\n']
    assert list(Path("inbox").iterdir()) == []


def test_nothing_is_imported_that_is_not_named() -> None:
    marker = Path("imported").resolve()
    for kind, name in (("reader", "lines"), ("metric", "mine"), ("source", "crm")):
        code = switch_on(kind, name)
        code.write_text(
            f"import os, time\nopen({str(marker)!r}, 'a').write(str(os.getpid()) + ' ')\n" + code.read_text()
        )
    command("plugin", "list")
    assert len(set(marker.read_text().split())) == 3, "each is tried once, in a process of its own"
    seen = marker.read_text()
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    read_rows(Path("rows.jsonl"))
    find_files(Path())
    choose_metric("accuracy")
    default_catalog()
    assert PluginRegistry().reader_of(".lines") == "lines"
    assert marker.read_text() == seen
