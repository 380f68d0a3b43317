# SPDX-License-Identifier: Apache-2.0
"""The files for Prometheus and Grafana: whatever they ask for, a server that has answered something has."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import parser

from open_autoglm.serve.watching.answer_checks import AnswerChecks
from open_autoglm.serve.watching.request_metrics import RequestMetrics
from tests.serve.conftest import Running

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/open-autoglm.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((DEPLOY / "alerts.yaml").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]] + [rule["expr"] for rule in RULES]

GIVEN_BY_PROMETHEUS = {"up"}
WORDS_OF_PROMQL = {
    *("sum", "max", "min", "avg", "rate", "increase", "histogram_quantile", "clamp_min", "and", "on", "by"),
    "group_left",
}
GROUPING = re.compile(r"\b(?:by|on|group_left)\s*\([^)]*\)")
SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[^}]*\})?")


def selectors(expression: str) -> list[tuple[str, str]]:
    """The metrics of an expression, each with its matchers."""
    plain = GROUPING.sub(" ", re.sub(r"\[[^\]]*\]", " ", expression))
    return [(name, matchers) for name, matchers in SELECTOR.findall(plain) if name not in WORDS_OF_PROMQL]


@pytest.fixture(scope="module")
def known(extractor: Running) -> dict[str, set[str]]:
    """The names of all samples that there can be, each with the labels that were seen on it."""
    body = {"messages": [{"role": "user", "content": "play the song"}], "max_tokens": 20}
    assert extractor.post(body).status_code == 200
    assert extractor.post({**body, "max_tokens": 0}).status_code == 400
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    found: dict[str, set[str]] = {}
    for family in parser.text_string_to_metric_families(httpx.get(f"{extractor.url}/metrics").text):
        for suffix in suffixes[family.type]:
            found[family.name + suffix] = set()
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_the_reading_of_expressions_misses_nothing() -> None:
    found = selectors('sum by (a, le) (rate(x_total{a=~"b|c",d="e"}[5m])) / on (a) group_left () clamp_min(y, 0.1) > 2')
    assert found == [("x_total", '{a=~"b|c",d="e"}'), ("y", "")]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_and_label_exists(expression: str, known: dict[str, set[str]]) -> None:
    found = selectors(expression)
    assert found
    for name, matchers in found:
        if name in GIVEN_BY_PROMETHEUS:
            continue
        assert name in known, name
        for label in re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)\s*\"", matchers):
            assert label in {"instance", "job"} or not known[name] or label in known[name], f"{name}: {label}"
    assert expression.count("(") == expression.count(")")


def test_nearly_all_that_is_measured_is_shown(known: dict[str, set[str]]) -> None:
    asked = {name for expression in EXPRESSIONS for name, _ in selectors(expression)}
    families = {re.sub("_(bucket|sum|count|total|created)$", "", name) for name in asked}
    unseen = {
        name
        for name in known
        if name.startswith("open_autoglm_") and re.sub("_(bucket|sum|count|total|created)$", "", name) not in families
    }
    assert unseen <= {"open_autoglm_build_info"}


def test_labels_that_are_grouped_by_are_there(known: dict[str, set[str]]) -> None:
    for expression in EXPRESSIONS:
        for group in re.findall(r"\bby\s*\(([^)]*)\)", expression):
            labels = {label.strip() for label in group.split(",")}
            everything = set().union(*(known.get(name, set()) for name, _ in selectors(expression)))
            if everything:  # no label is seen on what never happened yet
                assert labels <= everything | {"instance"}, expression


def test_the_dashboard_can_be_provisioned() -> None:
    assert DASHBOARD["uid"] == "open-autoglm"
    assert "id" not in DASHBOARD, "an id belongs to one Grafana"
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)
    assert len(PANELS) > 20
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z_]+)", json.dumps(DASHBOARD).replace("$__", "")))
    assert used == names == {"datasource", "instance", "model"}
    for first, second in combinations(DASHBOARD["panels"], 2):
        assert not overlap(first["gridPos"], second["gridPos"]), f"{first['title']} and {second['title']}"


def overlap(first: dict[str, int], second: dict[str, int]) -> bool:
    return all(
        first[start] < second[start] + second[size] and second[start] < first[start] + first[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


def test_alerts_are_rules_that_say_something() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES) > 5
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert rule["annotations"]["summary"]


def test_the_scrape_configuration_reads_the_route_and_the_rules() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text(encoding="utf-8"))
    [job] = config["scrape_configs"]
    assert job["job_name"] == "open-autoglm"
    assert all('job="open-autoglm"' in text for text in EXPRESSIONS if re.search(r"\b(up|process_\w+)\b", text))
    assert job["metrics_path"] == "/metrics"
    assert [DEPLOY / name for name in config["rule_files"]] == [DEPLOY / "alerts.yaml"]


@pytest.fixture
def promtool() -> Iterator[str]:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed")
    yield found


def test_promtool_agrees(promtool: str, extractor: Running, tmp_path: Path) -> None:
    values = {"$__rate_interval": "5m", "$instance": ".*", "$model": ".*"}
    rules: list[dict[str, str]] = []
    for number, expression in enumerate(EXPRESSIONS):
        plain = expression
        for variable, value in values.items():
            plain = plain.replace(variable, value)
        rules.append({"record": f"panel_{number}", "expr": plain})
    panels = tmp_path / "panels.yaml"
    panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checks: list[tuple[list[str], str | None]] = [
        (["check", "rules", str(panels)], None),
        (["check", "rules", str(DEPLOY / "alerts.yaml")], None),
        (["check", "config", str(DEPLOY / "prometheus.yaml")], None),
        (["check", "metrics"], httpx.get(f"{extractor.url}/metrics").text),
    ]
    for words, text in checks:
        done = subprocess.run([promtool, *words], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_names_that_are_promised_elsewhere() -> None:
    """docs/watching.md lists every metric, and no other."""
    text = (DEPLOY.parent / "docs" / "watching.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(open_autoglm_\w+)`", text, re.MULTILINE))
    assert listed == names_of_everything()


def names_of_everything() -> set[str]:
    from prometheus_client import CollectorRegistry

    from open_autoglm.serve.watching.state_metrics import StateCollector

    registry = CollectorRegistry()
    RequestMetrics(registry)
    families: list[Any] = [*registry.collect(), *StateCollector(list, AnswerChecks()).collect()]
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in families} | {
        "open_autoglm_build_info"
    }
