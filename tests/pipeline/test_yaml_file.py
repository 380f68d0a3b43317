# SPDX-License-Identifier: Apache-2.0
"""Pipelines from YAML: what a good file becomes, and what is said of 60 faulty ones, with line and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from stages_for_tests import MODULES

from open_autoglm.errors import SpecificationError
from open_autoglm.pipeline.catalog import default_catalog
from open_autoglm.pipeline.file_schema import pipeline_schema
from open_autoglm.pipeline.stage import StageCatalog
from open_autoglm.pipeline.yaml_file import PipelineFile, read_pipeline

CATALOG = StageCatalog(MODULES)
SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "pipeline.schema.json"
ENVIRONMENT = {"WORD": "hello", "DATABASE": "postgresql://me:pa55word@host/x", "OPEN_AUTOGLM_SECRET_TOKEN": "s3cret"}

FULL = """\
name: tickets
description: what it is for
trigger: {cron: "0 2 * * *", timezone: Asia/Shanghai}
concurrency: 1
priority: urgent
pipeline:
  - stage: fetch
    module: append
    config: {url: "${env:WORD}", password: "${secrets:TOKEN}", query: "select :cursor"}
  - stage: clean
    module: shout
    needs: [fetch]
    config: {times: "2"}
    when: payload.text is defined and payload.text != ""
  - stage: infer
    module: mark_records
    needs: clean
    model_hint: tickets
    timeout: 1m30s
    retry: {attempts: 3, backoff: fixed, wait: 250ms, jitter: false}
    resources: {cpu: 0.5, memory: 2GB, gpu: 0}
    for_each: {items: records, batch: 10}
  - stage: both
    module: append
    needs: [infer, clean]
"""


def read(tmp_path: Path, text: str, **options: Any) -> PipelineFile:
    path = tmp_path / "p.yaml"
    path.write_text(text, encoding="utf-8")
    return read_pipeline(path, CATALOG, environment=options.pop("environment", ENVIRONMENT), **options)


def faults_of(tmp_path: Path, text: str, **options: Any) -> list[str]:
    with pytest.raises(SpecificationError) as caught:
        read(tmp_path, text, **options)
    return [fault.removeprefix(f"{tmp_path}/") for fault in caught.value.faults]


def test_a_full_file_becomes_its_specification(tmp_path: Path) -> None:
    file = read(tmp_path, FULL)
    assert (file.concurrency, file.priority, file.trigger.cron) == (1, 100, "0 2 * * *")
    fetch, clean, infer, both = file.specification.stages
    # References stay as they are written: what is recorded holds no secret.
    assert fetch.config == {"url": "${env:WORD}", "password": "${secrets:TOKEN}", "query": "select :cursor"}
    assert clean.when == 'payload.text is defined and payload.text != ""'
    assert (infer.timeout_seconds, infer.config) == (90.0, {"model_hint": "tickets"})
    assert (infer.retry.attempts, infer.retry.wait_seconds(3), infer.retry.jitter) == (3, 0.25, 0.0)
    assert (infer.resources.cpu, infer.resources.memory) == (0.5, 2_000_000_000)
    assert infer.for_each is not None
    assert (infer.for_each.items, infer.for_each.batch) == ("records", 10)
    assert file.specification.needs == {
        "fetch": (), "clean": ("fetch",), "infer": ("clean",), "both": ("infer", "clean")
    }  # fmt: skip
    assert both.retry.attempts == 1
    content = json.dumps(file.to_dict())
    assert "s3cret" not in content


def test_without_needs_the_order_is_the_order(tmp_path: Path) -> None:
    text = "name: p\npipeline:\n" + "".join(f"- {{stage: s{n}, module: append}}\n" for n in range(3))
    assert read(tmp_path, text).specification.needs == {"s0": (), "s1": ("s0",), "s2": ("s1",)}
    assert read(tmp_path, text).trigger.model_dump(exclude_defaults=True) == {}


def test_a_matrix_becomes_a_stage_for_each_combination(tmp_path: Path) -> None:
    file = read(
        tmp_path,
        """\
name: p
pipeline:
  - {stage: a, module: append}
  - stage: b
    module: append
    needs: [a]
    matrix: {language: [en, zh], size: [1, 2]}
    config: {say: "in ${matrix:language}", size: "${matrix:size}", cost: "$${matrix:size}"}
  - {stage: c, module: append, needs: [b]}
""",
    )
    names = ["b-en-1", "b-en-2", "b-zh-1", "b-zh-2"]
    assert file.specification.needs == {"a": (), **dict.fromkeys(names, ("a",)), "c": tuple(names)}
    assert file.specification.stage("b-zh-2").config == {"say": "in zh", "size": 2, "cost": "$${matrix:size}"}


def test_a_pipeline_can_be_a_stage_of_another(tmp_path: Path) -> None:
    (tmp_path / "inner.yaml").write_text(
        "name: inner\npipeline:\n"
        "- {stage: x, module: append, config: {value: 1}}\n"
        "- {stage: y, module: append, needs: [x]}\n"
        "- {stage: z, module: append, needs: [x]}\n"
    )
    file = read(
        tmp_path,
        """\
name: outer
pipeline:
  - {stage: a, module: append}
  - {stage: b, pipeline: inner.yaml, needs: [a], config: {x: {value: 7}}}
  - {stage: c, module: append, needs: [b]}
""",
    )
    assert file.specification.needs == {
        "a": (), "b.x": ("a",), "b.y": ("b.x",), "b.z": ("b.x",), "c": ("b.y", "b.z")
    }  # fmt: skip
    assert file.specification.stage("b.x").config == {"value": 7}


def test_set_is_stronger_than_the_file(tmp_path: Path) -> None:
    changes = ["clean.config.times=3", "infer.timeout=5s", "fetch.config.deep.er=a: b", "fetch.config.query=select 1"]
    file = read(tmp_path, FULL, changes=changes)
    assert file.specification.stage("clean").config == {"times": 3}
    assert file.specification.stage("infer").timeout_seconds == 5.0
    assert file.specification.stage("fetch").config["deep"] == {"er": {"a": "b"}}
    assert file.specification.stage("fetch").config["query"] == "select 1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cleen.config.times=3", "--set cleen.config.times: there is no stage 'cleen'; did you mean 'clean'?"),
        ("clean", "--set clean: write it like stage.config.key=value"),
        ("clean.timeout.x.y=1s", "p.yaml:10:5: stage 'clean'.timeout"),
        ("clean.config.times.x=1", "--set clean.config.times.x: this does not lead to a setting"),
        ("clean.config.tims=3", "unknown setting; did you mean 'times'?"),
    ],
)
def test_a_wrong_set_is_named(tmp_path: Path, change: str, message: str) -> None:
    assert message in "\n".join(faults_of(tmp_path, FULL, changes=[change]))


ONE = "name: p\npipeline:\n- stage: a\n  module: append\n"
TWO = ONE + "- stage: b\n  module: append\n"

FAULTS: list[tuple[str, str]] = [
    ("", "p.yaml:1:1: a pipeline's file is names and values"),
    ("- a", "p.yaml:1:1: a pipeline's file is names and values"),
    ("name: p\npipeline: [", "p.yaml:2:12: expected the node content"),
    ("name: p\n\tpipeline: 1", "p.yaml:2:1: found character '\\t'"),
    ("name: p\nname: q\npipeline: []", "p.yaml:2:1: 'name' comes twice"),
    (ONE + "  config:\n    x: 1\n    x: 2\n", "p.yaml:7:5: 'x' comes twice"),
    ("name: p\n1: x", "p.yaml:2:1: a name must be text"),
    ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "p.yaml:2:8: anchors and aliases are not taken"),
    ("name: " + "[" * 40 + "]" * 40, "p.yaml:1:38: this is nested too deep"),
    ("name: p\n---\nname: q", "p.yaml:2:1: but found another document"),
    (
        "name: p\npipeline: !!python/object/apply:os.system [id]",
        "p.yaml:2:11: the tag tag:yaml.org,2002:python/object/apply:os.system is not taken",
    ),
    ("pipeline:\n- {stage: a, module: append}", "p.yaml:1:1: 'name' is missing"),
    ("name: p", "p.yaml:1:1: 'pipeline' is missing"),
    ("name: p\npipeline: []", "p.yaml:2:1: pipeline: list should have at least 1 item"),
    ("name: p\npipeline: 5", "p.yaml:2:1: pipeline: input should be a valid list"),
    ("name: ../p\npipeline:\n- {stage: a, module: append}", "p.yaml:1:1: name: '../p' cannot be a name"),
    ("name: p\nstages: []\npipeline:\n- {stage: a, module: append}", "p.yaml:2:1: stages: unknown key; known are"),
    ("name: p\nconcurency: 1\npipeline:\n- {stage: a, module: append}", "p.yaml:2:1: concurency: unknown key; did you"),
    (ONE + "  need: []\n", "p.yaml:5:3: stage 'a'.need: unknown key; did you mean 'needs'?"),
    (ONE + "  retry: {attemps: 2}\n", "p.yaml:5:11: stage 'a'.retry.attemps: unknown key; did you mean 'attempts'?"),
    (ONE + "  retry: {attempts: 0}\n", "p.yaml:5:11: stage 'a'.retry.attempts: input should be greater than or equal"),
    (ONE + "  retry: {backoff: slow}\n", "p.yaml:5:11: stage 'a'.retry.backoff: input should be 'exponential' or"),
    (ONE + "  timeout: soon\n", "p.yaml:5:3: stage 'a'.timeout: 'soon' is not a time; write it like 60s, 5m or 1h30m"),
    (ONE + "  timeout: -5\n", "p.yaml:5:3: stage 'a'.timeout: -5 must be more than zero"),
    (ONE + "  resources: {memory: much}\n", "p.yaml:5:15: stage 'a'.resources.memory: 'much' is not a size"),
    (ONE + "  resources: {cpus: 1}\n", "p.yaml:5:15: stage 'a'.resources.cpus: unknown key; did you mean 'cpu'?"),
    (ONE + "  for_each: {batch: 0}\n", "p.yaml:5:14: stage 'a'.for_each.batch: input should be greater than or"),
    (
        "name: p\npipeline:\n- {stage: a, module: apend}",
        "p.yaml:3:14: stage 'a'.module: unknown module 'apend'; did you mean",
    ),
    (
        "name: p\npipeline:\n- {stage: a, module: 'os:system'}",
        "p.yaml:3:14: stage 'a'.module: unknown module 'os:system'",
    ),
    (
        "name: p\npipeline:\n- {stage: a, module: missing}",
        "p.yaml:3:14: stage 'a'.module: the module stages_for_tests:not",
    ),
    ("name: p\npipeline:\n- {stage: a}", "p.yaml:3:3: stage 'a': a stage needs a 'module'"),
    ("name: p\npipeline:\n- {module: append}", "p.yaml:3:3: stage 1: 'stage' is missing"),
    ("name: p\npipeline:\n- {stage: a b, module: append}", "p.yaml:3:4: stage 'a b'.stage: 'a b' cannot be a name"),
    ("name: p\npipeline:\n- {stage: 7, module: append}", "p.yaml:3:4: stage 1.stage: input should be a valid string"),
    (ONE + ONE.partition("pipeline:\n")[2], "p.yaml:5:3: stage 'a'.stage: there are two stages named 'a'"),
    (TWO + "  needs: [aa]\n", "p.yaml:7:11: stage 'b'.needs[0]: there is no stage 'aa'; did you mean 'a'?"),
    (TWO + "  needs: [b]\n", "p.yaml:7:11: stage 'b'.needs[0]: a stage cannot need itself"),
    (
        ONE + "  needs: [b]\n- stage: b\n  module: append\n  needs: [a]\n",
        "p.yaml:5:3: stage 'a'.needs: the needs go in a",
    ),
    (TWO + "  needs: [a]\n- {stage: c, module: append}\n", "p.yaml:8:4: stage 'c'.stage: nothing leads to this stage"),
    (ONE + "  when: payload.x <\n", "p.yaml:5:3: stage 'a'.when: this is not a condition"),
    (ONE + "  when: open('x')\n", "p.yaml:5:3: stage 'a'.when: a condition cannot hold a call"),
    (ONE + "  when: paylod.x == 1\n", "p.yaml:5:3: stage 'a'.when: unknown name 'paylod'; did you mean 'payload'?"),
    (
        ONE + "  config: {x: '${env:NOT_THERE}'}\n",
        "p.yaml:5:12: stage 'a'.config.x: the environment variable NOT_THERE",
    ),
    (
        ONE + "  config: {x: ['${secrets:NONE}']}\n",
        "p.yaml:5:16: stage 'a'.config.x[0]: there is no secret 'NONE'; set",
    ),
    (ONE + "  config: {x: '${secret:TOKEN}'}\n", "p.yaml:5:12: stage 'a'.config.x: ${secret:...} is no reference; did"),
    (ONE + "  config: {x: '${matrix:n}'}\n", "p.yaml:5:12: stage 'a'.config.x: ${matrix:n} has no value"),
    (ONE + "  config: {x: 2020-01-01}\n", "p.yaml:5:3: stage 'a'.config: config.x is a date"),
    (ONE + "  matrix: {n: []}\n", "p.yaml:5:12: stage 'a'.matrix.n: list should have at least 1 item"),
    (
        "name: p\npipeline:\n- stage: a\n  module: shout\n  config:\n    tmes: 1\n",
        "p.yaml:6:5: stage 'a'.config.tmes: unknown",
    ),
    (
        "name: p\npipeline:\n- stage: a\n  module: shout\n  config:\n    times: x\n",
        "p.yaml:6:5: stage 'a'.config.times: inp",
    ),
    (
        "name: p\ntrigger: {cron: '0 25 * * *'}\n" + ONE[8:],
        "p.yaml:2:11: trigger.cron: '0 25 * * *' is not a cron: bad hour",
    ),
    ("name: p\ntrigger: {cron: '0 0 30 2 *'}\n" + ONE[8:], "p.yaml:2:11: trigger.cron: '0 0 30 2 *' is not a cron"),
    (
        "name: p\ntrigger: {cron: 'daily'}\n" + ONE[8:],
        "p.yaml:2:11: trigger.cron: 'daily' is not a cron: it has 1 fields",
    ),
    (
        "name: p\ntrigger: {cron: '0 2 * * *', timezone: Asia/Shangai}\n" + ONE[8:],
        "zone 'Asia/Shangai'; did you mean 'Asia/Sha",
    ),
    ("name: p\ntrigger: {cron: '0 2 * * *', webhook: /x}\n" + ONE[8:], "p.yaml:2:1: trigger: a trigger has one source"),
    (
        "name: p\ntrigger: {webhook: x}\n" + ONE[8:],
        "p.yaml:2:11: trigger.webhook: a webhook is a path that begins with",
    ),
    ("name: p\ntrigger: sometimes\n" + ONE[8:], "p.yaml:2:1: trigger: input should be"),
    ("name: p\npipeline:\n- {stage: a, pipeline: gone.yaml}", "p.yaml:3:14: stage 'a'.pipeline: there is no file"),
    (
        "name: p\npipeline:\n- {stage: a, pipeline: p.yaml}",
        "p.yaml:3:14: stage 'a'.pipeline: pipelines go in a circle: p.yaml",
    ),
    (
        "name: p\npipeline:\n- {stage: a, pipeline: x, timeout: 5}",
        "p.yaml:3:3: stage 'a': a stage that is a pipeline cannot",
    ),
]


@pytest.mark.parametrize(("text", "message"), FAULTS, ids=[message[:60] for _, message in FAULTS])
def test_each_fault_is_named_with_its_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    faults = faults_of(tmp_path, text)
    assert any(message in fault for fault in faults), faults
    assert len(faults) == 1, faults


def test_all_faults_are_named_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    text = "name: p\nprio: 1\npipeline:\n- stage: a\n  module: append\n  timeout: x\n- stage: b\n  modul: append\n"
    faults = faults_of(tmp_path, text)
    assert [fault.split(":")[1] for fault in faults] == ["2", "6", "8"]


def test_a_million_stages_are_refused(tmp_path: Path) -> None:
    text = ONE + "  matrix: {a: [" + "x, " * 99 + "y], b: [" + "x, " * 99 + "y], c: [" + "x, " * 99 + "y]}\n"
    assert "is most" in faults_of(tmp_path, text)[0]
    assert "more than 1048576 bytes" in faults_of(tmp_path, "name: " + "x" * 1_100_000)[0]


def test_a_secret_in_a_fault_is_hidden(tmp_path: Path) -> None:
    text = "name: p\npipeline:\n- {stage: a, module: shout, config: {times: '${secrets:TOKEN}'}}"
    (fault,) = faults_of(tmp_path, text)
    assert "config.times" in fault
    assert "s3cret" not in fault


def test_faults_of_an_inner_file_name_that_file(tmp_path: Path) -> None:
    (tmp_path / "inner.yaml").write_text("name: i\npipeline:\n- stage: x\n  module: nope\n")
    (fault,) = faults_of(tmp_path, "name: p\npipeline:\n- {stage: a, pipeline: inner.yaml}")
    assert fault.startswith("inner.yaml:4:3: stage 'x'.module: unknown module 'nope'")


def test_the_published_schema_is_current_and_takes_what_we_take(tmp_path: Path) -> None:
    schema = pipeline_schema()
    assert json.loads(SCHEMA_FILE.read_text()) == schema, "run: open-autoglm validate --print-schema"
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for text in (FULL, ONE, "name: p\ntrigger: manual\n" + ONE[8:], ONE + "  for_each: rows\n  needs: []\n"):
        read(tmp_path, text)
        assert list(validator.iter_errors(yaml.safe_load(text))) == []
    for text in (ONE + "  need: []\n", ONE + "  timeout: soon\n", "name: p", "name: a b\n" + ONE[8:]):
        assert list(validator.iter_errors(yaml.safe_load(text)))


def test_a_sink_writes_to_the_database_that_the_records_come_from(tmp_path: Path) -> None:
    """As in the example of the first page: `sql_sink` without settings. The nearest source counts, not any url."""
    text = (
        "name: t\npipeline:\n"
        "- {stage: far, module: sql_source, config: {url: 'sqlite:///far', query: select 1}}\n"
        "- {stage: fetch, module: sql_source, needs: [far], config: {url: '${env:DATABASE}', query: select 1}}\n"
        "- {stage: ask, module: http_request, needs: [fetch], config: {url: 'https://example.com/'}}\n"
        "- {stage: store, module: sql_sink, needs: [ask]}\n"
        "- {stage: other, module: sql_sink, needs: [ask], config: {url: 'sqlite:///mine', table: t}}\n"
    )
    path = tmp_path / "p.yaml"
    path.write_text(text)
    read_it = read_pipeline(path, default_catalog(), environment=ENVIRONMENT).specification
    assert read_it.stage("store").config == {"url": "${env:DATABASE}"}, "as it was written: it may hold a password"
    assert read_it.stage("other").config == {"url": "sqlite:///mine", "table": "t"}
    path.write_text(text.replace("needs: [ask]}\n", "needs: [far, fetch]}\n", 1))
    with pytest.raises(SpecificationError, match=r"p\.yaml:6:\d+: stage 'store'\.config: 'url' is missing"):
        read_pipeline(path, default_catalog(), environment=ENVIRONMENT)
